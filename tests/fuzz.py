"""Coverage-guided fuzzing: ``python -m tests.fuzz readers|gold|tasks|parsers [--minutes 10]``.

Runs atheris (https://github.com/google/atheris) over one target for so long; the only error that may come out of it is
the one that the target's docstring names. An input that breaks it is written to a file by atheris, which says where.
What was found is kept as tests beside those of the module. Linux only.
"""

import argparse
import contextlib
import gzip
import io
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

# Not instrumented: torch is not needed, and what is outside the product has fuzzers of its own.
with atheris.instrument_imports(include=["chains"]):
    from chains import evaluation, parsers, prompts, spans, tables

from langchain_core.exceptions import OutputParserException

from chains.errors import TableError, TaskError

FOLDER = Path(tempfile.mkdtemp(prefix="bloom-lens-fuzz-"))
SUFFIXES = ("csv", "tsv", "txt", "jsonl", "csv.gz", "jsonl.gz", "parquet", "xlsx")


def fuzz_readers(data: bytes) -> None:
    """A table is read or refused with ``TableError``; read again, it has the same rows, and all of them."""
    path = FOLDER / f"table.{SUFFIXES[data[0] % len(SUFFIXES)] if data else 'csv'}"
    path.write_bytes(data[1:])
    try:
        table = tables.scan(path)
        rows = list(table.rows())
        column = table.column(tables.guess_text_column(table))
    except TableError:
        return
    assert len(rows) == table.total
    assert len(set(table.columns)) == len(table.columns)
    for row in rows:
        text, error = tables.text_of(row, column)
        assert not (text and error)
    middle = len(rows) // 2
    assert repr(rows[middle:]) == repr(list(table.rows(middle)))  # repr: a cell may be NaN


def fuzz_gold(data: bytes) -> None:
    """A gold set is read or refused with ``TableError``; its spans are in their texts."""
    path = FOLDER / ("gold.csv" if data[:1] < b"\x80" else "gold.jsonl")
    path.write_bytes(data[1:])
    with contextlib.suppress(TableError):
        if path.suffix == ".csv":
            evaluation.read_gold(path, "language")
        else:
            for text, entities in evaluation.read_gold(path, "entities"):
                assert all(text[entity.start : entity.end] == entity.text for entity in entities)


def fuzz_tasks(data: bytes) -> None:
    """A task file is read or refused with ``TaskError``; what is read can be made a prompt."""
    path = FOLDER / "task.yaml"
    path.write_bytes(data)
    prompts.load_task.cache_clear()
    try:
        task = prompts.load_task(path)
    except TaskError:
        return
    prompts.prompt_template(task, len(task.shots)).format(text="{text} {x} <a>(b)")


def fuzz_parsers(data: bytes) -> None:
    """A reply is read or refused with ``OutputParserException``; probabilities add up, and spans are in their text."""
    reply, _, text = data.decode("utf-8", "replace").partition("\0")
    language, entities = prompts.load_task("language"), prompts.load_task("entities")
    with contextlib.suppress(OutputParserException):
        detection = parsers.ScoreParser(task=language).parse(reply)
        assert abs(sum(detection.probabilities.values()) - 1) < 1e-6
    assert parsers.LabelParser(task=language).parse(reply).language in {*language.labels, "unknown"}
    with contextlib.suppress(OutputParserException):
        mentions = parsers.MentionParser(task=entities).parse(reply).mentions
        found, left = spans.align(text, mentions)
        assert all(text[entity.start : entity.end] for entity in found)
        assert len(left) <= len(mentions)


def seeds() -> dict[str, list[bytes]]:
    """Inputs to begin with, by target."""
    import openpyxl
    import pyarrow
    from pyarrow import parquet

    rows = [{"text": "Ana lives in Oslo.", "language": "english"}, {"text": "Él dijo «no».", "language": "spanish"}]
    csv = "text,language\n" + "\n".join(f'"{row["text"]}",{row["language"]}' for row in rows) + "\n"
    lines = "\n".join(json.dumps(row) for row in rows)
    columns, workbook, excel = io.BytesIO(), openpyxl.Workbook(), io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), columns)
    for row in [["text", "n"], ["Ana", 1]]:
        workbook.active.append(row)
    workbook.save(excel)
    files = [csv.encode(), csv.replace(",", "\t").encode("utf-16"), csv.encode("cp1252"), lines.encode()]
    files += [gzip.compress(csv.encode()), gzip.compress(lines.encode()), columns.getvalue(), excel.getvalue()]
    gold = '{"text": "Ana lives in Oslo.", "entities": [{"start": 0, "end": 3, "type": "person"}]}'
    return {
        "readers": [bytes([number]) + content for number, content in enumerate(files)],
        "gold": [b"\x00" + csv.encode(), b"\xff" + gold.encode(), b"\xff" + gzip.compress(gold.encode())],
        "tasks": [file.read_bytes() for file in prompts.TASKS_FOLDER.glob("*.yaml")],
        "parsers": [
            b"<Ana>(person) <Oslo>(location)\0Ana lives in Oslo with Ana.",
            b'{"english": -0.1, "other": -3.5}\0',
            b'{"english": NaN, "other": -Infinity}\0',
            b"none\0",
            "française\0".encode(),
        ],
    }


TARGETS: dict[str, Callable[[bytes], None]] = {
    "readers": fuzz_readers,
    "gold": fuzz_gold,
    "tasks": fuzz_tasks,
    "parsers": fuzz_parsers,
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--minutes", type=float, default=10)
    chosen = parser.parse_args()
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for number, content in enumerate(seeds()[chosen.target]):
        (corpus / str(number)).write_bytes(content)
    options = [f"-max_total_time={60 * chosen.minutes:.0f}", "-max_len=20000", "-timeout=20", "-rss_limit_mb=3000"]
    atheris.Setup([sys.argv[0], *options, "-print_final_stats=1", str(corpus)], TARGETS[chosen.target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
