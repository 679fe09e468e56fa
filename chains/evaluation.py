"""A gold set and a model → scores: read the gold answers, ask the chain, compare."""

import gzip
import random
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from pydantic import BaseModel, Field, ValidationError

from chains.errors import TableError
from chains.metrics import find_overlap
from chains.prompts import Task, Tasks, load_task
from chains.reports import TASKS, Answers, TaskName, answer_rows, report_scores
from chains.schema import UNKNOWN, Entity
from chains.tables import scan, text_of

if TYPE_CHECKING:
    from chains.registry import Model

__all__ = [
    "TASKS", "EntityGold", "GoldRow", "LanguageGold", "TaskName", "evaluate", "read_gold", "read_gold_set", "tasks_of",
]  # fmt: skip

# The column that holds a task's answers.
COLUMNS: dict[TaskName, str] = {"language": "language", "entities": "entities"}
# A text and its gold answer.
LanguageGold = list[tuple[str, str]]
EntityGold = list[tuple[str, tuple[Entity, ...]]]
Progress = Callable[[int, int], None]
# Texts that are asked at once: enough for batches of equally long texts, few enough to report progress.
CHUNK = 256
MAX_TEXTS = 100_000
Answer = TypeVar("Answer")
Line = TypeVar("Line", bound=BaseModel)


class GoldSpan(BaseModel, strict=True):
    """One entity of a gold line; ``text`` may be given, and must then be what stands there."""

    start: int = Field(ge=0)
    end: int
    type: str
    text: str | None = None


class GoldLine(BaseModel, strict=True):
    """One line of a gold set for entities; other keys are ignored."""

    text: str
    entities: list[GoldSpan]


class GoldSetLine(BaseModel, strict=True):
    """One line of a gold set for both tasks, where some rows have no answer to one of them."""

    text: str
    entities: list[GoldSpan] | None = None
    language: str | None = None


@dataclass(frozen=True)
class GoldRow:
    """A text and what is right: its language, its entities, or both; ``None`` where nothing is known."""

    text: str
    language: str | None = None
    entities: tuple[Entity, ...] | None = None


@overload
def read_gold(path: Path, task: Literal["language"], file: Task | None = None) -> LanguageGold: ...
@overload
def read_gold(path: Path, task: Literal["entities"], file: Task | None = None) -> EntityGold: ...
def read_gold(path: Path, task: TaskName, file: Task | None = None) -> LanguageGold | EntityGold:
    """The texts of a gold set with their answers, in file order; the file may be gzipped. ``file`` is the task whose
    labels they have, by default the shipped one.

    ``language``: a table (see ``tables.scan``) with the columns ``text`` and ``language``, which is a label of the
    task, ``unknown`` or ``other`` (both mean ``unknown``).
    ``entities``: JSON Lines, ``{"text": …, "entities": [{"start", "end", "type"}, …]}``.

    Raises:
        TableError: the file cannot be read, is empty, or has a wrong answer; the message names the row or line.
    """
    labels = tuple((file or load_task(task)).labels)
    if task == "language":
        return _read_languages(path, path.name, labels)
    return list(_read_lines(path, path.name, GoldLine, lambda line: (line.text, _check_spans(line, labels))))


def tasks_of(path: Path, name: str = "") -> list[TaskName]:
    """The tasks that a gold file has answers to, by its columns.

    Raises:
        TableError: it cannot be read or has answers to none.
    """
    name = name or path.name
    layout = scan(path, name=name, has_header=True).layout
    readable = TASKS if layout.kind == "jsonl" else ("language",)
    tasks = [task for task in readable if {"text", COLUMNS[task]} <= set(layout.columns)]
    if not tasks:
        raise TableError(
            f"{name!r} has the columns {', '.join(map(repr, layout.columns))}: expected 'text', and 'language' "
            "(a label) or 'entities' (spans, in JSON Lines)."
        )
    return tasks


