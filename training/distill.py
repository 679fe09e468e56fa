"""Label raw texts by a stronger model: ``python -m training.distill --teacher T --task TASK --texts FILE… --out OUT``.

The teacher, ``openai:<url>#<model>`` or any other model, answers every text twice through the same chains, with the
task's shots in their order and in reverse. A text is kept if

- both answers are the same,
- language: each has at least the task's threshold as its probability, ``unknown`` too; without probabilities (the
  server has no echo) ``unknown`` is no answer, for it may mean that no label could be read;
- entities: both replies can be read, and every name in them stands in the text.

Two orders, because a model that answers by a shot's place and not by the text is found out so; what both agree on is
more often right (self-consistency, https://arxiv.org/abs/2203.11171).

``OUT`` is a gold file (JSON Lines) as ``training.lora`` reads it; every row says where text and answer come from.
``OUT.dropped.jsonl`` says of all other texts why they are not kept. Given again, the command goes on after both.
"""

import argparse
import gzip
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from chains.entities import find_entities_batch
from chains.errors import ChainError, ModelError, ReplyError, TableError
from chains.evaluation import TASKS, TaskName
from chains.language import detect_languages
from chains.prompts import Task, load_task
from chains.registry import Model, load
from chains.schema import UNKNOWN, Detection, Recognition
from chains.tables import guess_text_column, scan, text_of
from training.gold import key_of, read_examples

CHUNK = 64  # texts asked at once; each chunk is written before the next is asked
SHOTS = 6
Answer = TypeVar("Answer", Detection, Recognition)
Ask = Callable[[Sequence[str]], list[Answer]]


