"""Workers of a Ray cluster on this machine, each with one core: ``python -m benchmarks.bench_cluster [--workers 1 2]``.

1,000 shipped sentences, numbered, by the embedded model; every round runs each number of workers once, in a process of
its own that may use so many cores. Texts per second are counted from when each worker has answered its first chunk, so
that starting Ray and loading the model, which take the same time for any job, stay out; they are told apart. Prints a
table of medians, whether all gave the same records, and one last JSON line.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.bench_jobs import write_input


def measure(file: Path, workers: int) -> dict[str, Any]:
    """Seconds until the first chunk, then texts per second, of one job; and a digest of all records."""
    from chains.batch import Jobs
    from chains.cluster import RayEngine
    from chains.registry import EMBEDDED
    from chains.store import Store
    from chains.tables import scan

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:workers])
    began, chunks = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder, RayEngine(EMBEDDED, workers=workers) as engine:
        jobs = Jobs(Store(f"sqlite:///{folder}/jobs.db"), Path(folder), lambda name: None)  # it never loads a model
        id = jobs.submit(scan(file), "text", EMBEDDED, copy=False)
        jobs.run(id, engine=engine, on_progress=lambda job: chunks.append((time.perf_counter(), job.done)))
        records = json.dumps([record for _, record in jobs.results(id)]).encode()
    (start, first), (end, last) = chunks[workers - 1], chunks[-1]
    return {
        "first_s": chunks[0][0] - began,
        "texts_per_s": (last - first) / (end - start),
        "sha256": hashlib.sha256(records).hexdigest(),
    }


def main() -> None:
    """Measure in rounds, so that what else the machine does meets all alike."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    found: dict[int, list[dict[str, Any]]] = {workers: [] for workers in chosen.workers}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "texts.csv"
        write_input(file, chosen.rows)
        for _ in range(chosen.rounds):
            for workers in chosen.workers:
                command = [sys.executable, "-m", __spec__.name, "--measure", str(file), str(workers)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found[workers].append(json.loads(done.stdout))
    digests = {one["sha256"] for runs in found.values() for one in runs}
    rates = {workers: median(one["texts_per_s"] for one in runs) for workers, runs in found.items()}
    fewest = chosen.workers[0]
    print(f"{'workers':>7} {'first chunk [s]':>16} {'texts/s':>8} {'times':>6}")
    for workers, runs in found.items():
        first = median(one["first_s"] for one in runs)
        print(f"{workers:>7} {first:>16.1f} {rates[workers]:>8.1f} {rates[workers] / rates[fewest]:>6.2f}")
    print("the same records" if len(digests) == 1 else "records differ")
    print(json.dumps({"rows": chosen.rows, "same": len(digests) == 1, "runs": found}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(Path(sys.argv[2]), int(sys.argv[3]))))
    else:
        main()
