"""Jobs over files: planned chunk by chunk, computed outside any page, stored so that no end of a process loses a row.

A chunk is planned from the file and from what the store knows, so an interrupted job goes on with the very chunks that
it would have had, and its results are the same to the last digit. ``Jobs`` runs all that wait, in turns; ``Jobs.run``
does one of them in the foreground, by this process's model or by another engine (``chains.cluster``).
"""

import hashlib
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from pydantic import ValidationError

from chains.corrections import check_correction
from chains.errors import ChainError, CorrectionError, MissingError, StoreError, TableError, TaskError
from chains.exports import correct_record, to_record, write_gold, write_results
from chains.files import written_whole
from chains.prompts import Tasks
from chains.queue import Caller, asking
from chains.schema import Analysis, Correction, Gold
from chains.store import LIVE, Job, Store
from chains.tables import Layout, Row, Table, read_rows, text_of

if TYPE_CHECKING:
    from chains.registry import Model

__all__ = ["CHUNK", "Chunk", "Engine", "Jobs", "ModelEngine", "Work", "answer_base", "plan_chunks", "tasks_of"]

# New texts per chunk: two of the model's batches, so a stop or a crash costs seconds of work.
CHUNK = 64
CHUNK_ROWS = 1024  # rows that a chunk may hold, new and known
TURN_S = 2.0  # how long a job runs before another has its turn
BEAT_S = 5.0
STALE_S = 60.0  # without a heartbeat so long a process elsewhere is taken for dead
IDLE_S = 1.0
MAX_PAUSE_S = 30.0  # between two tries to reach the database
MAX_CRASHES = 3
ANSWER_FORMAT = 1  # of the stored records; a change makes all answers new
LOG = logging.getLogger(__name__)

Record = dict[str, Any]


@dataclass(frozen=True)
class Chunk:
    """The rows after ``start`` up to ``end``; or, of those, the failed ones that are tried again, ``retried``.

    ``hashes`` are those of each readable row's text, by row number, ``errors`` why the others cannot be read, and
    ``texts`` the new texts by hash, in order.
    """

    start: int
    end: int
    hashes: dict[int, bytes] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    texts: dict[bytes, str] = field(default_factory=dict)
    retried: tuple[int, ...] = ()


@dataclass(frozen=True)
class Work:
    """What is left of a job: the ``rows`` of ``file`` after row ``start``, with the texts in ``column``.

    ``known`` tells which of some texts' hashes have an answer in the store.
    """

    file: Path
    layout: Layout
    column: int
    start: int
    shots: int
    tasks: Tasks
    rows: Iterable[Row]
    known: Callable[[Sequence[bytes]], set[bytes]]


class Engine(Protocol):
    """What computes a job. ``version`` names the model beside every result; ``shots`` is its own number of them."""

    version: str
    shots: int

    def steps(self, work: Work) -> Iterator[tuple[Chunk, list[Record]]]:
        """Every chunk of ``work`` in order, with the records of its texts; each is stored before the next is asked."""


class ModelEngine:
    """A loaded model in this process."""

    def __init__(self, model: "Model") -> None:
        self.model = model
        self.version = model.version
        self.shots = model.info.shots

    def steps(self, work: Work) -> Iterator[tuple[Chunk, list[Record]]]:
        """See ``Engine``."""
        for chunk in plan_chunks(work.rows, work.column, work.start, work.known):
            yield chunk, self.compute(chunk, work.shots, work.tasks)

    def compute(self, chunk: Chunk, shots: int, tasks: Tasks) -> list[Record]:
        """The records of the chunk's texts, in order."""
        from chains import analysis  # imports the model's libraries

        texts = list(chunk.texts.values())
        if not texts:
            return []
        with asking(Caller("batch")):
            return [to_record(one) for one in analysis.analyse(texts, self.model, shots=shots, tasks=tasks)]


