import csv
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from chains import cluster
from chains.batch import Jobs
from chains.cluster import RayEngine, share_out
from chains.errors import ChainError, ModelError
from chains.registry import load
from chains.store import Store
from chains.tables import scan
from tests.conftest import SENTENCES
from tests.test_remote import Server, scripted

ROOT = Path(__file__).parent.parent
ODD = ["", " ", "{text}", "<Porto>(location)", "\0", "e\u0301", "a\r\nb", '"', "=1+1", "🧑‍🚀" * 40]


@pytest.fixture
def make_jobs(tmp_path):
    """Makes jobs over a database of that name."""
    made = []

    def make(name="jobs"):
        made.append(Jobs(Store(f"sqlite:///{tmp_path / name}.db"), tmp_path, load))
        return made[-1]

    yield make
    for jobs in made:
        jobs.close()
        jobs.store.close()


def make_table(folder, count, repeats=0):
    """Texts of which many are equal, some odd and some unreadable, and two that the scripted server fails; then the
    first of them again and again."""
    texts = [f"{SENTENCES[n % 4]} {n % 5 * n}{' bad' * (n in (257, 258))}" for n in range(count)]
    texts[3 :: count // 9] = [*ODD, *ODD][: len(texts[3 :: count // 9])]
    path = folder / "texts.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        for number, text in enumerate([*texts, *texts[:1] * repeats]):
            writer.writerow([number, text] if number % 40 else [number, text, "one too many"])
    return scan(path)


def run(jobs, table, model, engine=None, on_progress=None):
    """What a job over the table gives: its end and every row with its record."""
    id = jobs.submit(table, "text", model, copy=False)
    job = jobs.run(id, engine=engine, on_progress=on_progress)
    return (job.state, job.done, job.failed, job.version, job.base), list(jobs.results(id))


def processes(name):
    """The processes of that name which a Ray of this process runs."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_it = (folder / "cmdline").read_bytes().startswith(f"ray::{name}".encode())
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            owner = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue  # it ended
        if is_it and owner == os.getpid():
            found.append(int(folder.name))
    return found


def test_two_workers_give_the_very_records_of_the_local_engine(make_jobs, tiny_folder, tmp_path):
    table = make_table(tmp_path, 500)
    local = run(make_jobs("local"), table, str(tiny_folder))
    used = set()
    with RayEngine(str(tiny_folder), workers=2) as engine:
        far = run(make_jobs("far"), table, str(tiny_folder), engine, lambda job: used.update(processes("MapWorker")))
    assert far == local
    assert local[0][:3] == ("done", 500, table.unreadable) and table.unreadable
    assert len(used) == 2


@pytest.fixture
def server():
    """A model server that fails texts that hold ``bad``, and is slow enough to be interrupted."""

    def answer(body):
        time.sleep(0.01)
        return scripted(body, lambda prompt: "<>" if " bad\n" in prompt.rpartition("\n<")[2] else " none")

    serving = Server(answer)
    yield serving
    serving.close()


@pytest.mark.parametrize("name", ["MapWorker", "FlatMap"])
def test_a_killed_process_costs_nothing_but_time(make_jobs, server, tmp_path, name, monkeypatch):
    monkeypatch.setattr(cluster, "WAITING_BYTES", 1)  # so that much is left to plan when the first chunk is done
    table = make_table(tmp_path, 400, repeats=40_000)
    local = run(make_jobs("local"), table, server.name)
    killed = []

    def kill(job):
        if not killed and job.done:
            killed.extend(processes(name)[:1])
            os.kill(killed[0], signal.SIGKILL)

    with RayEngine(server.name, workers=2) as engine:
        far = run(make_jobs("far"), table, server.name, engine, kill)
    assert killed and far == local
    assert local[0][2] > table.unreadable


PROGRAM = """
    import sys
    from pathlib import Path
    from chains.batch import Jobs
    from chains.cluster import RayEngine
    from chains.store import Store
    folder, model, id = sys.argv[1:]
    with RayEngine(model, workers=2) as engine:
        Jobs(Store(f"sqlite:///{folder}/far.db"), Path(folder), None).run(id, engine=engine)
"""


def test_a_job_goes_on_where_a_killed_command_left_it(make_jobs, server, tmp_path):
    table = make_table(tmp_path, 500)
    local, jobs = run(make_jobs("local"), table, server.name), make_jobs("far")
    id = jobs.submit(table, "text", server.name, copy=False)
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), tmp_path, server.name, id]
    process = subprocess.Popen(command, cwd=ROOT)
    while not jobs.status(id).done and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    left = jobs.status(id)
    assert 0 < left.done < left.total
    server.requests.clear()
    with RayEngine(server.name, workers=2) as engine:
        job = jobs.run(id, engine=engine)
    assert ((job.state, job.done, job.failed, job.version, job.base), list(jobs.results(id))) == local
