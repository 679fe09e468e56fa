"""REST under load on loopback: ``python -m benchmarks.bench_load [--clients 64] [--minutes 5] [--job-rows 100000]``.

Starts ``uvicorn api:app`` (dashboard and embedded model included) in a process and a data folder of its own, and asks
it for the language and the entities of the shipped sentences, numbered, one text a request, both in turn:

1. one client, one request after another: texts per second, and the 95th percentile of the time to an answer, idle;
2. many clients at once for minutes: every answer is 200, or 429 or 503 with ``Retry-After``, which is waited for;
   texts per second against 1; resident memory of the process at the end against that after the first half minute;
3. one client with a pause between requests while a job over a file of ``--job-rows`` rows runs: the percentile against
   that of 1, and how many rows of the job were done meanwhile;
4. ``--texts`` different texts by many clients at once against the chains called directly: the answers must be equal.

Client and server share the machine's cores. Prints a table, then one line of JSON; exits with 1 if an answer was
anything else or differed.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

import httpx

from benchmarks.bench_jobs import memory_of, texts, write_input
from benchmarks.service import Service

PATHS = ("/language-detection", "/entity-recognition")
WARM_UP_S = 30.0
PAUSE_S = 0.5  # between the requests of a client that is not in a hurry
MAX_WAIT_S = 5.0  # a client comes back at the latest after this


class Load:
    """Requests to a server, and what came back: seconds of each 200 by path, how many of each status, and breaches."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.seconds: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.breaches: list[str] = []

    async def send(self, number: int, text: str) -> Any:
        """The answer to one request, which is sent again while the server asks for patience."""
        while True:
            started = time.perf_counter()
            response = await self.client.post(PATHS[number % 2], json={"text": text})
            self.statuses[response.status_code] += 1
            if response.status_code == 200:
                self.seconds.append(time.perf_counter() - started)
                return response.json()
            if response.status_code not in (429, 503) or "Retry-After" not in response.headers:
                self.breaches.append(f"{response.status_code} {response.text[:200]}")
                return None
            await asyncio.sleep(min(MAX_WAIT_S, float(response.headers["Retry-After"])))

    async def run(self, clients: int, seconds: float, pause_s: float = 0.0) -> dict[str, Any]:
        """So many clients, each with one request at a time, for so long."""
        self.seconds, self.statuses = [], Counter()
        numbers, pool = count(), list(texts(1000))
        started = time.perf_counter()

        async def work() -> None:
            while time.perf_counter() - started < seconds:
                number = next(numbers)
                await self.send(number, f"{pool[number // 2 % len(pool)]} {number // 2}")
                await asyncio.sleep(pause_s)

        await asyncio.gather(*(work() for _ in range(clients)))
        passed = time.perf_counter() - started
        return {
            "clients": clients,
            "texts": len(self.seconds),
            "texts_per_s": len(self.seconds) / passed,
            "p50_ms": 1000 * percentile(self.seconds, 0.5),
            "p95_ms": 1000 * percentile(self.seconds, 0.95),
            "statuses": {str(status): number for status, number in sorted(self.statuses.items())},
        }


def percentile(values: list[float], share: float) -> float:
    """The value that so large a share of ``values`` does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def measure(service: Service, folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """All four parts."""
    limits = httpx.Limits(max_connections=chosen.clients)
    async with httpx.AsyncClient(base_url=service.address, timeout=120, limits=limits) as client:
        load = Load(client)
        await load.run(chosen.clients, WARM_UP_S)
        warm = memory_of(service.process.pid, "VmRSS", 0)
        found: dict[str, Any] = {"one by one": await load.run(1, 60 * min(1.0, chosen.minutes))}
        found["at once"] = await load.run(chosen.clients, 60 * chosen.minutes)
        found["memory_mb"] = {"warm": warm, "end": memory_of(service.process.pid, "VmRSS", 0)}
        file = folder / "texts.csv"
        write_input(file, chosen.job_rows)
        job = (await client.post("/jobs", files={"file": file.read_bytes()}, data={"text_column": "text"})).json()
        while not (await client.get(f"/jobs/{job['id']}")).json()["done"]:
            await asyncio.sleep(0.5)
        found["beside a job"] = await load.run(1, 60 * min(2.0, chosen.minutes), PAUSE_S)
        job = (await client.get(f"/jobs/{job['id']}")).json()
        found["job"] = {name: job[name] for name in ("state", "total", "done", "failed", "rows_per_second")}
        await client.delete(f"/jobs/{job['id']}")
        pool = list(texts(chosen.texts))
        answers = []
        for number in range(len(PATHS)):
            waiting = asyncio.Semaphore(chosen.clients)

            async def ask(text: str, number: int = number, waiting: asyncio.Semaphore = waiting) -> Any:
                async with waiting:
                    return await load.send(number, text)

            answers.append(await asyncio.gather(*(ask(text) for text in pool)))
        found["different"] = differing(pool, *answers)
        found["breaches"] = load.breaches
        return found


def differing(pool: list[str], languages: list[Any], entities: list[Any]) -> list[str]:
    """The texts whose answers are not those of the chains: languages and spans exactly, probabilities to 1e-3."""
    from chains.entities import find_entities_batch
    from chains.language import detect_languages
    from chains.registry import load

    model = load("embedded")
    wrong = []
    for text, detection, by_rest in zip(pool, detect_languages(pool, model), languages, strict=True):
        given = by_rest["results"][0]
        close = all(abs(given["probabilities"][name] - p) < 1e-3 for name, p in detection.probabilities.items())
        if given["language"] != detection.language or not close:
            wrong.append(text)
    for text, recognition, by_rest in zip(pool, find_entities_batch(pool, model), entities, strict=True):
        if by_rest["results"][0]["entities"] != [entity.model_dump() for entity in recognition.entities]:
            wrong.append(text)
    return wrong


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--job-rows", type=int, default=100_000)
    parser.add_argument("--texts", type=int, default=500)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Service(Path(folder)) as service:
        found = asyncio.run(measure(service, Path(folder), chosen))
    idle, busy, beside = found["one by one"], found["at once"], found["beside a job"]
    print(f"{'':>14} {'clients':>8} {'texts/s':>8} {'p50 [ms]':>9} {'p95 [ms]':>9}  answers by status")
    for name in ("one by one", "at once", "beside a job"):
        row = found[name]
        print(
            f"{name:>14} {row['clients']:>8} {row['texts_per_s']:>8.1f} {row['p50_ms']:>9.0f} {row['p95_ms']:>9.0f}  "
            f"{row['statuses']}"
        )
    found["throughput_times"] = busy["texts_per_s"] / idle["texts_per_s"]
    found["p95_times"] = beside["p95_ms"] / idle["p95_ms"]
    memory = found["memory_mb"]
    print(
        f"throughput {found['throughput_times']:.1f} times one by one; p95 beside a job {found['p95_times']:.1f} times"
    )
    print(
        f"memory {memory['warm']:.0f} MB warm, {memory['end']:.0f} MB at the end ({memory['end'] / memory['warm']:.1%})"
    )
    print(f"{len(found['different'])} of {chosen.texts} texts with another answer than the chains'")
    print(json.dumps(found))
    sys.exit(bool(found["breaches"] or found["different"]))


if __name__ == "__main__":
    main()