def read_gold_set(path: Path, name: str = "", tasks: Tasks | None = None) -> list[GoldRow]:
    """All that a gold file knows, in file order: of a table the languages, of JSON Lines languages, entities or both.

    ``tasks`` are those whose labels they have, by default the shipped ones.
    In JSON Lines with entities, a row may leave out ``language`` or ``entities``, or have ``null`` there.

    Raises:
        TableError: as of ``read_gold`` and ``tasks_of``; or there are more than ``MAX_TEXTS`` rows.
    """
    name, tasks = name or path.name, tasks or Tasks()
    languages, types = tuple(tasks.language.labels), tuple(tasks.entities.labels)
    if "entities" in tasks_of(path, name):
        rows = list(_read_lines(path, name, GoldSetLine, lambda line: _check_row(line, languages, types)))
    else:
        rows = [GoldRow(text, language) for text, language in _read_languages(path, name, languages)]
    if len(rows) > MAX_TEXTS:
        raise TableError(
            f"The gold set {name!r} has {len(rows):,} texts: expected at most {MAX_TEXTS:,}. A random sample of it "
            "gives the same scores."
        )
    return rows


def _read(path: Path, name: str) -> bytes:
    try:
        content = path.read_bytes()
        # By its first bytes, not its name: a download may have either.
        return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TableError(f"Cannot read the gold set {name!r}: {reason}. Give the path of a whole file.") from error


def _read_languages(path: Path, name: str, labels: Sequence[str]) -> LanguageGold:
    table = scan(path, name=name, has_header=True)
    text_column, label_column = table.column("text"), table.column("language")
    gold = []
    for row in table.rows():
        text, error = text_of(row, text_column)
        label, _ = text_of(row, label_column)
        if error:
            raise TableError(f"{name!r}: {error}")
        try:
            gold.append((text, _check_language(label, labels)))
        except ValueError as problem:
            raise TableError(f"Row {row.number} of {name!r} has {problem}") from problem
    return gold


def _check_language(label: str, labels: Sequence[str]) -> str:
    if label not in (*labels, UNKNOWN, "other"):
        raise ValueError(f"the language {label!r}: expected one of {', '.join((*labels, UNKNOWN, 'other'))}.")
    return label if label in labels else UNKNOWN


def _read_lines(path: Path, name: str, model: type[Line], check: Callable[[Line], Answer]) -> Iterator[Answer]:
    """What ``check`` makes of each line that is not blank, read as ``model``; it may raise ``ValueError``."""
    try:
        lines = _read(path, name).decode("utf-8-sig").split("\n")  # not splitlines: JSON strings may hold U+2028
    except UnicodeDecodeError as error:
        raise TableError(
            f"{name!r} is not UTF-8 (byte {error.start}): save the gold set as UTF-8 JSON Lines."
        ) from error
    if not any(line.strip() for line in lines):
        raise TableError(f"The gold set {name!r} is empty: expected one JSON object per line.")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield check(model.model_validate_json(line))
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(str(part) for part in problem["loc"]) or "the line"
            raise TableError(
                f"Line {number} of {name!r}: {place}: {problem['msg']}. "
                'Expected {"text": "…", "entities": [{"start": 0, "end": 4, "type": "person"}]}.'
            ) from error
        except ValueError as error:
            raise TableError(f"Line {number} of {name!r}: {error}") from error


def _check_row(line: GoldSetLine, languages: Sequence[str], types: Sequence[str]) -> GoldRow:
    language = None if line.language is None else _check_language(line.language, languages)
    entities = None if line.entities is None else _check_spans(line, types)
    if language is None and entities is None:
        raise ValueError("there is neither a language nor entities: expected one of them, or both.")
    return GoldRow(line.text, language, entities)


def _check_spans(line: GoldLine | GoldSetLine, types: Sequence[str]) -> tuple[Entity, ...]:
    entities = tuple(_check_span(line.text, span, types) for span in line.entities or ())
    if overlap := find_overlap(entities):
        raise ValueError(
            f"the entities {overlap[0].text!r} and {overlap[1].text!r} overlap: expected that none do, as in answers. "
            "Keep the one that you want found."
        )
    return entities