def text_hash(text: str) -> bytes:
    """16 bytes that stand for a text."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def answer_key(base: str, hash: bytes) -> bytes:
    """16 bytes that stand for a text and all else that its answer depends on (``answer_base``)."""
    return hashlib.blake2b(bytes.fromhex(base) + hash, digest_size=16).digest()


def answer_base(version: str, shots: int, tasks: Tasks) -> str:
    """What an answer depends on besides its text, as 64 hexadecimal digits: model, shots and all of the task files."""
    files = [tasks.language.model_dump(mode="json"), tasks.entities.model_dump(mode="json")]
    return hashlib.sha256(json.dumps([ANSWER_FORMAT, version, shots, files]).encode()).hexdigest()


def plan_chunks(
    rows: Iterable[Row], column: int, start: int, known: Callable[[Sequence[bytes]], set[bytes]]
) -> Iterator[Chunk]:
    """The chunks of all ``rows``, which follow row ``start``; each ends with its ``CHUNK``-th new text.

    ``known`` is asked anew for every chunk: what was new in one is known in the next.
    """
    rows = iter(rows)
    ahead: list[tuple[int, bytes, str, str]] = []
    while True:
        for row in islice(rows, CHUNK_ROWS - len(ahead)):
            text, error = text_of(row, column)
            ahead.append((row.number, b"" if error else text_hash(text), text, error))
        if not ahead:
            return
        answered = known(list({hash: None for _, hash, _, error in ahead if not error}))
        chunk = Chunk(start, start)
        for number, hash, text, error in ahead:
            start = number
            if error:
                chunk.errors[number] = error
                continue
            chunk.hashes[number] = hash
            if hash not in answered:
                chunk.texts.setdefault(hash, text)
                if len(chunk.texts) == CHUNK:
                    break
        del ahead[: len(chunk.hashes) + len(chunk.errors)]
        yield replace(chunk, end=start)


Computed = tuple[Chunk, list[Record], float]


@dataclass
class Running:
    """A job that this process works on: what its answers depend on, and its chunks with the records of their texts.

    ``errors`` are those of texts that failed, by hash; ``pending`` is a chunk that is computed and not stored yet, with
    its records and seconds.
    """

    base: str
    version: str
    steps: Iterator[tuple[Chunk, list[Record]]]
    errors: dict[bytes, str] = field(default_factory=dict)
    pending: Computed | None = None


class Jobs:
    """All jobs of ``store``; their files are copied from it into ``folder`` to be read.

    An owner may have ``max_jobs`` that wait or run, of ``max_rows`` each; 0 is any number.

    Methods are safe from any thread and never wait for the model, but for ``run``. Every method that takes an ``id``
    raises ``ChainError`` if there is no such job, and any of them ``StoreError`` if the database fails.
    """

    def __init__(
        self, store: Store, folder: Path, load: "Callable[[str], Model]", *, max_jobs: int = 0, max_rows: int = 0
    ) -> None:
        self.store = store
        self.max_jobs = max_jobs
        self.max_rows = max_rows
        self.problem = ""  # why nothing can be stored at the moment
        self._folder = folder / "sources"
        self._load = load
        self._me = f"{this_process()} {secrets.token_hex(4)}"
        self._running: dict[str, Running] = {}
        # Of the row that was corrected last, job and number: reading to row 100,000 takes 2 seconds.
        self._last_text = ("", 0, "")
        self._wake, self._end = threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []

    # What a user does

    def submit(
        self, table: Table, text_column: str, model_name: str, shots: int | None = None, *,
        tasks: Tasks | None = None, name: str = "", owner: str = "", copy: bool = True,
    ) -> str:  # fmt: skip
        """The id of a new job over every row of ``table``.

        ``tasks`` (by default the shipped ones) are kept with it, so a later edit of a task file changes nothing in it.
        With ``copy`` the file's bytes go into the database; else the file must stay where it is.

        Raises:
            TableError: it has no such column, or too many rows.
            QuotaError: its owner has too many jobs.
        """
        table.column(text_column)
        if self.max_rows and table.total > self.max_rows:
            raise TableError(
                f"{table.name!r} has {table.total:,} rows: expected at most {self.max_rows:,} here. Cut it into parts."
            )
        now = datetime.now(UTC)
        job = Job(
            id=f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(4)}",
            name=name or table.name,
            owner=owner,
            source=table.sha256,
            path="" if copy else str(table.path.resolve()),
            layout=json.dumps(asdict(table.layout)),
            text_column=text_column,
            model=model_name,
            shots=shots,
            tasks=(tasks or Tasks()).model_dump_json(),
            total=table.total,
            created=now.isoformat(timespec="microseconds"),
        )
        self.store.add_job(job, table.path if copy else None, self.max_jobs)
        self._wake.set()
        return job.id

    def find(
        self, table: Table, text_column: str, model_name: str, shots: int | None, tasks: Tasks, base: str
    ) -> Job | None:
        """The newest job that does the same with the same file by answers of that ``base``, if there is one."""
        wanted = {"source": table.sha256, "layout": json.dumps(asdict(table.layout)), "text_column": text_column}
        found = self.store.list_jobs(**wanted, path=str(table.path.resolve()), model=model_name, shots=shots)
        return next((job for job in found if job.base == base or (not job.base and tasks_of(job) == tasks)), None)

    def list(self, owner: str | None = None) -> "list[Job]":
        """The jobs of ``owner`` (``None``: of all), newest first."""
        return self.store.list_jobs(owner=owner)

    def status(self, id: str, owner: str | None = None) -> Job:
        """Where the job stands now; one that is not ``owner``'s (``None``: anybody's) does not exist."""
        job = self.store.get_job(id)
        if job is None or (owner is not None and job.owner != owner):
            raise MissingError(f"There is no job {id!r}: it was deleted, or it belongs to another database.")
        return job

    def stop(self, id: str) -> None:
        """Stop the job after its current chunk; a job that neither waits nor runs stays as it is."""
        self.status(id)
        self.store.change_job(id, expected={"state": LIVE}, state="stopped")

    def resume(self, id: str) -> None:
        """Go on with a stopped or failed job after its last finished row; any other job stays as it is."""
        self.status(id)
        self.store.change_job(id, expected={"state": ("stopped", "failed")}, state="waiting", error="", crashes=0)
        self._wake.set()

    def retry(self, id: str) -> None:
        """Try the failed rows of a finished job again; any other job stays as it is."""
        if self.status(id).failed:
            self.store.change_job(id, expected={"state": ("done",)}, state="waiting", retried=0)
            self._wake.set()

    def rename(self, id: str, name: str) -> None:
        """Give the job another name."""
        self.status(id)
        self.store.change_job(id, name=name.strip() or "Untitled")

    def delete(self, id: str) -> None:
        """Remove the job, its copy of the file, and the answers that no other job uses; a running chunk is lost."""
        job = self.status(id)
        self.store.delete_job(id)
        if not self.store.has_source(job.source):
            (self._folder / job.source).unlink(missing_ok=True)

    def results(
        self, id: str, start: int = 0, end: int | None = None, *, corrected: bool = True
    ) -> Iterator[tuple[Row, Record]]:
        """The finished rows after row ``start`` up to ``end`` (``None``: the last), each with its record.

        Those that were corrected have the correction; without ``corrected``, all have the model's own answer.
        """
        job = self.status(id)
        corrections = self.corrections(id) if corrected else {}
        for row, record in self._answers(job, start, end):
            correction = corrections.get(row.number)
            yield row, correct_record(record, correction) if correction else record

    def _answers(self, job: Job, start: int, end: int | None) -> Iterator[tuple[Row, Record]]:
        """The finished rows with the model's own answers."""
        layout = layout_of(job)
        column = layout.columns.index(job.text_column)
        end = job.done if end is None else min(end, job.done)
        if start >= end:
            return
        rows = islice(read_rows(self._file(job), layout, start), end - start)
        while block := list(islice(rows, CHUNK_ROWS)):
            failures = self.store.failures(job.id, after=block[0].number - 1, before=block[-1].number)
            keys = {
                row.number: answer_key(job.base, text_hash(text_of(row, column)[0]))
                for row in block
                if row.number not in failures
            }
            records = self.store.records(list(dict.fromkeys(keys.values())))
            for row in block:
                if row.number in failures:
                    yield row, to_record(Analysis(text="", error=failures[row.number]))
                elif (record := records.get(keys[row.number])) is not None:
                    yield row, {"corrected": False} | record  # which those of older versions do not say
                else:
                    raise StoreError(f"The answer to row {row.number} of job {job.id!r} is gone: was the job deleted?")

    def export(
        self, id: str, target: BinaryIO, *, format: str = "csv", shape: str = "wide", neutralise: bool = True
    ) -> int:
        """Write the rows that are done, as ``exports.write_results`` does; returns the number of lines written."""
        layout = layout_of(self.status(id))
        return write_results(target, layout, self.results(id), format=format, shape=shape, neutralise=neutralise)

    # What a user corrects

    def correct(self, id: str, row: int, correction: Correction, owner: str | None = None) -> None:
        """Put ``correction`` beside the model's answer to a finished row, where it holds until it is undone.

        Raises:
            CorrectionError: there is no such row, or no text in it, or the correction does not fit the text.
        """
        job = self.status(id, owner)
        checked = check_correction(self._text(job, row), correction, tasks_of(job))
        if not self.store.add_correction(id, row, checked.model_dump()):
            self.status(id)  # which says that the job is gone

    def undo(self, id: str, row: int, owner: str | None = None) -> None:
        """Take the last correction of a row back; a row without one stays as it is."""
        self.status(id, owner)
        self.store.undo_correction(id, row)

    def corrections(self, id: str, owner: str | None = None) -> dict[int, Correction]:
        """The corrections that hold, by row number, in order."""
        self.status(id, owner)
        return {row: Correction.model_validate(found) for row, found in self.store.corrections(id).items()}

    def gold(self, id: str, owner: str | None = None) -> Iterator[Gold]:
        """The corrected rows in order, each with its text and right answer."""
        job = self.status(id, owner)
        corrections = self.corrections(id)
        layout = layout_of(job)
        column = layout.columns.index(job.text_column)
        for row in read_rows(self._file(job), layout) if corrections else ():
            if correction := corrections.pop(row.number, None):
                yield Gold(text=text_of(row, column)[0], language=correction.language, entities=correction.entities)
            if not corrections:
                return

    def export_gold(self, id: str, target: BinaryIO, *, format: str = "jsonl", neutralise: bool = True) -> int:
        """Write the corrected rows, as ``exports.write_gold`` does; returns their number."""
        return write_gold(target, self.gold(id), format=format, neutralise=neutralise)

    def _text(self, job: Job, number: int) -> str:
        """The text of a finished row; raises ``CorrectionError`` if there is none."""
        if not 1 <= number <= job.done:
            raise CorrectionError(f"There is no finished row {number:,}: expected one from 1 to {job.done:,}.")
        id, row, text = self._last_text
        if (id, row) != (job.id, number):
            layout = layout_of(job)
            found = next(read_rows(self._file(job), layout, number - 1))
            text, error = text_of(found, layout.columns.index(job.text_column))
            if error:
                raise CorrectionError(f"Row {number:,} has no text that could be answered. {error}")
            self._last_text = job.id, number, text
        return text

    # What runs the jobs

    def start(self) -> None:
        """Run waiting jobs from now on, and those of processes that died, on threads of their own."""
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._work, name="bloom-lens-jobs", daemon=True),
                threading.Thread(target=self._beat, args=(self._end,), name="bloom-lens-heartbeat", daemon=True),
            ]
            for thread in self._threads:
                thread.start()

    def close(self) -> None:
        """End after the current chunk; what runs goes on in the next process that is started."""
        self._end.set()
        self._wake.set()
        for thread in self._threads:
            thread.join()
        for job in self.store.list_jobs(worker=self._me):
            self.store.change_job(job.id, expected={"worker": self._me}, worker="")

    def run(self, id: str, *, engine: Engine | None = None, on_progress: Callable[[Job], None] | None = None) -> Job:
        """Run one job in the foreground until it is done; the job as it then is.

        ``engine`` is by default the job's model in this process. If another process runs the job already, this one
        waits for that.

        Raises:
            ChainError: the job failed, or was stopped elsewhere.
            KeyboardInterrupt: the user's; the job is then stopped, with the rows of all its finished chunks.
        """
        self.resume(id)
        end = threading.Event()
        threading.Thread(target=self._beat, args=(end,), name="bloom-lens-heartbeat", daemon=True).start()
        pause = IDLE_S
        try:
            while True:
                try:
                    job = self.status(id)
                    if not job.is_live:
                        break
                    if claimed := self._claim(id):
                        self._advance(claimed, engine)
                    else:
                        time.sleep(IDLE_S)
                    if on_progress:
                        on_progress(self.status(id))
                    pause = IDLE_S
                except StoreError as problem:
                    if pause > MAX_PAUSE_S:
                        raise
                    LOG.warning("%s Trying again in %.0f s.", problem, pause)
                    time.sleep(pause)
                    pause *= 2
        except KeyboardInterrupt:
            self.store.change_job(id, expected={"worker": self._me, "state": LIVE}, state="stopped", worker="")
            raise
        finally:
            end.set()
            self._running.pop(id, None)
        if job.state != "done":
            raise ChainError(job.error or "The job was stopped from elsewhere.")
        return job

    def _work(self) -> None:
        """Give every live job its turn, until the end; a database that fails is asked again, ever more seldom."""
        pause = IDLE_S
        while not self._end.is_set():
            try:
                job, until = self._claim(), time.monotonic() + TURN_S
                if job is None:
                    self._wake.wait(IDLE_S)
                    self._wake.clear()
                while job and not self._end.is_set():
                    self._advance(job)
                    job = self._claim(job.id) if time.monotonic() < until else None
                self.problem, pause = "", IDLE_S
            except StoreError as problem:
                self.problem = str(problem)
                LOG.warning("%s Trying again in %.0f s.", problem, pause)
                self._end.wait(pause)
                pause = min(2 * pause, MAX_PAUSE_S)

    def _beat(self, end: threading.Event) -> None:
        while not end.wait(BEAT_S):
            try:
                self.store.beat(self._me, time.time())
            except StoreError as problem:
                LOG.warning("%s", problem)

    def _claim(self, id: str | None = None) -> Job | None:
        """The live job that has waited longest for a turn (or the one of that ``id``), now this process's; or none."""
        now = time.time()
        live = self.store.list_jobs(states=LIVE, **({"id": id} if id else {}))
        for job in sorted(live, key=lambda job: job.served):
            is_orphan = job.worker not in ("", self._me)
            if is_orphan and is_alive(job, now):
                continue
            if is_orphan and not id and job.crashes >= MAX_CRASHES:
                times = f"The program ended {MAX_CRASHES} times at work on the rows after {job.done:,}"
                self._fail(job, f"{times}, perhaps for lack of memory. Choose a smaller model, or resume to try again.")
                continue
            if job.worker != self._me:
                self._running.pop(job.id, None)
            changed: dict[str, Any] = {"worker": self._me, "heartbeat": now, "served": now, "state": "running"}
            changed["crashes"] = job.crashes + is_orphan
            if self.store.change_job(job.id, expected={"worker": job.worker, "state": LIVE}, **changed):
                return replace(job, **changed)
        return None

    def _advance(self, job: Job, engine: Engine | None = None) -> None:
        """Compute and store the job's next chunk; what goes wrong in it fails the job.

        A chunk that cannot be stored is kept, and the next call stores it.
        """
        try:
            running = self._running.get(job.id)
            if running is None:
                running = self._running[job.id] = self._open(job, engine)
            if running.pending is None:
                running.pending = self._compute(job, running)
            place = job.done if job.retried is None else job.retried
            if running.pending[0].start != place or not self._commit(job, running, *running.pending):
                self._running.pop(job.id, None)  # it went on elsewhere, or must be planned anew
            running.pending = None
        except StoreError:
            raise
        except ChainError as problem:
            self._fail(job, str(problem))
        except Exception as problem:  # the thread must live on for the other jobs, and the page must hear of it
            if is_ending():
                self._end.set()  # the next process goes on with the job
                return
            LOG.exception("Job %s failed", job.id)
            words = f"An unexpected {type(problem).__name__} ended the job: {problem}. The log has the details."
            self._fail(job, words)

    def _open(self, job: Job, engine: Engine | None) -> Running:
        """What is left of the job, ready to be computed."""
        layout, file, tasks = layout_of(job), self._file(job), tasks_of(job)
        if engine is None or job.retried is not None:
            engine = ModelEngine(self._load(job.model))
        shots = engine.shots if job.shots is None else job.shots
        base = answer_base(engine.version, shots, tasks)
        if job.base not in ("", base):
            raise ChainError(
                f"The finished rows are from {job.version}, and now the model is {engine.version} or its task files "
                "are others: results of two kinds do not belong in one table. Start a new job."
            )

        def known(hashes: Sequence[bytes]) -> set[bytes]:
            keys = {answer_key(base, hash): hash for hash in hashes}
            return {keys[key] for key in self.store.known(list(keys))}

        start = job.done if job.retried is None else job.retried
        rows = read_rows(file, layout, start)
        if job.retried is not None:
            rows = self._failed(job.id, start, rows)
        work = Work(file, layout, layout.columns.index(job.text_column), start, shots, tasks, rows, known)
        return Running(base, engine.version, engine.steps(work))

    def _failed(self, id: str, start: int, rows: Iterator[Row]) -> Iterator[Row]:
        """Those of ``rows``, which follow row ``start``, that failed."""
        while failures := self.store.failures(id, after=start, limit=CHUNK_ROWS):
            start = max(failures)
            for row in rows:
                if row.number in failures:
                    yield row
                if row.number == start:
                    break

    def _compute(self, job: Job, running: Running) -> Computed:
        """The job's next chunk with its records, and the seconds that it took."""
        started = time.perf_counter()
        try:
            place = job.done if job.retried is None else job.retried
            chunk, records = next(running.steps, (Chunk(place, place), []))
        except StoreError:
            del self._running[job.id]  # its generator ended with the error
            raise
        if chunk.end == chunk.start and job.retried is None:
            raise TableError(f"The file of {job.name!r} ended after {job.done:,} of {job.total:,} rows.")
        return chunk, records, time.perf_counter() - started

    def _commit(self, job: Job, running: Running, chunk: Chunk, records: Sequence[Record], seconds: float) -> bool:
        """Store a computed chunk; whether this process still had the job."""
        new = dict(zip(chunk.texts, records, strict=True))
        for hash, record in new.items():
            running.errors.pop(hash, None)
            if record["error"]:
                running.errors[hash] = record["error"]
        failures = chunk.errors | {
            row: running.errors[hash] for row, hash in chunk.hashes.items() if hash in running.errors
        }
        progress: dict[str, Any] = {"version": running.version, "base": running.base, "crashes": 0}
        progress["seconds"] = job.seconds + seconds
        mended = tuple(chunk.hashes | chunk.errors) if job.retried is not None else ()
        if job.retried is None:
            progress["done"] = chunk.end
            is_done = chunk.end == job.total
        else:
            is_done = not mended
            progress["retried"] = None if is_done else chunk.end
        if is_done:
            progress |= {"state": "done", "worker": ""}
            self._running.pop(job.id, None)
        return self.store.commit(
            job,
            self._me,
            keys=[answer_key(running.base, hash) for row, hash in chunk.hashes.items() if row not in failures],
            answers={answer_key(running.base, hash): record for hash, record in new.items() if not record["error"]},
            failures=failures,
            mended=mended,
            progress=progress,
        )

    def _fail(self, job: Job, error: str) -> None:
        self._running.pop(job.id, None)
        self.store.change_job(job.id, expected={"worker": job.worker}, state="failed", error=error, worker="")

    def _file(self, job: Job) -> Path:
        """Where the job's file lies on this machine; one that only the database has is written there first.

        Raises:
            TableError: the file is gone, or is not the one that the job began with.
        """
        file = Path(job.path) if job.path else self._folder / job.source
        try:
            if job.path:
                with file.open("rb") as content:
                    if hashlib.file_digest(content, "sha256").hexdigest() != job.source:
                        raise TableError(
                            f"{job.path!r} is no longer the file that the job began with. Start a new job."
                        )
            elif not file.exists():
                self._folder.mkdir(parents=True, exist_ok=True)
                with written_whole(file) as target:
                    target.writelines(self.store.read_source(job.source))
        except OSError as error:
            raise TableError(
                f"Cannot read {str(file)!r}: {error.strerror}. The job's rows are read from there."
            ) from error
        return file


