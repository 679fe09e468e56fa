"""A gold set and a model → scores: read the gold answers, ask the chain, compare."""

import gzip
import random
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from pydantic import BaseModel, Field, ValidationError

from chains.errors import TableError
from chains.metrics import entity_scores, language_scores
from chains.prompts import Task, load_task
from chains.schema import UNKNOWN, Entity
from chains.tables import scan, text_of

if TYPE_CHECKING:
    from chains.registry import Model

__all__ = ["TASKS", "EntityGold", "LanguageGold", "TaskName", "evaluate", "read_gold"]

TaskName = Literal["language", "entities"]
TASKS: tuple[TaskName, ...] = ("language", "entities")
# A text and its gold answer.
LanguageGold = list[tuple[str, str]]
EntityGold = list[tuple[str, tuple[Entity, ...]]]
Progress = Callable[[int, int], None]
# Texts that are asked at once: enough for batches of equally long texts, few enough to report progress.
CHUNK = 256
Answer = TypeVar("Answer")


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
    return _read_languages(path, labels) if task == "language" else _read_entities(_read(path), path.name, labels)


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        # By its first bytes, not its name: a download may have either.
        return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TableError(f"Cannot read the gold set {str(path)!r}: {reason}. Give the path of a whole file.") from error


def _read_languages(path: Path, labels: Sequence[str]) -> LanguageGold:
    table = scan(path, has_header=True)
    text_column, label_column = table.column("text"), table.column("language")
    names = {**{label: label for label in labels}, UNKNOWN: UNKNOWN, "other": UNKNOWN}
    gold = []
    for row in table.rows():
        text, error = text_of(row, text_column)
        label, _ = text_of(row, label_column)
        if error:
            raise TableError(f"{table.name!r}: {error}")
        if label not in names:
            expected = ", ".join(names)
            raise TableError(
                f"Row {row.number} of {table.name!r} has the language {label!r}: expected one of {expected}."
            )
        gold.append((text, names[label]))
    return gold


def _read_entities(content: bytes, name: str, types: Sequence[str]) -> EntityGold:
    try:
        lines = content.decode("utf-8-sig").split("\n")  # not splitlines: JSON strings may hold U+2028
    except UnicodeDecodeError as error:
        raise TableError(
            f"{name!r} is not UTF-8 (byte {error.start}): save the gold set as UTF-8 JSON Lines."
        ) from error
    gold = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            checked = GoldLine.model_validate_json(line)
            entities = tuple(_check_span(checked.text, span, types) for span in checked.entities)
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(str(part) for part in problem["loc"]) or "the line"
            raise TableError(
                f"Line {number} of {name!r}: {place}: {problem['msg']}. "
                'Expected {"text": "…", "entities": [{"start": 0, "end": 4, "type": "person"}]}.'
            ) from error
        except ValueError as error:
            raise TableError(f"Line {number} of {name!r}: {error}") from error
        gold.append((checked.text, entities))
    if not gold:
        raise TableError(f"The gold set {name!r} is empty: expected one JSON object per line.")
    return gold


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
    """The scores of ``model`` on a gold set (see ``metrics``), with what was asked and how long it took.

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
    scores: dict[str, Any]
    wrong: list[dict[str, Any]]
    if task == "language":
        from chains.language import detect_languages

        gold = _sample(read_gold(path, "language", file), limit, seed)
        texts, languages = [text for text, _ in gold], [language for _, language in gold]
        detections, seconds = _ask(
            lambda some: detect_languages(some, model, task=file, shots=shots), texts, on_progress
        )
        predicted = [detection.language for detection in detections]
        scores = language_scores(languages, predicted)
        wrong = [
            {"text": text, "gold": one, "predicted": other}
            for text, one, other in zip(texts, languages, predicted, strict=True)
            if one != other
        ]
    else:
        from chains.entities import find_entities_batch

        marked = _sample(read_gold(path, "entities", file), limit, seed)
        texts, entities = [text for text, _ in marked], [entities for _, entities in marked]
        recognitions, seconds = _ask(
            lambda some: find_entities_batch(some, model, task=file, shots=shots), texts, on_progress
        )
        found = [recognition.entities for recognition in recognitions]
        scores = entity_scores(list(entities), list(found))
        wrong = [
            {"text": text, "gold": [e.model_dump() for e in one], "predicted": [e.model_dump() for e in other]}
            for text, one, other in zip(texts, entities, found, strict=True)
            if set(one) != set(other)
        ]
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
    return about | scores | ({"wrong": wrong[:keep_wrong]} if keep_wrong else {})


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
