"""A service under faults: ``python -m benchmarks.bench_faults kill|database|disk|clients [--rows 2000]``.

Each part starts ``uvicorn api:app`` with the embedded model and data of its own, sends it a file as a job, and breaks
something in mid-job:

- ``kill``: the process that holds model and queue is killed with SIGKILL, three times, and started again;
- ``database``: its PostgreSQL is stopped as if it crashed, for five seconds, and started;
- ``disk``: its disk (a small tmpfs, which needs root) is filled, and freed;
- ``clients``: 100 clients leave in mid-request, half of them before they have sent all of it.

While something is broken, requests must be answered: texts as ever, jobs as ever or with a problem document and
``Retry-After``. Afterwards the job must end by itself with the rows of one that nothing happened to. Prints what was
answered, then one line of JSON; exits with 1 if any of it was otherwise.
"""

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks.bench_jobs import database, suppressed_full_disk, write_input
from benchmarks.service import Service

KILLS = 3
AWAY_S = 5.0
CLIENTS = 100
PATIENCE_S = 600


class Job:
    """A file sent to a service as a job."""

    def __init__(self, service: Service, file: Path) -> None:
        self.service = service
        answer = httpx.post(
            f"{service.address}/jobs", files={"file": file.read_bytes()}, data={"text_column": "text"}, timeout=60
        )
        self.url = f"{service.address}{answer.headers['Location']}"

    def status(self) -> dict[str, Any]:
        """What the service says of it."""
        found: dict[str, Any] = httpx.get(self.url, timeout=60).json()
        return found

    def wait_for(self, rows: int) -> dict[str, Any]:
        """Its status once so many rows are done."""
        until = time.monotonic() + PATIENCE_S
        while (status := self.status()).get("done", -1) < rows:
            if time.monotonic() > until or status.get("state") in ("stopped", "failed"):
                raise SystemExit(f"the job does not go on: {status}")
            time.sleep(0.1)
        return status

    def result(self) -> bytes:
        """Its rows, once all are done."""
        while (answer := httpx.get(f"{self.url}/result", timeout=60)).status_code == 409:
            time.sleep(0.5)
        return answer.raise_for_status().content


def probe(service: Service, job: Job, file: Path) -> dict[str, str]:
    """What requests of each kind are answered now: the status, and the first words of a problem."""
    requests = {
        "language": ("POST", f"{service.address}/language-detection", {"json": {"text": "Where is the station?"}}),
        "entities": ("POST", f"{service.address}/entity-recognition", {"json": {"text": "Ana lives in Oslo."}}),
        "job": ("GET", job.url, {}),
        "new job": ("POST", f"{service.address}/jobs", {"files": {"file": file.read_bytes()}}),
        "health": ("GET", f"{service.address}/health", {}),
    }
    answers = {}
    for name, (method, url, body) in requests.items():
        answer = httpx.request(method, url, timeout=60, **body)  # type: ignore[arg-type]
        problem = ""
        if answer.status_code >= 400:
            wait = answer.headers.get("Retry-After", "")
            problem = f" (Retry-After {wait or 'missing'}) {answer.json()['detail'][:150]}"
        answers[name] = f"{answer.status_code}{problem}"
        print(f"  {name}: {answers[name]}", flush=True)
    return answers


def is_in_words(answers: dict[str, str]) -> bool:
    """Whether texts were answered, and all else too or with the words of a problem that goes away."""
    texts = all(answers[name] == "200" for name in ("language", "entities", "health"))
    others = [answers[name] for name in ("job", "new job")]
    return texts and all(answer in ("200", "202") or answer.startswith("503 (Retry-After ") for answer in others)


def kill(folder: Path, file: Path, rows: int) -> tuple[bytes, bool]:
    with Service(folder) as service:
        job = Job(service, file)
        for number in range(KILLS):
            done = job.wait_for(rows * (number + 1) // (KILLS + 1))["done"]
            service.kill()
            service.start()
            print(f"killed after {done:,} rows; {job.status()['done']:,} when it answers again", flush=True)
        return job.result(), True


def stop_database(folder: Path, file: Path, rows: int) -> tuple[bytes, bool]:
    with database("postgresql") as (url, server), Service(folder, BLOOM_LENS_DATABASE=url) as service:
        job = Job(service, file)
        job.wait_for(rows // 4)
        server.stop("immediate")
        print("without database:")
        answers = probe(service, job, file)
        time.sleep(AWAY_S)
        server.start()
        job.wait_for(rows)
        return job.result(), is_in_words(answers)


def fill_disk(folder: Path, file: Path, rows: int) -> tuple[bytes, bool]:
    small = folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", small], check=True)
    try:
        with Service(folder, BLOOM_LENS_DATA=str(small)) as service:
            job = Job(service, file)
            job.wait_for(rows // 4)
            filler = small / "filler"
            with filler.open("wb", buffering=0) as full, suppressed_full_disk():
                while True:
                    full.write(bytes(4096))
            print("on a full disk:")
            answers = probe(service, job, file)
            time.sleep(AWAY_S)
            filler.unlink()
            job.wait_for(rows)
            return job.result(), is_in_words(answers)
    finally:
        subprocess.run(["umount", small], check=True)


def leave(folder: Path, file: Path, rows: int) -> tuple[bytes, bool]:
    body = json.dumps({"text": ["Ana lives in Oslo with Omar of Siemens."] * 100}).encode()
    head = f"POST /entity-recognition HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with Service(folder) as service:
        job = Job(service, file)
        job.wait_for(1)
        threads = thread_count(service)
        for number in range(CLIENTS):
            with socket.create_connection(("127.0.0.1", service.port)) as client:
                client.sendall(head + body[: len(body) // (1 + number % 2)])
                time.sleep(0.02)
        print(f"after {CLIENTS} clients have left:")
        answers = probe(service, job, file)
        job.wait_for(rows)
        after = thread_count(service)
        print(f"  threads: {threads} before, {after} after")
        # The threads of the largest rush stay for the next one: one per request that may ask at once.
        return job.result(), is_in_words(answers) and after <= threads + 64


def thread_count(service: Service) -> int:
    """How many threads the service's process has."""
    return len(list(Path(f"/proc/{service.process.pid}/task").iterdir()))


PARTS = {"kill": kill, "database": stop_database, "disk": fill_disk, "clients": leave}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--rows", type=int, default=2000)
    chosen = parser.parse_args()
    found: dict[str, dict[str, bool]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "in.csv"
        write_input(file, chosen.rows)
        (folder / "whole").mkdir()
        with Service(folder / "whole") as service:
            whole = Job(service, file).result()
        for part in chosen.parts:
            (folder / part).mkdir()
            rows, is_fine = PARTS[part](folder / part, file, chosen.rows)
            found[part] = {"answered in words": is_fine, "same rows": rows == whole}
            print(f"{part}: {found[part]}", flush=True)
    print(json.dumps({"rows": chosen.rows, "parts": found}))
    sys.exit(not all(all(part.values()) for part in found.values()))


if __name__ == "__main__":
    main()