def _check_span(text: str, span: GoldSpan, types: Sequence[str]) -> Entity:
    if span.type not in types:
        raise ValueError(f"the type {span.type!r} is none of {', '.join(types)}.")
    if not span.start < span.end <= len(text):
        raise ValueError(
            f"an entity from {span.start} to {span.end} does not lie in its text of {len(text)} characters: "
            "offsets count code points, and the end is exclusive."
        )
    surface = text[span.start : span.end]
    if span.text not in (None, surface):
        raise ValueError(
            f"the entity {span.text!r} is not what stands from {span.start} to {span.end}, {surface!r}: "
            "offsets count code points, not bytes."
        )
    return Entity(text=surface, type=span.type, start=span.start, end=span.end)


def evaluate(
    path: Path,
    task: TaskName,
    model: "Model",
    *,
    file: Task | None = None,
    shots: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    keep_wrong: int = 0,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """The scores of ``model`` on a gold set (see ``reports``), with what was asked and how long it took.

    Beside the scores: ``task``, ``task_version``, ``task_identity``, ``model`` (its version), ``shots``, ``texts``,
    ``seconds``, ``texts_per_second``. ``file`` is the task that asks, by default the shipped one. ``limit`` scores
    a sample that depends only on the file, ``limit`` and ``seed``. ``keep_wrong`` adds ``wrong``, the first so many
    ``{"text", "gold", "predicted"}`` that differ.
    ``on_progress`` is called with the texts done and all.

    Raises:
        TableError: the gold set cannot be read.
        ChainError: the model failed; a score of the other texts would mislead.
    """
    file = file or load_task(task)
    gold: list[tuple[str, Any]]
    if task == "language":
        from chains.language import detect_languages

        gold = _sample(read_gold(path, "language", file), limit, seed)
        texts = [text for text, _ in gold]
        detections, seconds = _ask(
            lambda some: detect_languages(some, model, task=file, shots=shots), texts, on_progress
        )
        predicted: list[Any] = [detection.language for detection in detections]
        probabilities = [detection.probability for detection in detections]
    else:
        from chains.entities import find_entities_batch

        gold = _sample(read_gold(path, "entities", file), limit, seed)
        texts = [text for text, _ in gold]
        recognitions, seconds = _ask(
            lambda some: find_entities_batch(some, model, task=file, shots=shots), texts, on_progress
        )
        predicted = [recognition.entities for recognition in recognitions]
        probabilities = [None] * len(texts)
    numbers = list(range(1, len(texts) + 1))
    answers = Answers(task, numbers, texts, [one for _, one in gold], predicted, probabilities, [""] * len(texts))
    about = {
        "task": task,
        "task_version": file.version,
        "task_identity": file.identity,
        "model": model.version,
        "shots": model.info.shots if shots is None else shots,
        "texts": len(texts),
        "seconds": seconds,
        "texts_per_second": len(texts) / seconds if seconds else 0.0,
    }
    rows = [row for row in answer_rows(answers) if not row["right"]]
    wrong = [{name: row[name] for name in ("text", "gold", "predicted")} for row in rows[:keep_wrong]]
    return about | report_scores(answers) | ({"wrong": wrong} if keep_wrong else {})


def _sample(gold: list[Answer], limit: int | None, seed: int) -> list[Answer]:
    return gold if limit is None or limit >= len(gold) else random.Random(seed).sample(gold, limit)


def _ask(
    ask: Callable[[list[str]], list[Answer]], texts: list[str], on_progress: Progress | None
) -> tuple[list[Answer], float]:
    """The answers to ``texts``, in order, and the seconds that they took."""
    start = time.perf_counter()
    answers: list[Answer] = []
    while len(answers) < len(texts):
        answers += ask(texts[len(answers) : len(answers) + CHUNK])
        if on_progress:
            on_progress(len(answers), len(texts))
    return answers, time.perf_counter() - start
