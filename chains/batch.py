"""Many texts in chunks: ``analyse_in_chunks`` for any caller, and ``Jobs``, which run beside the dashboard's pages.

A job is a folder ``jobs/<id>/`` with job.json, table.csv and results.jsonl. Durable jobs in a database are a later
piece of work that will replace this storage behind the same interface.
"""

import json
import logging
import os
import queue
import secrets
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from chains.errors import ChainError, TableError
from chains.schema import Analysis
from chains.tables import Table, add_records, read_table, to_record

if TYPE_CHECKING:
    from chains.registry import Model

__all__ = ["CHUNK", "JobStatus", "Jobs", "analyse_in_chunks"]

# Different texts per chunk: two of the model's batches, so a stop or a crash costs seconds of work.
CHUNK = 64
State = Literal["waiting", "running", "done", "stopped", "failed"]
LOG = logging.getLogger(__name__)


def analyse_in_chunks(
    texts: Sequence[str], model: "Model", *, shots: int | None = None, chunk: int = CHUNK
) -> Iterator[list[Analysis]]:
    """The analyses of the next rows, again and again, in row order; the caller may stop between any two.

    A chunk goes on until it holds ``chunk`` texts that no chunk held before, since equal texts are computed once.

    Raises:
        ChainError: the model cannot run at all; what fails for one text is that text's ``Analysis.error``.
    """
    from chains import analysis  # imports the model's libraries

    repeated = {text for text, times in Counter(texts).items() if times > 1}
    known: dict[str, Analysis] = {}
    start = 0
    while start < len(texts):
        fresh: dict[str, None] = {}
        end = start
        while end < len(texts) and len(fresh) < chunk:
            if texts[end] not in known:
                fresh[texts[end]] = None
            end += 1
        found = dict(zip(fresh, analysis.analyse(list(fresh), model, shots=shots) if fresh else [], strict=True))
        yield [found[text] if text in found else known[text] for text in texts[start:end]]
        known |= {text: found[text] for text in found if text in repeated}
        start = end


@dataclass(frozen=True)
class JobStatus:
    """Where a job stands. ``done`` counts finished rows and ``failed`` those of them with an error.

    ``seconds`` is the time spent on finished rows, over all runs, without loading the model. ``model`` is the name
    to load and ``version`` the loaded model's, ``""`` until then; ``shots`` is ``None`` for the model's own number.
    ``error`` says why a job failed. ``created`` is a UTC time in ISO 8601.
    """

    id: str
    name: str
    state: State
    total: int
    done: int
    failed: int
    seconds: float
    model: str
    version: str
    shots: int | None
    text_column: str
    error: str
    created: str

    @property
    def is_live(self) -> bool:
        """Whether the job waits or runs."""
        return self.state in {"waiting", "running"}

    @property
    def rows_per_second(self) -> float:
        """The mean rate so far; 0.0 before the first chunk."""
        return self.done / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """The time for the other rows at that rate; ``None`` before the first chunk, 0.0 when nothing is left."""
        if self.done == self.total:
            return 0.0
        return (self.total - self.done) / self.rows_per_second if self.rows_per_second else None


