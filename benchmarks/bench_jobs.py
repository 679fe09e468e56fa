"""Jobs under faults and of any size: ``python -m benchmarks.bench_jobs kill|restart|disk|million|scale [options]``.

- ``kill``: a job is killed with SIGKILL at random moments and begun again each time; its result file must be that of an
  uninterrupted run, byte for byte. ``--database postgresql`` uses a server of its own.
- ``restart``: PostgreSQL is stopped as if it crashed, and started, in mid-job; the job's process goes on by itself.
- ``disk``: the disk (a small tmpfs, which needs root) is filled in mid-job, and freed.
- ``million``: 1,000,000 rows of which 90% repeat others, answered by a stub that knows no language, so that store and
  files are measured alone: resident memory over the rows, seconds per row.
- ``scale``: jobs of 100, 1,000, … rows, all different, up to ``--rows``: milliseconds per text.

Texts are the shipped sentences, numbered; jobs run as ``python -m chains batch`` does, in processes of their own, which
log what they compute. Each part prints what it saw, ends with one line of JSON, and exits with 1 if a row was lost,
doubled or changed, or if more than one chunk was computed again per fault.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.bench_memory import resident, sentences

SEED = 1
MEGABYTE = 1_000_000


def texts(count: int, repeats: float = 0.0) -> Iterator[str]:
    """So many numbered sentences; a share of ``repeats`` of them are former ones."""
    pool, rng = sentences(), random.Random(SEED)
    made = 0
    for _ in range(count):
        is_new = not made or rng.random() >= repeats
        number = made if is_new else rng.randrange(made)
        made += is_new
        yield f"{pool[number % len(pool)]} ({number})"


def write_input(path: Path, count: int, repeats: float = 0.0) -> None:
    """A CSV file of ``texts`` with a number beside each."""
    import csv

    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows(enumerate(texts(count, repeats)))


def work(arguments: list[str]) -> None:
    """``python -m chains batch`` with a line in ``$LOG`` for every chunk of texts before it is computed, and memory."""
    from chains import analysis
    from chains.__main__ import main

    analyse = stub if os.environ.get("STUB") else analysis.analyse

    def logged(some: Any, model: Any, **options: Any) -> Any:
        with open(os.environ["LOG"], "a", encoding="utf-8") as log:
            log.write(json.dumps({"texts": len(some), "resident": resident("VmRSS")}) + "\n")
        return analyse(some, model, **options)

    analysis.analyse = logged
    if os.environ.get("STUB"):
        from chains import registry

        registry.load = lambda name: StubModel()  # type: ignore[assignment,return-value]
    sys.exit(main(arguments))


class StubModel:
    """Answers at once; what it says is of no use."""

    name = version = "stub"

    class info:
        shots = 0


def stub(some: Any, model: Any, *, shots: int | None = None, tasks: Any = None) -> Any:
    """One person in every text: the digits at its end."""
    from chains.schema import Analysis, Detection, Entity, Recognition

    answers = []
    for text in some:
        start = text.rindex("(")
        entity = Entity(text=text[start:], type="person", start=start, end=len(text))
        detection = Detection(language="english", probability=0.9)
        answers.append(Analysis(text=text, detection=detection, recognition=Recognition(entities=(entity,))))
    return answers


class Run:
    """One job in a folder: its input, its result, its database, and the log of what was computed."""

    def __init__(self, folder: Path, source: Path, database: str = "", **variables: str) -> None:
        folder.mkdir(exist_ok=True)
        self.source, self.target, self.log = source, folder / "result.csv", folder / "log.jsonl"
        self.environment = os.environ | {"BLOOM_LENS_DATA": str(folder / "data"), "BLOOM_LENS_DATABASE": database}
        self.environment |= {"LOG": str(self.log)} | variables
        self.url = database or f"sqlite:///{folder / 'data' / 'jobs.db'}"

    def start(self) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "benchmarks.bench_jobs", "--worker", str(self.source), str(self.target)]
        command += ["--text-column", "text", "--json"]
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def finish(self, process: "subprocess.Popen[str] | None" = None) -> dict[str, Any]:
        """Wait for the end; what the command says of the job."""
        process = process or self.start()
        out, err = process.communicate()
        if process.returncode:
            raise SystemExit(f"the job ended with {process.returncode}: {err[-2000:]}")
        summary: dict[str, Any] = json.loads(out)
        return summary

    def done(self) -> int:
        """How many rows the database says are done."""
        import sqlalchemy as sa

        engine = sa.create_engine(self.url)
        try:
            with engine.connect() as connection:
                return connection.scalar(sa.text("SELECT done FROM jobs")) or 0
        except sa.exc.SQLAlchemyError:
            return 0
        finally:
            engine.dispose()

    def logged(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def computed(self) -> int:
        """How many texts were given to the model in all."""
        return sum(entry["texts"] for entry in self.logged())


@contextmanager
def database(kind: str) -> Iterator[tuple[str, Any]]:
    """The URL of a new database, ``""`` for SQLite in the data folder, and its server if there is one."""
    if kind == "sqlite":
        yield "", None
        return
    from tests.postgres import Postgres

    server = Postgres()
    try:
        yield server.url, server
    finally:
        server.remove()


def compare(whole: Run, faulty: Run, rows: int, faults: int) -> dict[str, Any]:
    """What the faults cost; ends the program if they cost a row or more than a chunk each."""
    from chains.batch import CHUNK

    repeated = faulty.computed() - whole.computed()
    same = whole.target.read_bytes() == faulty.target.read_bytes()
    result = {"rows": rows, "faults": faults, "identical": same, "texts_repeated": repeated, "chunk": CHUNK}
    verdict = "identical" if same else "DIFFERENT"
    print(f"{rows:,} rows, {faults} faults: result {verdict}, {repeated} texts computed again")
    if not same or repeated > faults * CHUNK:
        print(json.dumps(result))
        raise SystemExit(1)
    return result


def kill(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    source = folder / "in.csv"
    write_input(source, options.rows)
    whole = Run(folder / "whole", source)
    started = time.perf_counter()
    whole.finish()
    seconds = time.perf_counter() - started
    print(f"uninterrupted: {seconds:.0f} s", file=sys.stderr)
    rng = random.Random(SEED)
    with database(options.database) as (url, _):
        faulty = Run(folder / "faulty", source, url)
        for number in range(options.times):
            process, before = faulty.start(), faulty.done()
            # Some while it starts, most while it works, so that all kills find something left to do.
            wait = rng.random() * 3 if number % 5 == 0 else None
            share = (options.rows - before) // (options.times - number + 1)
            aim = before + rng.randrange(2 * share + 1)
            end = time.monotonic() + (wait or 60)
            while process.poll() is None and time.monotonic() < end and (wait or faulty.done() < aim):
                time.sleep(0.02)
            if not wait:
                time.sleep(rng.random())  # anywhere in a chunk
            process.kill()
            process.communicate()
            print(f"kill {number + 1}: {before:,} → {faulty.done():,} rows", file=sys.stderr)
        faulty.finish()
        return compare(whole, faulty, options.rows, options.times) | {"database": options.database}


def restart(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    source = folder / "in.csv"
    write_input(source, options.rows)
    whole = Run(folder / "whole", source)
    whole.finish()
    with database("postgresql") as (url, server):
        faulty = Run(folder / "faulty", source, url)
        process = faulty.start()
        for number in range(options.times):
            aim = options.rows * (number + 1) // (options.times + 1)
            while process.poll() is None and faulty.done() < aim:
                time.sleep(0.05)
            server.stop("immediate")
            time.sleep(2)
            server.start()
            print(f"restart {number + 1}: {faulty.done():,} rows", file=sys.stderr)
        faulty.finish(process)
        return compare(whole, faulty, options.rows, options.times)


def disk(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    source = folder / "in.csv"
    write_input(source, options.rows)
    whole = Run(folder / "whole", source)
    whole.finish()
    small = folder / "faulty" / "data"
    small.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", small], check=True)
    try:
        faulty = Run(folder / "faulty", source)
        process = faulty.start()
        for number in range(options.times):
            aim = options.rows * (number + 1) // (options.times + 1)
            while process.poll() is None and faulty.done() < aim:
                time.sleep(0.05)
            filler = small / "filler"
            with filler.open("wb", buffering=0) as file, suppressed_full_disk():
                while True:
                    file.write(bytes(4096))
            time.sleep(5)
            print(f"full disk {number + 1}: {faulty.done():,} rows", file=sys.stderr)
            filler.unlink()
        faulty.finish(process)
        return compare(whole, faulty, options.rows, options.times)
    finally:
        subprocess.run(["umount", small], check=True)


@contextmanager
def suppressed_full_disk() -> Iterator[None]:
    import errno

    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def million(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    source = folder / "in.csv"
    write_input(source, options.rows, repeats=0.9)
    job = Run(folder / "job", source, STUB="1")
    started = time.perf_counter()
    process = job.start()
    peak = 0.0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, memory_of(process.pid, "VmHWM", peak))
            time.sleep(0.1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    summary = job.finish(process)
    watcher.join()
    seconds = time.perf_counter() - started
    memory = [entry["resident"] for entry in job.logged()]
    tenth = max(1, len(memory) // 10)
    first, last = max(memory[:tenth]), max(memory[-tenth:])
    lines = sum(1 for _ in job.target.open("rb")) - 1
    result = {
        "rows": options.rows, "different_texts": job.computed(), "seconds": seconds, "job_s": summary["seconds"],
        "us_per_row_job": summary["seconds"] / options.rows * 1e6,
        "us_per_row_all": seconds / options.rows * 1e6,
        "resident_first_tenth_mb": first, "resident_last_tenth_mb": last, "peak_mb": peak, "lines": lines,
        "input_mb": source.stat().st_size / MEGABYTE, "result_mb": job.target.stat().st_size / MEGABYTE,
    }  # fmt: skip
    print(
        f"{options.rows:,} rows ({job.computed():,} different texts, stub model): {seconds:.0f} s in all, "
        f"{result['us_per_row_job']:.0f} µs a row for planning and storing, {result['us_per_row_all']:.0f} µs with "
        f"reading and writing the files; resident {first:.0f} MB in the first tenth, {last:.0f} MB in the last, "
        f"peak {peak:.0f} MB"
    )
    if lines != options.rows:
        raise SystemExit(f"{lines:,} lines were written")
    return result


def scale(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    sizes = [100]
    while sizes[-1] * 10 <= options.rows:
        sizes.append(sizes[-1] * 10)
    ms_per_text = {}
    for size in sizes:
        source = folder / f"{size}.csv"
        write_input(source, size)
        summary = Run(folder / str(size), source).finish()
        ms_per_text[size] = summary["seconds"] / size * 1000
        print(f"{size:,} rows: {ms_per_text[size]:.2f} ms per text", flush=True)
    return {"ms_per_text": ms_per_text}


def memory_of(pid: int, field: str, default: float) -> float:
    """A line of another process's status in megabytes."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return default
    values = dict(line.split(":", 1) for line in lines)
    return int(values[field].split()[0]) * 1024 / MEGABYTE if field in values else default


PARTS = {"kill": kill, "restart": restart, "disk": disk, "million": million, "scale": scale}
ROWS = {"million": 1_000_000, "scale": 100_000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--rows", type=int, help="default: 5,000; 1,000,000 for 'million', 100,000 for 'scale'")
    parser.add_argument("--times", type=int, help="faults; default: 25 kills, 3 of the others")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite", help="for 'kill'")
    options = parser.parse_args()
    options.rows = options.rows or ROWS.get(options.part, 5_000)
    options.times = options.times or (25 if options.part == "kill" else 3)
    with tempfile.TemporaryDirectory(prefix="bloom-lens-jobs-") as folder:
        print(json.dumps({"part": options.part} | PARTS[options.part](options, Path(folder))))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(["batch", *sys.argv[2:]])
    else:
        main()
