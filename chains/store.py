"""Jobs, their files and their answers in a database through SQLAlchemy: SQLite by default, PostgreSQL by URL.

An answer belongs to a text, not to a row: its key is a hash of the text and of all that shapes the answer, so an equal
text is never computed twice, in one job or in several. A job keeps how many of its file's rows are done and which of
them failed; a row's result is the answer to its text. ``uses`` says which jobs need an answer; one that none needs any
more goes with the last of them. ``corrections`` are what people answered in the model's place: they belong to a job's
row, stand beside the model's answer, and each keeps the ones before it, so that it can be undone.

Every change of a job is one transaction: a chunk is there as a whole or not at all, whenever a process ends.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError

from chains.errors import QuotaError, StoreError

__all__ = ["LIVE", "Job", "State", "Store"]

State = Literal["waiting", "running", "done", "stopped", "failed"]
LIVE = ("waiting", "running")
PIECE_BYTES = 1_000_000
BUSY_S = 30  # how long a writer of SQLite waits for another
DELETE_TRIES = 3
FULL_RETRY_S = 60.0  # after which an owner with too many jobs may ask again
MIGRATION_LOCK = 0x426C6F6F6D  # any number, the same for all processes

METADATA = sa.MetaData()
MIGRATED = sa.Table("migrations", METADATA, sa.Column("number", sa.Integer, primary_key=True))
JOBS = sa.Table(
    "jobs",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False, index=True),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("layout", sa.Text, nullable=False),
    sa.Column("text_column", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("shots", sa.Integer),
    sa.Column("tasks", sa.Text, nullable=False, server_default=""),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("base", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False, index=True),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("total", sa.Integer, nullable=False),
    sa.Column("done", sa.Integer, nullable=False),
    sa.Column("failed", sa.Integer, nullable=False),
    sa.Column("retried", sa.Integer),
    sa.Column("crashes", sa.Integer, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("created", sa.Text, nullable=False),
    sa.Column("worker", sa.Text, nullable=False),
    sa.Column("heartbeat", sa.Float, nullable=False),
    sa.Column("served", sa.Float, nullable=False),
)
PIECES = sa.Table(
    "pieces",
    METADATA,
    sa.Column("source", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("content", sa.LargeBinary, nullable=False),
)
ANSWERS = sa.Table(
    "answers",
    METADATA,
    sa.Column("key", sa.LargeBinary, primary_key=True),
    sa.Column("record", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)
USES = sa.Table(
    "uses",
    METADATA,
    sa.Column("key", sa.LargeBinary, sa.ForeignKey("answers.key"), primary_key=True),
    sa.Column("job", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True, index=True),
    sqlite_with_rowid=False,
)
FAILURES = sa.Table(
    "failures",
    METADATA,
    sa.Column("job", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("row", sa.Integer, primary_key=True),
    sa.Column("error", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)

CORRECTIONS = sa.Table(
    "corrections",
    METADATA,
    sa.Column("job", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("row", sa.Integer, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),  # the row's last one holds
    sa.Column("correction", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)


def _create(connection: sa.Connection) -> None:
    METADATA.create_all(connection, [JOBS, PIECES, ANSWERS, USES, FAILURES])


def _add_corrections(connection: sa.Connection) -> None:
    METADATA.create_all(connection, [CORRECTIONS])


def _add_tasks(connection: sa.Connection) -> None:
    # A new database has the column already: the first migration makes the tables as they are now.
    if "tasks" not in {column["name"] for column in sa.inspect(connection).get_columns("jobs")}:
        connection.execute(sa.text("ALTER TABLE jobs ADD COLUMN tasks TEXT NOT NULL DEFAULT ''"))


# In order; a database remembers how many it has seen. A change of the tables above is a new one at the end.
MIGRATIONS: list[Callable[[sa.Connection], None]] = [_create, _add_corrections, _add_tasks]


@dataclass(frozen=True)
class Job:
    """A job as it is stored.

    ``source`` is the SHA-256 of its file, which lies at ``path`` or, if that is ``""``, in the database. ``layout``
    is a ``tables.Layout`` as JSON. ``model`` is the name to load, ``tasks`` are the ``prompts.Tasks`` that ask, as
    JSON (``""``, of a job from before there was a choice, are the shipped ones). ``version`` is the loaded model's
    and ``base`` the part of all answers' keys that is not the text, both ``""`` until it ran. ``done`` counts
    finished rows, ``failed`` those of them with an error. While failed rows are tried again, ``retried`` is the
    last one that was, else ``None``. ``crashes`` counts processes that died with the job since its last chunk.
    ``seconds`` were spent on finished rows. ``worker`` is the process that runs it, alive at ``heartbeat``, and at
    work on it at ``served`` (both in seconds since 1970). ``created`` is a UTC time in ISO 8601. ``owner`` alone may
    see it; ``""`` is whoever uses a deployment that is not shared.
    """

    id: str
    name: str
    source: str
    path: str
    layout: str
    text_column: str
    model: str
    shots: int | None
    total: int
    created: str
    owner: str = ""
    tasks: str = ""
    version: str = ""
    base: str = ""
    state: State = "waiting"
    error: str = ""
    done: int = 0
    failed: int = 0
    retried: int | None = None
    crashes: int = 0
    seconds: float = 0.0
    worker: str = ""
    heartbeat: float = 0.0
    served: float = 0.0

    @property
    def is_live(self) -> bool:
        """Whether the job waits or runs."""
        return self.state in LIVE

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


JOB_FIELDS = [field.name for field in fields(Job)]


class Store:
    """The database at ``url``, brought up to date when opened; safe for any thread and any number of processes.

    Every method raises ``StoreError`` if the database cannot be reached or written, and then has changed nothing.
    """

    def __init__(self, url: str) -> None:
        try:
            self.url = sa.engine.make_url(url)
            self.url.get_dialect()
        except (ArgumentError, ImportError) as error:
            raise StoreError(
                "BLOOM_LENS_DATABASE is no database URL that can be used here: expected "
                "'postgresql://user:password@host/name' or 'sqlite:///path/of/a/file.db'."
            ) from error
        self._is_sqlite = self.url.get_backend_name() == "sqlite"
        with self._in_words():
            if self._is_sqlite and self.url.database:
                Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
            # A connection that the server has closed meanwhile is opened anew.
            options: dict[str, Any] = {"connect_args": {"timeout": BUSY_S}} if self._is_sqlite else {}
            self.engine = sa.create_engine(self.url, pool_pre_ping=not self._is_sqlite, **options)
        if self._is_sqlite:
            sa.event.listen(self.engine, "connect", _set_up_sqlite)
            sa.event.listen(self.engine, "begin", _begin_sqlite)
        try:
            self._migrate()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give back all connections; a later call opens new ones."""
        self.engine.dispose()

    def _migrate(self) -> None:
        with self._write() as connection:
            if not self._is_sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
            METADATA.create_all(connection, [MIGRATED])
            seen = connection.scalar(sa.select(sa.func.coalesce(sa.func.max(MIGRATED.c.number), 0))) or 0
            if seen > len(MIGRATIONS):
                raise StoreError(
                    f"The database {self.url!r} is of a later version of Bloom Lens ({seen}; this one knows "
                    f"{len(MIGRATIONS)}). Use that version, or another database."
                )
            for number, migrate in enumerate(MIGRATIONS[seen:], seen + 1):
                migrate(connection)
                connection.execute(MIGRATED.insert().values(number=number))

    # Jobs

    def add_job(self, job: Job, file: Path | None = None, most: int = 0) -> None:
        """Store a new job, and with ``file`` the bytes of its source, unless they are there already.

        Raises ``QuotaError`` if its owner would then have more than ``most`` (0: any number) that wait or run.
        """
        with self._write() as connection:
            live = sa.select(sa.func.count()).where(JOBS.c.owner == job.owner, JOBS.c.state.in_(LIVE))
            if most and (connection.scalar(live) or 0) >= most:
                raise QuotaError(
                    f"You have {most:,} jobs that wait or run, which is as many as one may have here: wait until one "
                    "is done, or stop one.",
                    FULL_RETRY_S,
                )
            connection.execute(JOBS.insert().values(asdict(job)))
            is_there = connection.scalar(sa.select(PIECES.c.number).where(PIECES.c.source == job.source).limit(1))
            if file is None or is_there is not None:
                return
            with file.open("rb") as content:
                for number, piece in enumerate(iter(lambda: content.read(PIECE_BYTES), b"")):
                    connection.execute(PIECES.insert().values(source=job.source, number=number, content=piece))

    def read_source(self, source: str) -> Iterator[bytes]:
        """The stored bytes of a file, piece by piece; nothing if it is not stored."""
        number = 0
        while True:
            with self._read() as connection:
                of_piece = (PIECES.c.source == source) & (PIECES.c.number == number)
                piece = connection.scalar(sa.select(PIECES.c.content).where(of_piece))
            if piece is None:
                return
            yield piece
            number += 1

    def has_source(self, source: str) -> bool:
        """Whether any job has this file."""
        with self._read() as connection:
            return connection.scalar(sa.select(JOBS.c.id).where(JOBS.c.source == source).limit(1)) is not None

    def get_job(self, id: str) -> Job | None:
        """The job, or ``None``."""
        with self._read() as connection:
            row = connection.execute(_select_jobs().where(JOBS.c.id == id)).one_or_none()
            return Job(*row) if row else None

    def list_jobs(self, *, owner: str | None = None, states: Sequence[str] = (), **wanted: Any) -> list[Job]:
        """The jobs, newest first: those of ``owner`` (``None``: of all), in one of ``states`` if there are any, and
        with the values ``wanted``."""
        query = _select_jobs().order_by(JOBS.c.created.desc(), JOBS.c.id.desc())
        if owner is not None:
            query = query.where(JOBS.c.owner == owner)
        if states:
            query = query.where(JOBS.c.state.in_(states))
        for name, value in wanted.items():
            query = query.where(JOBS.c[name].is_(None) if value is None else JOBS.c[name] == value)
        with self._read() as connection:
            return [Job(*row) for row in connection.execute(query)]

    def change_job(self, id: str, *, expected: Mapping[str, Any] | None = None, **values: Any) -> bool:
        """Set ``values`` if the job is there and has the ``expected`` ones (a tuple: one of these); whether it had."""
        change = sa.update(JOBS).where(JOBS.c.id == id).values(_cleaned(values))
        for name, value in (expected or {}).items():
            change = change.where(JOBS.c[name].in_(value) if isinstance(value, tuple) else JOBS.c[name] == value)
        with self._write() as connection:
            return connection.execute(change).rowcount == 1

    def beat(self, worker: str, now: float) -> None:
        """Note that ``worker`` is alive, in all jobs that it runs."""
        with self._write() as connection:
            connection.execute(sa.update(JOBS).where(JOBS.c.worker == worker).values(heartbeat=now))

    def delete_job(self, id: str) -> None:
        """Remove the job, its file and the answers that no other job uses."""
        for left in reversed(range(DELETE_TRIES)):
            try:
                with self._write() as connection:
                    source = connection.scalar(sa.select(JOBS.c.source).where(JOBS.c.id == id))
                    own = sa.select(USES.c.key).where(USES.c.job == id)
                    others = sa.select(USES.c.key).where(USES.c.job != id)
                    keys = connection.scalars(own.except_(others)).all()
                    connection.execute(sa.delete(JOBS).where(JOBS.c.id == id))
                    for part in _parts(keys):
                        connection.execute(sa.delete(ANSWERS).where(ANSWERS.c.key.in_(part)))
                    is_used = sa.select(JOBS.c.id).where(JOBS.c.source == source).exists()
                    connection.execute(sa.delete(PIECES).where(PIECES.c.source == source, ~is_used))
                return
            except IntegrityError as error:  # another job has just begun to use one of these answers
                if not left:
                    raise self._problem(error) from error

    # Rows

    def known(self, keys: Sequence[bytes]) -> set[bytes]:
        """Those of ``keys`` that have an answer."""
        found: set[bytes] = set()
        with self._read() as connection:
            for part in _parts(keys):
                found |= {
                    bytes(key) for key in connection.scalars(sa.select(ANSWERS.c.key).where(ANSWERS.c.key.in_(part)))
                }
        return found

    def records(self, keys: Sequence[bytes]) -> dict[bytes, dict[str, Any]]:
        """The answers to ``keys``, of those that have one."""
        found: dict[bytes, dict[str, Any]] = {}
        with self._read() as connection:
            for part in _parts(keys):
                rows = connection.execute(sa.select(ANSWERS.c.key, ANSWERS.c.record).where(ANSWERS.c.key.in_(part)))
                found |= {bytes(key): json.loads(record) for key, record in rows}
        return found

    def failures(self, id: str, after: int = 0, before: int | None = None, limit: int | None = None) -> dict[int, str]:
        """The errors of a job's failed rows by row number, in order: of those after ``after`` and up to ``before``."""
        query = sa.select(FAILURES.c.row, FAILURES.c.error).where(FAILURES.c.job == id, FAILURES.c.row > after)
        if before is not None:
            query = query.where(FAILURES.c.row <= before)
        with self._read() as connection:
            rows = connection.execute(query.order_by(FAILURES.c.row).limit(limit))
            return {row: error for row, error in rows}

    def corrections(self, id: str) -> dict[int, dict[str, Any]]:
        """The corrections of a job's rows that hold, by row number, in order."""
        query = sa.select(CORRECTIONS.c.row, CORRECTIONS.c.correction).where(CORRECTIONS.c.job == id)
        with self._read() as connection:
            rows = connection.execute(query.order_by(CORRECTIONS.c.row, CORRECTIONS.c.number))
            last = {row: correction for row, correction in rows}  # of a row's corrections
        return {row: json.loads(correction) for row, correction in last.items()}

    def add_correction(self, id: str, row: int, correction: Mapping[str, Any]) -> bool:
        """Store a correction of a job's row above those before it; ``False`` if the job is gone."""
        with self._write() as connection:
            if not self._lock(connection, id):
                return False
            number = (connection.scalar(self._last_correction(id, row)) or 0) + 1
            new = {"job": id, "row": row, "number": number, "correction": json.dumps(correction)}
            connection.execute(CORRECTIONS.insert().values(new))
        return True

    def undo_correction(self, id: str, row: int) -> bool:
        """Forget the last correction of a job's row, so that the one before it holds; whether there was one."""
        with self._write() as connection:
            self._lock(connection, id)
            number = connection.scalar(self._last_correction(id, row))
            of_row = (CORRECTIONS.c.job == id) & (CORRECTIONS.c.row == row)
            done = connection.execute(sa.delete(CORRECTIONS).where(of_row, CORRECTIONS.c.number == number))
            return done.rowcount == 1

    def _lock(self, connection: sa.Connection, id: str) -> bool:
        """Let no one else correct or delete the job until the transaction ends; whether it is there."""
        return connection.scalar(sa.select(JOBS.c.id).where(JOBS.c.id == id).with_for_update()) is not None

    def _last_correction(self, id: str, row: int) -> sa.Select[Any]:
        of_row = (CORRECTIONS.c.job == id) & (CORRECTIONS.c.row == row)
        return sa.select(sa.func.max(CORRECTIONS.c.number)).where(of_row)

    def commit(
        self,
        job: Job,
        worker: str,
        *,
        keys: Sequence[bytes],
        answers: Mapping[bytes, Mapping[str, Any]],
        failures: Mapping[int, str],
        mended: Sequence[int] = (),
        progress: Mapping[str, Any],
    ) -> bool:
        """Store one chunk of ``job``, as it was read, with its ``progress``, if ``worker`` still runs it.

        ``keys`` are those of the chunk's rows but the failed ones, ``answers`` the new ones, ``failures`` errors by row
        number, and ``mended`` rows that had one before. ``False`` if the job is another's or gone, or if an answer that
        was known has gone with its last job: nothing is stored then.
        """
        insert = sqlite.insert if self._is_sqlite else postgresql.insert
        own = sa.update(JOBS).where(JOBS.c.id == job.id, JOBS.c.worker == worker, JOBS.c.done == job.done)
        own = own.values(failed=job.failed + len(failures) - len(mended), **progress)
        try:
            with self._write() as connection:
                if connection.execute(own).rowcount != 1:
                    raise _Lost
                if mended:
                    connection.execute(sa.delete(FAILURES).where(FAILURES.c.job == job.id, FAILURES.c.row.in_(mended)))
                if answers:
                    new = [{"key": key, "record": json.dumps(record)} for key, record in answers.items()]
                    connection.execute(insert(ANSWERS).on_conflict_do_nothing(), new)
                if keys:
                    used = [{"key": key, "job": job.id} for key in dict.fromkeys(keys)]
                    connection.execute(insert(USES).on_conflict_do_nothing(), used)
                if failures:
                    failed = [{"job": job.id, "row": row, "error": _clean(error)} for row, error in failures.items()]
                    connection.execute(insert(FAILURES), failed)
        except (_Lost, IntegrityError):
            return False
        return True

    # Connections

    @contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        with self._in_words(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        with self._in_words(), self.engine.connect().execution_options(writes=True) as connection, connection.begin():
            yield connection

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise  # the caller's to judge
        except (SQLAlchemyError, OSError) as error:
            raise self._problem(error) from error

    def _problem(self, error: Exception) -> StoreError:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        return StoreError(
            f"The database {self.url!r} cannot be used: {reason}. What was stored before is safe. Check that it runs, "
            "can be reached and has space left; BLOOM_LENS_DATABASE and BLOOM_LENS_DATA say where it is."
        )


class _Lost(Exception):
    """Undoes a transaction on a job that is no longer this process's."""


def _select_jobs() -> sa.Select[Any]:
    return sa.select(*(JOBS.c[name] for name in JOB_FIELDS))


def _parts(keys: Sequence[Any], size: int = 10_000) -> Iterator[Sequence[Any]]:
    """``keys`` in parts that fit one statement (SQLite takes 32,766 values, PostgreSQL 65,535)."""
    for start in range(0, len(keys), size):
        yield keys[start : start + size]


def _clean(text: str) -> str:
    """``text`` without what PostgreSQL or UTF-8 cannot hold: NUL and half characters."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def _cleaned(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _clean(value) if isinstance(value, str) else value for name, value in values.items()}


def _set_up_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions begin in _begin_sqlite, not where the driver thinks fit
    cursor = connection.cursor()
    # Readers never wait for a writer. NORMAL: a commit survives the end of any process at once, and that of the machine
    # within seconds (https://www.sqlite.org/pragma.html#pragma_synchronous).
    for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that reads first and writes later could fail in between: writers queue up at the start.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
