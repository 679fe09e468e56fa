"""Errors that a user is meant to read.

ChainError              anything below; edges (pages, command line) catch only this
├── TaskError           a task file breaks its rules
├── ModelError          a model cannot be found, loaded or run
├── ReplyError          a reply could not be read; keeps the reply
├── BusyError           a model has no time for one more caller
│   └── QuotaError      a caller has as much as one may have
├── MissingError        there is no such job
├── TableError          a table of texts or a gold set cannot be read
├── CorrectionError     an answer given by hand does not fit its text
└── StoreError          the database of jobs, or a file beside it, cannot be reached or written

Every message says what happened, what was expected and what to do.
"""

from collections.abc import Mapping

__all__ = [
    "BusyError",
    "ChainError",
    "CorrectionError",
    "MissingError",
    "ModelError",
    "QuotaError",
    "ReplyError",
    "StoreError",
    "TableError",
    "TaskError",
]


class ChainError(Exception):
    """Base of every error that is shown to the user as it is."""


class TaskError(ChainError):
    """A task file breaks its rules; the message names the file and the key, ``problems`` what is wrong by key."""

    def __init__(self, message: str, problems: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.problems = dict(problems or {})


class ModelError(ChainError):
    """A model cannot be found, loaded or run."""


class ReplyError(ChainError):
    """A reply that could not be read; ``reply`` is the model's raw text."""

    def __init__(self, message: str, reply: str) -> None:
        super().__init__(message)
        self.reply = reply


class BusyError(ChainError):
    """A model has no time for one more caller; after about ``retry_after_s`` seconds it may have."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QuotaError(BusyError):
    """A caller has as many jobs as one may have at once; when one of them is done, there is room for another."""


class MissingError(ChainError):
    """There is no such job, or not for whoever asks."""


class TableError(ChainError):
    """A table of texts or a gold set cannot be read; the message names the row or column."""


class CorrectionError(ChainError):
    """An answer given by hand does not fit its text, or cannot be put into another form."""


class StoreError(ChainError):
    """The database of jobs, or a file beside it, cannot be reached or written; nothing was changed in it."""