def read_texts(path: Path, column: str | None) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each line of a ``.txt`` file (UTF-8, may be gzipped) or row of a table.

    Raises:
        TableError: the file cannot be read, or has no such column.
    """
    if path.name.removesuffix(".gz").endswith(".txt"):
        try:
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            yield from enumerate(content.decode("utf-8-sig").split("\n"), 1)
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise TableError(f"Cannot read {str(path)!r}: {error}. Expected UTF-8 text, a sentence a line.") from error
        return
    table = scan(path)
    place = table.column(column or guess_text_column(table))
    for row in table.rows():
        text, error = text_of(row, place)
        if not error:
            yield row.number, text


def ask_each(ask: Ask[Answer], texts: Sequence[str]) -> list[Answer | str]:
    """The answers to ``texts``, asked together; if a reply cannot be read, each is asked alone, and has its error."""
    try:
        return [*ask(texts)]
    except ReplyError:
        answers: list[Answer | str] = []
        for text in texts:
            try:
                answers += ask([text])
            except ReplyError as error:
                answers.append(str(error))
        return answers


def judge_language(answers: Sequence[Detection | str]) -> str | dict[str, Any]:
    """The agreed language as a gold row has it, or why there is none."""
    detections = [answer for answer in answers if isinstance(answer, Detection)]
    if len(detections) < len(answers):
        return "unreadable"
    if len({detection.language for detection in detections}) > 1:
        return "disagree"
    for detection in detections:
        if detection.probability is None:
            if detection.language == UNKNOWN:
                return "unsure"
        elif detection.probability < (detection.threshold or 0.0):
            return "unsure"
    return {"language": detections[0].language}


def judge_entities(answers: Sequence[Recognition | str]) -> str | dict[str, Any]:
    """The agreed entities as a gold row has them, or why there are none."""
    recognitions = [answer for answer in answers if isinstance(answer, Recognition)]
    if len(recognitions) < len(answers):
        return "unreadable"
    if any(recognition.ungrounded for recognition in recognitions):
        return "ungrounded"
    if len({recognition.entities for recognition in recognitions}) > 1:
        return "disagree"
    return {"entities": [entity.model_dump() for entity in recognitions[0].entities]}


def label(texts: Sequence[str], teacher: Model, task: TaskName, shots: int) -> list[str | dict[str, Any]]:
    """For each text what both shot orders agree on, or why it is dropped."""
    file = load_task(task)
    orders: list[Task] = [file, file.model_copy(update={"shots": file.shots[::-1]})]
    if task == "language":

        def detect(order: Task) -> Ask[Detection]:
            return lambda some: detect_languages(some, teacher, task=order, shots=shots)

        return [
            judge_language(pair) for pair in zip(*(ask_each(detect(order), texts) for order in orders), strict=True)
        ]

    def find(order: Task) -> Ask[Recognition]:
        return lambda some: find_entities_batch(some, teacher, task=order, shots=shots)

    return [judge_entities(pair) for pair in zip(*(ask_each(find(order), texts) for order in orders), strict=True)]


def distill(
    teacher: str,
    task: TaskName,
    files: Sequence[Path],
    out: Path,
    *,
    shots: int = SHOTS,
    column: str | None = None,
    held_out: Sequence[Path] = (),
    limit: int | None = None,
) -> Counter[str]:
    """Label the texts of ``files`` into ``out``, at most ``limit`` new ones; how many were kept, and dropped by reason.

    Texts of ``held_out`` gold files, repeats (see ``gold.key_of``) and what is in ``out`` already are not asked.

    Raises:
        ChainError: the teacher or a file cannot be used; what was labelled before is written.
    """
    if shots < 2:
        raise ModelError(f"{shots} shots have no order to change: give at least 2.")
    dropped = out.with_name(out.name + ".dropped.jsonl")
    seen = {key_of(example.text) for example in read_examples(held_out)}
    seen |= {key_of(row["text"]) for path in (out, dropped) for row in whole_lines(path)}
    model = load(teacher)
    about = {"teacher": model.version, "task_version": load_task(task).version, "shots": shots, "orders": 2}

    def new_texts() -> Iterator[tuple[str, dict[str, Any]]]:
        for path in files:
            for number, text in read_texts(path, column):
                key = key_of(text)
                if text.strip() and key not in seen:
                    seen.add(key)
                    yield text, {"file": path.name, "row": number, **about}

    counts: Counter[str] = Counter()
    ahead = islice(new_texts(), limit)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Half a surrogate pair, which JSON may hold and UTF-8 may not, becomes one other character.
    with (
        open(out, "a", encoding="utf-8", errors="replace") as kept_file,
        open(dropped, "a", encoding="utf-8", errors="replace") as dropped_file,
    ):
        while chunk := list(islice(ahead, CHUNK)):
            for (text, source), found in zip(
                chunk, label([text for text, _ in chunk], model, task, shots), strict=True
            ):
                is_kept = isinstance(found, dict)
                row = {"text": text, **(found if isinstance(found, dict) else {"reason": found}), "source": source}
                (kept_file if is_kept else dropped_file).write(json.dumps(row, ensure_ascii=False) + "\n")
                counts["kept" if is_kept else str(found)] += 1
            kept_file.flush()
            dropped_file.flush()
            print(f"{counts.total():,} texts: {dict(counts)}", file=sys.stderr, flush=True)
    return counts


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of ours; a last line that was cut off as its process ended is removed from it."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    try:
        rows = [json.loads(line) for line in whole.decode("utf-8").split("\n") if line]
        if any(not isinstance(row["text"], str) or "teacher" not in row["source"] for row in rows):
            raise ValueError("a row without its source")
        if whole != content:
            path.write_bytes(whole)
        return rows
    except (ValueError, KeyError, TypeError) as error:
        raise TableError(
            f"{str(path)!r} is there, and no file of this command's ({error}). Give another --out."
        ) from error


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0, or 1 after an error in words."""
    parser = argparse.ArgumentParser(prog="python -m training.distill", description="Label texts with a teacher.")
    parser.add_argument("--teacher", required=True, help="openai:URL#NAME, or any other model")
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--texts", type=Path, nargs="+", required=True, help=".txt (a sentence a line) or tables")
    parser.add_argument("--out", type=Path, required=True, help="gold file to write, or to go on with")
    parser.add_argument("--eval", type=Path, nargs="*", default=[], help="gold files whose texts are left out")
    parser.add_argument("--text-column", help="the column of the texts (default: guessed)")
    parser.add_argument("--shots", type=int, default=SHOTS, help=f"default: {SHOTS}")
    parser.add_argument("--limit", type=int, help="the most texts to ask now")
    chosen = parser.parse_args(arguments)
    try:
        counts = distill(
            chosen.teacher,
            chosen.task,
            chosen.texts,
            chosen.out,
            shots=chosen.shots,
            column=chosen.text_column,
            held_out=chosen.eval,
            limit=chosen.limit,
        )
    except ChainError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    total = counts.total()
    print(f"{counts.pop('kept', 0):,} of {total:,} texts are kept in {chosen.out}; dropped: {dict(counts) or 'none'}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
