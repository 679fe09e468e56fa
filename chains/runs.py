"""Evaluations as jobs: a gold set in a file of its own, a job over its texts, the job's answers beside the gold.

So an evaluation is stopped, resumed, cached and owned as any job is. Its file is JSON Lines with the columns ``text``
and, of those that the gold set knows, ``gold language`` and ``gold entities``: by these, and nothing else, it is told
from other jobs. Equal gold sets make equal files, whatever they were uploaded as, so their runs can be compared.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from chains.batch import Jobs, layout_of, tasks_of
from chains.errors import TableError
from chains.evaluation import GoldRow
from chains.metrics import NO_ANSWER
from chains.prompts import Tasks
from chains.reports import TASKS, Answers, TaskName
from chains.schema import Entity
from chains.store import Job
from chains.tables import scan

__all__ = ["TEXT", "describe_tasks", "is_run", "list_runs", "read_answers", "repeat_run", "start_run", "tasks_of_run"]

TEXT = "text"
GOLD: dict[TaskName, str] = {"language": "gold language", "entities": "gold entities"}


def start_run(
    jobs: Jobs, gold: Sequence[GoldRow], file: Path, model_name: str, shots: int | None, *,
    name: str, owner: str = "", tasks: Tasks | None = None,
) -> str:  # fmt: skip
    """The id of a new job that answers the texts of ``gold``, written into ``file`` first, which may then go.

    Raises:
        TableError: there is no row; or the file cannot be written.
    """
    if not gold:
        raise TableError(f"The gold set {name!r} is empty: expected at least one text with its right answer.")
    try:
        file.write_bytes(write_gold(gold))
    except OSError as error:
        raise TableError(f"Cannot write {str(file)!r}: {error.strerror}. Make room there.") from error
    # The name says how to read it: a text may look like anything.
    table = scan(file, name="gold.jsonl")
    if table.unreadable:
        raise TableError(f"A text of the gold set {name!r} cannot be answered. {table.problems[0]}")
    return jobs.submit(table, TEXT, model_name, shots, tasks=tasks, name=name, owner=owner)


def repeat_run(
    jobs: Jobs, run: Job, file: Path, model_name: str, shots: int | None, *, owner: str = "", tasks: Tasks | None = None
) -> str:
    """The id of a new job over the gold set of another, which is copied into ``file`` first, which may then go.

    Raises ``TableError`` if it cannot be written.
    """
    try:
        with file.open("wb") as target:
            target.writelines(jobs.store.read_source(run.source))
    except OSError as error:
        raise TableError(f"Cannot write {str(file)!r}: {error.strerror}. Make room there.") from error
    table = scan(file, name="gold.jsonl")
    return jobs.submit(table, TEXT, model_name, shots, tasks=tasks, name=run.name, owner=owner)


def write_gold(gold: Iterable[GoldRow]) -> bytes:
    """The rows as JSON Lines, the same for equal rows."""
    rows = list(gold)
    known: dict[TaskName, list[Any]] = {
        "language": [row.language for row in rows],
        "entities": [
            None if row.entities is None else [_span(entity) for entity in sorted(row.entities, key=_place)]
            for row in rows
        ],
    }
    columns = {GOLD[task]: cells for task, cells in known.items() if any(cell is not None for cell in cells)}
    lines = [
        {TEXT: row.text} | {name: cells[place] for name, cells in columns.items()} for place, row in enumerate(rows)
    ]
    return b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)


def _span(entity: Entity) -> dict[str, Any]:
    return {"start": entity.start, "end": entity.end, "type": entity.type}


def _place(entity: Entity) -> tuple[int, int]:
    return entity.start, entity.end


def is_run(job: Job) -> bool:
    """Whether the job is an evaluation."""
    return bool(tasks_of_run(job))


def tasks_of_run(job: Job) -> list[TaskName]:
    """The tasks that the job's gold set has answers to; none if it is no evaluation."""
    columns = layout_of(job).columns
    tasks = [task for task in TASKS if GOLD[task] in columns]
    return tasks if columns == (TEXT, *(GOLD[task] for task in tasks)) else []


def list_runs(jobs: Jobs, owner: str | None = None) -> list[Job]:
    """The evaluations that ``owner`` may see (``None``: all), newest first."""
    return [job for job in jobs.list(owner) if is_run(job)]


def describe_tasks(job: Job) -> str:
    """Which task files the job's answers are made with, by name, version and fingerprint."""
    return " and ".join(tasks_of(job).identities.values())


def read_answers(jobs: Jobs, job: Job, task: TaskName) -> Answers:
    """The model's own answers to the finished rows that have gold in ``task``, also where a user corrected them."""
    column = layout_of(job).columns.index(GOLD[task])
    answers = Answers(task, [], [], [], [], [], [])
    for row, record in jobs.results(job.id, corrected=False):
        gold = row.cells[column]
        if gold is None:
            continue
        text = row.cells[0]
        answers.numbers.append(row.number)
        answers.texts.append(text)
        answers.problems.append(record["error"] or "")
        answers.probabilities.append(record["language_probability"] if task == "language" else None)
        if task == "language":
            answers.gold.append(gold)
            answers.predicted.append(record["language"] or NO_ANSWER)
        else:
            answers.gold.append(tuple(Entity(text=text[one["start"] : one["end"]], **one) for one in gold))
            answers.predicted.append(tuple(Entity(**one) for one in record["entities"] or ()))
    return answers