def layout_of(job: Job) -> Layout:
    """How the job's file is to be read."""
    return Layout(**json.loads(job.layout))


def tasks_of(job: Job) -> Tasks:
    """The task files that ask the job's texts.

    Raises:
        TaskError: they were stored by a version of Bloom Lens that had other rules.
    """
    try:
        return Tasks.model_validate_json(job.tasks) if job.tasks else Tasks()
    except ValidationError as error:
        raise TaskError(
            f"The task files of job {job.id!r} break the rules of this version of Bloom Lens: "
            f"{error.errors()[0]['msg']}. Start a new job."
        ) from error


def is_ending() -> bool:
    """Whether this process is about to end: then no pool of threads takes work any more, LangChain's neither."""
    with ThreadPoolExecutor(1) as pool:
        try:
            pool.submit(int)
        except RuntimeError:
            return True
    return False


def this_process() -> str:
    """A word for the system that this process runs on and numbers processes on, and words for the process."""
    system = Path("/proc/sys/kernel/random/boot_id")
    if not system.exists():
        return f"- {os.getpid()} -"
    return f"{system.read_text().strip()}/{os.readlink('/proc/self/ns/pid')} {os.getpid()} {started(os.getpid())}"


def started(process: int) -> str:
    """When a process of this system began, in clock ticks since the system did; ``""`` if it is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def is_alive(job: Job, now: float) -> bool:
    """Whether the process that runs the job still lives: on this system that is known, else by its heartbeat."""
    system, process, since, _ = job.worker.split(" ")
    if system != "-" and system == this_process().split(" ")[0]:
        return started(int(process)) == since
    return now - job.heartbeat < STALE_S