class Jobs:
    """All jobs below ``folder``, and one thread that runs them, oldest submission first.

    Make one per process and folder, outside any page script. Methods are safe from any thread and never wait for the
    model. A job that ran when an earlier process ended is ``stopped``, with all rows of its complete chunks.

    Every method that takes an ``id`` raises ``ChainError`` if there is no such job.
    """

    def __init__(self, folder: Path, load: "Callable[[str], Model]") -> None:
        self._folder = folder / "jobs"
        self._load = load
        self._lock = threading.RLock()
        self._queue: queue.Queue[str] = queue.Queue()
        self._stops: set[str] = set()
        self._worker: threading.Thread | None = None
        self._statuses = {status.id: status for status in map(_read_status, self._folder.glob("*/job.json")) if status}

    def submit(self, name: str, table: Table, text_column: str, model_name: str, shots: int | None = None) -> str:
        """The id of a new job over every row of ``table``; raises ``TableError`` if it has no such column."""
        table.texts(text_column)
        now = datetime.now(UTC)
        id_ = f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"
        status = JobStatus(
            id=id_, name=name, state="waiting", total=len(table.frame), done=0, failed=0, seconds=0.0, model=model_name,
            version="", shots=shots, text_column=text_column, error="", created=now.isoformat(timespec="microseconds"),
        )  # fmt: skip
        try:
            (self._folder / id_).mkdir(parents=True)
            # Both line ends are quoted inside cells only if both are in the line end.
            table.frame.to_csv(self._folder / id_ / "table.csv", index=False, lineterminator="\r\n", encoding="utf-8")
        except OSError as error:
            shutil.rmtree(self._folder / id_, ignore_errors=True)
            raise self._cannot_store(error) from error
        with self._lock:
            self._save(status)
            self._start(id_)
        return id_

    def list(self) -> list[JobStatus]:
        """Every job, newest first."""
        with self._lock:
            return sorted(self._statuses.values(), key=lambda status: status.created, reverse=True)

    def status(self, id: str) -> JobStatus:
        """Where the job stands now."""
        with self._lock:
            if id not in self._statuses:
                raise ChainError(f"There is no job {id!r}: it was deleted, or it belongs to another data folder.")
            return self._statuses[id]

    def stop(self, id: str) -> None:
        """Stop the job after its current chunk; a job that neither waits nor runs stays as it is."""
        with self._lock:
            status = self.status(id)
            if status.is_live:
                self._stops.add(id)
            if status.state == "waiting":
                self._save(replace(status, state="stopped"))

    def resume(self, id: str) -> None:
        """Go on with a stopped or failed job after its last finished row; any other job stays as it is."""
        with self._lock:
            status = self.status(id)
            if status.is_live:
                self._stops.discard(id)  # it may be about to stop
            elif status.state != "done":
                self._save(replace(status, state="waiting", error=""))
                self._start(id)

    def results(self, id: str) -> pd.DataFrame:
        """The rows that are done so far: every input column, then the result columns (see ``tables.add_records``)."""
        status = self.status(id)
        table = read_table(self._folder / id / "table.csv", encoding="utf-8", delimiter=",")
        records = _read_records(self._folder / id / "results.jsonl")[: status.done]
        return add_records(table.frame.iloc[: len(records)], records)

    def delete(self, id: str) -> None:
        """Forget the job and remove its files; if it runs, they go after its current chunk."""
        with self._lock:
            status = self.status(id)
            del self._statuses[id]
            if status.state == "running":
                self._stops.add(id)
                (self._folder / id / "job.json").unlink(missing_ok=True)  # should the process end before the chunk does
            else:
                shutil.rmtree(self._folder / id, ignore_errors=True)

    def _start(self, id_: str) -> None:
        self._stops.discard(id_)
        self._queue.put(id_)
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, name="bloom-lens-jobs", daemon=True)
            self._worker.start()

    def _work(self) -> None:
        while True:
            id_ = self._queue.get()
            with self._lock:
                status = self._statuses.get(id_)
                # Stopped and resumed while waiting, a job stands in the queue twice: the second time it is done.
                if status is None or status.state != "waiting":
                    continue
                self._statuses[id_] = replace(status, state="running")
            error = ""
            try:
                self._run(id_)
            except ChainError as problem:
                error = str(problem)
            except Exception as problem:  # the thread must live on for the other jobs, and the page must hear of it
                LOG.exception("Job %s failed", id_)
                error = f"An unexpected {type(problem).__name__} ended the job: {problem}. The log has the details."
            self._finish(id_, error)

    def _run(self, id_: str) -> None:
        """Append the results of the job's remaining rows, chunk by chunk, until it is stopped."""
        folder = self._folder / id_
        status = self.status(id_)
        table = read_table(folder / "table.csv", encoding="utf-8", delimiter=",")
        model = self._load(status.model)
        if status.done and status.version != model.version:
            raise ChainError(
                f"The finished rows are from {status.version}, and the model is now {model.version}: results of two "
                "models do not belong in one table. Start a new job."
            )
        records = _read_records(folder / "results.jsonl", repair=True)
        with self._lock:
            if id_ not in self._statuses:
                return
            self._save(replace(_count(self._statuses[id_], records), version=model.version))
        with (folder / "results.jsonl").open("a", encoding="utf-8") as target:
            chunks = analyse_in_chunks(table.texts(status.text_column)[len(records) :], model, shots=status.shots)
            while id_ not in self._stops:
                start = time.perf_counter()
                analyses = next(chunks, None)
                if analyses is None:
                    return
                new = [to_record(analysis) for analysis in analyses]
                target.write("".join(json.dumps(record) + "\n" for record in new))
                target.flush()
                with self._lock:
                    if id_ not in self._statuses:
                        return
                    records += new
                    seconds = self._statuses[id_].seconds + time.perf_counter() - start
                    self._save(replace(_count(self._statuses[id_], records), seconds=seconds))

    def _finish(self, id_: str, error: str) -> None:
        with self._lock:
            self._stops.discard(id_)
            status = self._statuses.get(id_)
            if status is None:
                shutil.rmtree(self._folder / id_, ignore_errors=True)
                return
            state: State = "failed" if error else "done" if status.done == status.total else "stopped"
            try:
                self._save(replace(status, state=state, error=error))
            except ChainError:  # on disk it stays running, which the next process reads as stopped
                LOG.exception("Cannot store the state of job %s", id_)

    def _save(self, status: JobStatus) -> None:
        """Keep the status, in memory and on disk: written aside and renamed, so that job.json is always whole."""
        self._statuses[status.id] = status
        file = self._folder / status.id / "job.json"
        aside = file.with_suffix(".tmp")
        try:
            aside.write_text(json.dumps(asdict(status), indent=1), encoding="utf-8")
            os.replace(aside, file)
        except OSError as error:
            raise self._cannot_store(error) from error

    def _cannot_store(self, error: OSError) -> ChainError:
        return ChainError(
            f"Cannot store the job in {str(self._folder)!r}: {error.strerror}. "
            "Free some space, or set BLOOM_LENS_DATA to a folder that can be written."
        )


def _read_status(file: Path) -> JobStatus | None:
    """The job of an earlier process; one that was waiting or running then is stopped now."""
    try:
        status = JobStatus(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        LOG.warning("Skipped %s, which is no job of this version: %s", file, error)
        return None
    if not status.is_live:
        return status
    try:
        return _count(replace(status, state="stopped"), _read_records(file.parent / "results.jsonl"))
    except TableError as error:
        return replace(status, state="failed", error=str(error))


def _count(status: JobStatus, records: Sequence[dict[str, Any]]) -> JobStatus:
    return replace(status, done=len(records), failed=sum(bool(record["error"]) for record in records))


def _read_records(file: Path, *, repair: bool = False) -> list[dict[str, Any]]:
    """The records of every complete line; a half-written last line is left out, and with ``repair`` cut off."""
    content = file.read_bytes() if file.exists() else b""
    complete = content[: content.rfind(b"\n") + 1]
    if repair and len(complete) < len(content):
        os.truncate(file, len(complete))
    try:
        return [json.loads(line) for line in complete.splitlines()]
    except ValueError as error:
        raise TableError(f"{str(file)!r} is damaged: {error}. Delete the job and start it again.") from error
