"""Saved versions of task files: each is written once, with a number of its own, and never changed.

They belong to everybody who uses this data folder, as jobs do. Which of them answers is each caller's choice, so nobody
changes another's answers by saving one.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from chains.errors import TaskError
from chains.prompts import MAX_FILE_BYTES, Kind, Task, load_task, write_task

__all__ = ["SHIPPED", "Saved", "Versions"]

SHIPPED = 0  # the number that stands for the shipped task
MAX_VERSIONS = 1_000  # of a kind


@dataclass(frozen=True)
class Saved:
    """A saved version: its number, the time in ISO 8601, and its file."""

    number: int
    created: str
    file: Path


class Versions:
    """The versions in ``folder`` (``language-2.yaml``); safe for any number of threads and processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def list(self, kind: Kind) -> list[Saved]:
        """The versions of a kind, newest first."""
        found = []
        for file in self.folder.glob(f"{kind}-*.yaml"):
            if match := re.fullmatch(rf"{kind}-([1-9][0-9]{{0,5}})\.yaml", file.name):
                created = datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat(timespec="seconds")
                found.append(Saved(int(match[1]), created, file))
        return sorted(found, key=lambda saved: -saved.number)

    def load(self, kind: Kind, number: int) -> Task:
        """The task of a version, or the shipped one for ``SHIPPED``.

        Raises:
            TaskError: there is no such version, or its file was changed by hand into what is no task.
        """
        if number == SHIPPED:
            return load_task(kind)
        file = self._file(kind, number)
        if not file.exists():
            raise TaskError(
                f"There is no version {number} of the task '{kind}' in {str(self.folder)!r}. Choose one that is listed."
            )
        task = load_task(file)
        if task.kind != kind:
            raise TaskError(f"The task file '{file}' is of kind {task.kind!r}, and its name says {kind!r}. Remove it.")
        return task

    def save(self, task: Task) -> Task:
        """The task with the next free version number, as it then stands in a new file.

        Raises:
            TaskError: it cannot be written.
        """
        numbers = [saved.number for saved in self.list(task.kind)]
        if len(numbers) >= MAX_VERSIONS:
            raise TaskError(
                f"There are {MAX_VERSIONS:,} versions in {str(self.folder)!r} already. Remove some of them."
            )
        number = 1 + max([load_task(task.kind).version, *numbers])
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            while not self._write(new := task.model_copy(update={"version": number})):
                number += 1  # somebody was faster
            return new
        except OSError as error:
            raise TaskError(
                f"Cannot write a file in {str(self.folder)!r}: {error.strerror}. Make room there, or let "
                "BLOOM_LENS_DATA name another folder."
            ) from error

    def _write(self, task: Task) -> bool:
        """Write the task's file; whether there was none of that version before."""
        content, file = write_task(task).encode(), self._file(task.kind, task.version)
        if len(content) > MAX_FILE_BYTES:
            raise TaskError(
                f"The task file is larger than {MAX_FILE_BYTES // 1024} KB. Shorten its texts, or leave some out."
            )
        try:
            with file.open("xb") as target:
                target.write(content)
        except FileExistsError:
            return False
        except OSError:
            file.unlink(missing_ok=True)
            raise
        return True

    def _file(self, kind: Kind, number: int) -> Path:
        return self.folder / f"{kind}-{number}.yaml"
