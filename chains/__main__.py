"""The command line: ``python -m chains detect | entities | batch | jobs | evaluate | models``.

Exit codes: 0 fine, 1 an error (in words on stderr), 2 wrong use, 130 interrupted. Results go to stdout, all else to
stderr. What a command needs is imported when it runs, so that ``--help`` answers at once.
"""

import argparse
import io
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from chains.errors import ChainError

if TYPE_CHECKING:
    from chains.batch import Engine, Jobs
    from chains.prompts import Kind, Task, Tasks
    from chains.registry import Model
    from chains.store import Job

__all__ = ["main"]

OUTPUT_KINDS = {".csv": "csv", ".jsonl": "jsonl", ".parquet": "parquet", ".xlsx": "xlsx"}
GOLD_KINDS = (".jsonl", ".csv")
SHAPES = ("wide", "long")
ENGINES = ("local", "ray")


def main(arguments: list[str] | None = None) -> int:
    """The exit code of one command; wrong use ends the program with code 2, as argparse does."""
    parser = make_parser()
    chosen = parser.parse_args(arguments)
    if "output" in chosen:
        check_output(parser, chosen)
    try:
        code: int = chosen.command(chosen)
        return code
    except ChainError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130


def make_parser() -> argparse.ArgumentParser:
    """The commands and their options; ``command`` is the function that runs the chosen one."""
    parser = argparse.ArgumentParser(
        prog="python -m chains", description="Language and named entities of texts, by a local BLOOM model."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--json", action="store_true", help="print one JSON document")
    asking = argparse.ArgumentParser(add_help=False)
    asking.add_argument(
        "--model", metavar="M", help="a name from 'models', a Hub id, a folder, or openai:URL#NAME (default: embedded)"
    )
    asking.add_argument("--shots", type=count, metavar="K", help="few-shot examples (default: the model's own number)")
    tasked = argparse.ArgumentParser(add_help=False)
    tasked.add_argument("--task", metavar="FILE", help="a task file (YAML) in place of the shipped one")
    writing = argparse.ArgumentParser(add_help=False)
    kinds = ", ".join(OUTPUT_KINDS)
    writing.add_argument("--shape", choices=SHAPES, default="wide", help="a row per text (wide) or per entity (long)")
    cells = argparse.ArgumentParser(add_help=False)
    cells.add_argument("--raw-cells", action="store_true", help="leave cells that a spreadsheet would run as formulas")

    detect = commands.add_parser("detect", parents=[shared, asking, tasked], help="the language of one text")
    detect.add_argument("text", metavar="TEXT", help="the text, or - for standard input")
    detect.set_defaults(command=run_detect)

    entities = commands.add_parser("entities", parents=[shared, asking, tasked], help="the entities of one text")
    entities.add_argument("text", metavar="TEXT", help="the text, or - for standard input")
    entities.set_defaults(command=run_entities)

    batch = commands.add_parser(
        "batch", parents=[shared, asking, writing, cells], help="both for every row of a file; given again, it goes on"
    )
    batch.add_argument(
        "input", type=Path, metavar="IN", help="CSV, JSON Lines (either may be gzipped), Parquet or Excel"
    )
    batch.add_argument("output", type=Path, metavar="OUT", help=f"a file that ends in {kinds}")
    batch.add_argument("--text-column", metavar="NAME", help="the column of the texts (default: guessed, and told)")
    batch.add_argument("--encoding", metavar="E", help="such as utf-8 or cp1252 (default: detected)")
    batch.add_argument("--delimiter", type=delimiter, metavar="D", help="such as ';' or tab (default: detected)")
    batch.add_argument("--header", choices=("yes", "no"), help="whether the first row names the columns")
    batch.add_argument(
        "--task", metavar="FILE", action="append", default=[],
        help="a task file (YAML) in place of the shipped one of its kind; may be given for both kinds",
    )  # fmt: skip
    batch.add_argument("--engine", choices=ENGINES, default="local", help="this process, or a Ray cluster")
    batch.add_argument("--address", metavar="A", help="of the Ray cluster (default: one on this machine)")
    batch.add_argument("--workers", type=positive, metavar="N", help="processes of the Ray cluster with a model each")
    batch.set_defaults(command=run_batch)

    jobs = commands.add_parser("jobs", parents=[shared], help="the jobs in the database, and what to do with one")
    jobs.set_defaults(command=run_jobs)
    actions = jobs.add_subparsers(metavar="ACTION")
    export = actions.add_parser("export", parents=[shared, writing, cells], help="write the rows that are done")
    export.add_argument("id", metavar="JOB")
    export.add_argument("output", type=Path, metavar="OUT", help=f"a file that ends in {kinds}")
    export.set_defaults(command=run_export)
    gold = actions.add_parser("gold", parents=[shared, cells], help="write the rows that were corrected as a gold set")
    gold.add_argument("id", metavar="JOB")
    gold.add_argument("output", type=Path, metavar="OUT", help=f"a file that ends in {' or '.join(GOLD_KINDS)}")
    gold.set_defaults(command=run_gold, kinds=GOLD_KINDS)
    for name, help in (("resume", "go on with a job"), ("retry", "try the failed rows again")):
        action = actions.add_parser(name, parents=[shared], help=help)
        action.add_argument("id", metavar="JOB")
        action.set_defaults(command=run_resume, retries=name == "retry")
    rename = actions.add_parser("rename", help="give a job another name")
    rename.add_argument("id", metavar="JOB")
    rename.add_argument("name", metavar="NAME")
    rename.set_defaults(command=run_rename)
    delete = actions.add_parser("delete", help="remove a job and its results")
    delete.add_argument("id", metavar="JOB")
    delete.set_defaults(command=run_delete)

    evaluate = commands.add_parser("evaluate", parents=[shared, asking], help="scores on a gold set")
    evaluate.add_argument("gold", type=Path, metavar="GOLD", help="CSV for language, JSON Lines for entities; .gz too")
    evaluate.add_argument("--task", metavar="T", required=True, help="language, entities, or a task file (YAML)")
    evaluate.add_argument("--limit", type=positive, metavar="N", help="score a random sample of N texts")
    evaluate.set_defaults(command=run_evaluate)

    models = commands.add_parser("models", parents=[shared], help="the models, and what they need")
    models.set_defaults(command=run_models)
    return parser


def count(value: str) -> int:
    """A whole number from 0."""
    if not value.isdecimal():
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number from 0")
    return int(value)


def positive(value: str) -> int:
    """A whole number from 1."""
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number from 1")
    return int(value)


def delimiter(value: str) -> str:
    """One character; a tab may be spelled out, since shells make it hard to type."""
    return "\t" if value in {"tab", "\\t"} else value


def check_output(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> None:
    """End the program, before a model is loaded, if the result could not be written."""
    kinds = getattr(chosen, "kinds", OUTPUT_KINDS)
    if chosen.output.suffix not in kinds:
        parser.error(f"OUT must end in {', '.join(kinds)}, not {chosen.output.name!r}")
    if "input" in chosen and chosen.output.resolve() == chosen.input.resolve():
        parser.error("OUT must not be IN: give the results a file of their own")
    if not chosen.output.resolve().parent.is_dir():
        parser.error(f"the folder {str(chosen.output.parent)!r} of OUT does not exist")


def run_detect(chosen: argparse.Namespace) -> int:
    """Print the language of one text with every label's probability."""
    text, task = read_text(chosen.text), read_task(chosen.task, "language")
    model = load_model(chosen)
    from chains.language import detect_language

    start = time.perf_counter()
    detection = detect_language(text, model, task=task, shots=chosen.shots)
    seconds = time.perf_counter() - start
    if chosen.json:
        extra = {"model": model.version, "task": task.identity, "seconds": seconds}
        print_json(detection.model_dump(mode="json") | extra)
        return 0
    probabilities = sorted(detection.probabilities.items(), key=lambda item: -item[1])
    print(
        " ".join([detection.language, *([percent(detection.probability)] if detection.probability is not None else [])])
    )
    print_table([[f"  {label}", percent(probability)] for label, probability in probabilities], right={1})
    print(f"{model.version}, {task.identity}, {seconds:.2f} s")
    return 0


def run_entities(chosen: argparse.Namespace) -> int:
    """Print the entities of one text with their places, and the number of each type."""
    text, task = read_text(chosen.text), read_task(chosen.task, "entities")
    model = load_model(chosen)
    from chains.entities import find_entities

    start = time.perf_counter()
    recognition = find_entities(text, model, task=task, shots=chosen.shots)
    seconds = time.perf_counter() - start
    counts = recognition.counts()
    if chosen.json:
        extra = {"counts": counts, "model": model.version, "task": task.identity, "seconds": seconds}
        print_json(recognition.model_dump(mode="json") | extra)
        return 0
    if recognition.entities:
        rows = [[str(e.start), str(e.end), e.type, " ".join(e.text.split())] for e in recognition.entities]
        print_table([["start", "end", "type", "text"], *rows], right={0, 1})
        print(", ".join(f"{type_}: {number}" for type_, number in counts.items()))
    else:
        print("no entities")
    if recognition.ungrounded:
        print("not in the text: " + ", ".join(f"{mention.text} ({mention.type})" for mention in recognition.ungrounded))
    print(f"{model.version}, {task.identity}, {seconds:.2f} s")
    return 0


def run_batch(chosen: argparse.Namespace) -> int:
    """Write every row of a file with its results to another file; an answer that is stored is not computed again."""
    from chains.batch import answer_base
    from chains.registry import EMBEDDED
    from chains.tables import guess_text_column, scan

    has_header = {"yes": True, "no": False, None: None}[chosen.header]
    table = scan(chosen.input, encoding=chosen.encoding, delimiter=chosen.delimiter, has_header=has_header)
    column = chosen.text_column if chosen.text_column is not None else guess_text_column(table)
    table.column(column)
    tasks = read_tasks(chosen.task)
    if chosen.text_column is None:
        print(f"Reading the texts of column {column!r}; choose another with --text-column.", file=sys.stderr)
    for problem in table.problems:
        print(f"Warning: {problem}", file=sys.stderr)
    jobs = open_jobs()
    with ExitStack() as opened:
        engine = make_engine(chosen, opened)
        base = answer_base(engine.version, engine.shots if chosen.shots is None else chosen.shots, tasks)
        name = chosen.model or EMBEDDED
        job = jobs.find(table, column, name, chosen.shots, tasks, base)
        id = job.id if job else jobs.submit(table, column, name, chosen.shots, tasks=tasks, copy=False)
        if job and job.done:
            print(f"Going on after {job.done:,} of {job.total:,} rows.", file=sys.stderr)
        return finish_job(jobs, id, chosen, engine)


def run_jobs(chosen: argparse.Namespace) -> int:
    """Print every job, newest first."""
    jobs = open_jobs().list()
    if chosen.json:
        print_json({"jobs": [describe_job(job) for job in jobs]})
        return 0
    rows = [
        [job.id, job.created[:16].replace("T", " "), job.state, f"{job.done:,}", f"{job.total:,}", f"{job.failed:,}",
         job.version or job.model, " ".join(job.name.split())]
        for job in jobs
    ]  # fmt: skip
    print_table([["job", "created (UTC)", "state", "done", "rows", "failed", "model", "name"], *rows], right={3, 4, 5})
    return 0


def run_export(chosen: argparse.Namespace) -> int:
    """Write the rows of a job that are done."""
    jobs = open_jobs()
    write_job(jobs, jobs.status(chosen.id), chosen)
    return 0


def run_gold(chosen: argparse.Namespace) -> int:
    """Write the corrected rows of a job, for ``evaluate`` and ``training.lora``."""
    jobs = open_jobs()
    if not jobs.corrections(chosen.id):
        raise ChainError(f"No row of job {chosen.id!r} is corrected yet: open it on the page Batch and correct some.")
    format = OUTPUT_KINDS[chosen.output.suffix]
    with writing_whole(chosen.output, f"gold {chosen.id}") as target:
        rows = jobs.export_gold(chosen.id, target, format=format, neutralise=not chosen.raw_cells)
    if chosen.json:
        print_json({"job": chosen.id, "output": str(chosen.output), "rows": rows})
    else:
        print(f"{rows:,} corrected rows: {chosen.output}")
    return 0


def run_resume(chosen: argparse.Namespace) -> int:
    """Finish a job, or try its failed rows again."""
    jobs = open_jobs()
    if chosen.retries:
        jobs.retry(chosen.id)
    return finish_job(jobs, chosen.id, chosen)


def run_rename(chosen: argparse.Namespace) -> int:
    """Give a job another name."""
    open_jobs().rename(chosen.id, chosen.name)
    return 0


def run_delete(chosen: argparse.Namespace) -> int:
    """Remove a job and its results."""
    open_jobs().delete(chosen.id)
    return 0


def open_jobs() -> "Jobs":
    """The jobs of the configured database."""
    from chains.batch import Jobs
    from chains.config import load_settings
    from chains.registry import load
    from chains.store import Store

    settings = load_settings()
    return Jobs(Store(settings.database_url), settings.data_folder, load)


def make_engine(chosen: argparse.Namespace, opened: ExitStack) -> "Engine":
    """What computes the rows: the chosen model in this process, or a Ray cluster for as long as ``opened`` is."""
    from chains.batch import ModelEngine

    if chosen.engine == "ray":
        from chains.cluster import RayEngine
        from chains.registry import EMBEDDED

        return opened.enter_context(RayEngine(chosen.model or EMBEDDED, address=chosen.address, workers=chosen.workers))
    return ModelEngine(load_model(chosen))


def finish_job(jobs: "Jobs", id: str, chosen: argparse.Namespace, engine: "Engine | None" = None) -> int:
    """Run a job to its end, with its progress on stderr; write its rows if there is a file for them."""
    job = jobs.status(id)
    progress = Progress("rows", job.done)
    try:
        job = jobs.run(id, engine=engine, on_progress=lambda now: progress.show(now.done, now.total))
    except KeyboardInterrupt:
        done = jobs.status(id).done
        print(
            f"\nStopped after {done:,} of {job.total:,} rows, which are stored. The same command goes on; "
            f"'python -m chains jobs export {id} FILE' writes what is done.",
            file=sys.stderr,
        )
        return 130
    except ChainError as error:
        raise ChainError(f"{error} What is done is stored: the same command goes on after it.") from error
    if "output" in chosen:
        write_job(jobs, job, chosen)
    elif chosen.json:
        print_json(describe_job(job))
    else:
        print(f"{job.total:,} rows, {job.failed:,} with an error")
    return 0


def write_job(jobs: "Jobs", job: "Job", chosen: argparse.Namespace) -> None:
    """Write the rows of a job that are done to the chosen file, whole or not at all, and say so."""
    format = OUTPUT_KINDS[chosen.output.suffix]
    with writing_whole(chosen.output, f"export {job.id}") as target:
        lines = jobs.export(job.id, target, format=format, shape=chosen.shape, neutralise=not chosen.raw_cells)
    if chosen.json:
        print_json(describe_job(job) | {"output": str(chosen.output), "lines": lines})
    else:
        print(f"{job.done:,} rows, {job.failed:,} with an error, in {job.seconds:.1f} s: {chosen.output}")


@contextmanager
def writing_whole(path: Path, action: str) -> Iterator[BinaryIO]:
    """A file that is there as a whole or not at all; ``action`` on jobs is what writes it again."""
    from chains.files import written_whole

    try:
        with written_whole(path) as target:
            yield target
    except OSError as error:
        raise ChainError(
            f"Cannot write {str(path)!r}: {error.strerror}. Choose another place for the results: "
            f"'python -m chains jobs {action} FILE' writes them again."
        ) from error


def describe_job(job: "Job") -> dict[str, Any]:
    """What a program may want to know of a job."""
    about = {"job": job.id, "name": job.name, "state": job.state, "rows": job.total, "done": job.done}
    about |= {"failed": job.failed, "seconds": job.seconds, "model": job.version or job.model, "shots": job.shots}
    return about | {"text_column": job.text_column, "created": job.created, "error": job.error}


def run_evaluate(chosen: argparse.Namespace) -> int:
    """Print a model's scores on a gold set."""
    from chains.evaluation import evaluate, read_gold
    from chains.prompts import KINDS, load_task

    task = load_task(chosen.task if chosen.task in KINDS else Path(chosen.task))
    read_gold(chosen.gold, task.kind, task)  # a mistake in it should not wait for the model
    model = load_model(chosen)
    show = Progress("texts").show
    report = evaluate(
        chosen.gold, task.kind, model, file=task, shots=chosen.shots, limit=chosen.limit, on_progress=show
    )
    if chosen.json:
        print_json(report)
        return 0
    averages = [name for name in ("accuracy", "micro_f1", "macro_f1", "weighted_f1") if name in report]
    intervals = report["intervals"]
    print_table(
        [
            [name.replace("_f1", " F1"), percent(report[name]), " to ".join(map(percent, intervals[name]))]
            for name in averages
        ],
        right={1},
    )
    classes = report["per_class"] if task.kind == "language" else report["per_type"]
    rows = [
        [name, percent(row["precision"]), percent(row["recall"]), percent(row["f1"]), f"{row['support']:,}"]
        for name, row in classes.items()
    ]
    print()
    print_table([["", "precision", "recall", "F1", "support"], *rows], right={1, 2, 3, 4})
    if task.kind == "language":
        matrix = report["confusion_matrix"]
        rows = [
            [label, *(f"{number:,}" for number in row)]
            for label, row in zip(matrix["labels"], matrix["rows"], strict=True)
        ]
        print()
        print_table([["gold \\ predicted", *matrix["labels"]], *rows], right=set(range(1, len(rows) + 1)))
    if task.kind == "entities":
        print()
        print_table([[kind, f"{number:,}"] for kind, number in report["errors"].items()], right={1})
    elif report["calibration"]:
        print(f"\nexpected calibration error: {percent(report['calibration']['expected_error'])}")
    print()
    print(
        f"{report['model']}, {report['shots']} shots, {report['task_identity']}: {report['texts']:,} texts "
        f"in {report['seconds']:.1f} s ({report['texts_per_second']:.1f} per second)"
    )
    return 0


def run_models(chosen: argparse.Namespace) -> int:
    """Print every model with its size, its memory need against what is free, and its licence."""
    from chains.registry import MODELS, free_memory_bytes

    free = free_memory_bytes()
    if chosen.json:
        models = [describe(info) | {"fits": info.memory_bytes <= free} for info in MODELS.values()]
        print_json({"free_memory_bytes": free, "models": models})
        return 0
    rows = [
        [
            info.name,
            f"{info.parameters / 1e6:,.0f} M",
            gigabytes(info.memory_bytes),
            "yes" if info.memory_bytes <= free else "no",
            info.licence,
        ]
        for info in MODELS.values()
    ]
    print_table([["model", "parameters", "memory", "fits", "licence"], *rows], right={1, 2})
    print(f"{gigabytes(free)} of memory are free")
    return 0


def describe(info: Any) -> dict[str, Any]:
    """A model's fields, those that are computed from others too."""
    return asdict(info) | {"download_bytes": info.download_bytes, "memory_bytes": info.memory_bytes}


def read_text(argument: str) -> str:
    """The text of the command line, or of standard input (UTF-8, without its last line end) if it is ``-``."""
    if argument != "-":
        # Bytes that are no UTF-8 reach us as lone surrogates, which no tokenizer takes.
        return argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ChainError(
            f"Standard input is not UTF-8 (byte {error.start}). Convert it, for instance with iconv."
        ) from error
    return text.removesuffix("\n").removesuffix("\r")


def read_task(path: str | None, kind: "Kind") -> "Task":
    """The task of a file, which must be of that kind; without one, the shipped task."""
    from chains.prompts import load_task

    task = load_task(kind if path is None else Path(path))
    if task.kind != kind:
        raise ChainError(f"The task file {path!r} is of kind {task.kind!r}: expected one of kind {kind!r}.")
    return task


def read_tasks(paths: Sequence[str]) -> "Tasks":
    """The tasks of files, at most one of each kind, with the shipped one of a kind that no file has."""
    from chains.prompts import Tasks, load_task

    tasks = [load_task(Path(path)) for path in paths]
    by_kind = {task.kind: task for task in tasks}
    if len(by_kind) < len(tasks):
        raise ChainError(f"Of the task files {', '.join(paths)}, two are of one kind: give one of each kind at most.")
    return Tasks(**by_kind)


def load_model(chosen: argparse.Namespace) -> "Model":
    """The chosen model, or the embedded one."""
    from chains import registry

    return registry.load(chosen.model or registry.EMBEDDED)


class Progress:
    """Rate and time left on stderr: one line that is rewritten on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, unit: str, done: int = 0) -> None:
        self.unit = unit
        self.before = done
        self.start = self.shown = time.monotonic()

    def show(self, done: int, total: int) -> None:
        """Tell that ``done`` of ``total`` are done; the last call always shows."""
        now = time.monotonic()
        is_terminal = sys.stderr.isatty()
        if done < total and now - self.shown < (0.2 if is_terminal else 10):
            return
        self.shown = now
        rate = max(done - self.before, 1e-9) / max(now - self.start, 1e-9)
        left = duration((total - done) / rate) if done > self.before else "?"
        line = f"{done:,} of {total:,} {self.unit} · {rate:,.1f} per second · {left} left"
        end = "\n" if done == total or not is_terminal else ""
        print(f"\r{line:<70}" if is_terminal else line, end=end, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds such as ``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def percent(value: float) -> str:
    """Such as ``93.4%``."""
    return f"{value:.1%}"


def gigabytes(size_bytes: int) -> str:
    """Such as ``1.6 GB``."""
    return f"{size_bytes / 1e9:.1f} GB"


def print_table(rows: Sequence[Sequence[str]], *, right: set[int]) -> None:
    """Print rows in aligned columns; those in ``right`` are numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def print_json(document: dict[str, Any]) -> None:
    """Print one JSON document in readable form."""
    print(json.dumps(document, ensure_ascii=False, indent=2))


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")  # results hold any letter, some consoles do not
    sys.exit(main())
