import csv
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import pytest

from chains import cluster
from chains.batch import Jobs, Work
from chains.cluster import RayEngine, share_out
from chains.errors import ChainError, ModelError, TableError
from chains.prompts import Tasks
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
    table = make_table(tmp_path, 400)
    local = run(make_jobs("local"), table, str(tiny_folder))
    used = set()
    with RayEngine(str(tiny_folder), workers=2) as engine:
        far = run(make_jobs("far"), table, str(tiny_folder), engine, lambda job: used.update(processes("MapWorker")))
    assert far == local
    assert local[0][:3] == ("done", 400, table.unreadable) and table.unreadable
    assert len(used) == 2


@pytest.mark.cluster
def test_a_model_that_cannot_be_loaded_is_told_in_its_own_words(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ModelError, match="is a 'gpt2' model. Only BLOOM checkpoints can be used."):
        RayEngine(str(tmp_path), workers=1)


def answer(body):
    """Fails texts that hold ``bad``, and is slow enough to be interrupted."""
    time.sleep(0.005)
    return scripted(body, lambda prompt: "<>" if " bad\n" in prompt.rpartition("\n<")[2] else " none")


@pytest.fixture(scope="module")
def serving():
    server = Server(answer)
    yield server
    server.close()


@pytest.fixture
def server(serving):
    """A model server; a test may change its answers."""
    yield serving
    serving.answer = answer


@pytest.fixture(scope="module")
def engine(serving):
    """Two workers that ask the model server, for all tests that do not end the cluster itself."""
    with RayEngine(serving.name, workers=2) as engine:
        yield engine


@pytest.mark.parametrize("name", ["MapWorker", pytest.param("FlatMap", marks=pytest.mark.cluster)])
def test_a_killed_process_costs_nothing_but_time(make_jobs, server, engine, tmp_path, name, monkeypatch, capfd):
    # So that much is left to plan when the first chunk is done.
    monkeypatch.setattr(cluster, "WAITING_BYTES", 1_000_000)
    table = make_table(tmp_path, 300, repeats=40_000)
    local = run(make_jobs("local"), table, server.name)
    killed = []

    def kill(job):
        if not killed and job.done:
            killed.extend(processes(name)[:1])
            os.kill(killed[0], signal.SIGKILL)

    far = run(make_jobs("far"), table, server.name, engine, kill)
    assert killed and far == local
    assert capfd.readouterr().out == ""
    assert local[0][2] > table.unreadable


@pytest.mark.cluster
def test_an_interrupted_job_goes_on_after_its_last_stored_chunk(make_jobs, server, engine, tmp_path):
    table = make_table(tmp_path, 200)
    local, jobs = run(make_jobs("local"), table, server.name), make_jobs("far")
    id = jobs.submit(table, "text", server.name, copy=False)

    def interrupt(job):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jobs.run(id, engine=engine, on_progress=interrupt)
    left = jobs.status(id)
    assert left.state == "stopped" and 0 < left.done < left.total
    assert jobs.run(id, engine=engine).state == "done"
    assert list(jobs.results(id)) == local[1]


PROGRAM = """
    import sys
    from pathlib import Path
    from chains.batch import Jobs
    from chains.cluster import RayEngine
    from chains.store import Store
    folder, model, id, *address = sys.argv[1:]
    with RayEngine(model, workers=2, address=address[0] if address else None) as engine:
        Jobs(Store(f"sqlite:///{folder}/far.db"), Path(folder), None).run(id, engine=engine)
"""


@pytest.mark.cluster
def test_a_job_goes_on_where_a_killed_command_left_it(make_jobs, server, engine, tmp_path):
    table = make_table(tmp_path, 400)
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
    job = jobs.run(id, engine=engine)
    assert ((job.state, job.done, job.failed, job.version, job.base), list(jobs.results(id))) == local


@pytest.mark.cluster
def test_a_chunk_that_ends_every_process_ends_the_job_in_words(make_jobs, server, engine, tmp_path):
    def kill(body):
        for process in processes("MapWorker"):
            os.kill(process, signal.SIGKILL)
        return answer(body)

    jobs, table = make_jobs(), make_table(tmp_path, 20)
    id = jobs.submit(table, "text", server.name, copy=False)
    server.answer = kill
    with pytest.raises(ChainError, match="ended again and again.*the same command goes on"):
        jobs.run(id, engine=engine)
    assert jobs.status(id).done == 0


@pytest.mark.cluster
def test_a_model_that_cannot_answer_ends_the_job_in_its_own_words(make_jobs, server, engine, tmp_path):
    server.answer = lambda body: (500, {"error": {"message": "out of order"}})
    with pytest.raises(ChainError, match="out of order"):
        run(make_jobs(), make_table(tmp_path, 20), server.name, engine)


@pytest.mark.cluster
def test_a_file_that_cannot_be_read_to_its_end_ends_the_job_in_words(engine, tmp_path):
    table = make_table(tmp_path, 200)
    content = table.path.read_bytes()
    table.path.write_bytes(content[:5000] + b"\xff" + content[5000:])
    with pytest.raises(TableError, match="byte"):
        list(engine.steps(Work(table.path, table.layout, 1, 0, 3, Tasks(), (), lambda hashes: set())))


def test_a_worker_without_the_commands_folder_says_so(tmp_path):
    with pytest.raises(ModelError, match=r"cannot enter '/no/such': No such file or directory. Start in"):
        cluster.load_there("embedded", "/no/such", 1)


def test_without_ray_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ChainError, match="pip install -r requirements-ray.txt"):
        RayEngine("embedded")


@pytest.mark.parametrize(
    "address", ["127.0.0.1:{port}", "nonsense", "ray://127.0.0.1:{port}", "", "no.such.host.invalid:1"]
)
def test_an_address_at_which_no_cluster_is_gives_an_error_at_once(address):
    address = address.format(port=free_port())
    with pytest.raises(ChainError, match=f"No Ray cluster answers at {re.escape(repr(address))}.*ray start --head"):
        RayEngine("embedded", address=address)


def node(cpus, gpus=0, gigabytes=100, is_alive=True):
    return {"Alive": is_alive, "Resources": {"CPU": cpus, "GPU": gpus, "memory": gigabytes * 1e9}}


@pytest.mark.parametrize(
    ("nodes", "workers", "expected"),
    [
        ([node(8)], None, (8, {"num_cpus": 1}, 1)),
        ([node(8)], 2, (2, {"num_cpus": 4}, 4)),
        ([node(8)], 3, (3, {"num_cpus": 2}, 2)),
        ([node(8), node(4)], 3, (3, {"num_cpus": 4}, 4)),
        ([node(8), node(4)], 2, (2, {"num_cpus": 4}, 4)),
        ([node(8, gigabytes=5)], None, (2, {"num_cpus": 4}, 4)),
        ([node(8, gigabytes=1)], None, (1, {"num_cpus": 8}, 8)),  # loading says what it needs
        ([node(8), node(8, is_alive=False)], None, (8, {"num_cpus": 1}, 1)),
        ([node(16), node(8, gpus=2, gigabytes=1)], None, (2, {"num_gpus": 1}, 4)),
        ([node(16, gpus=1), node(8, gpus=2)], 1, (1, {"num_gpus": 1}, 16)),
    ],
)
def test_workers_share_out_the_cores_or_have_a_gpu_each(nodes, workers, expected):
    assert share_out(nodes, 2 * 10**9, workers) == expected


@pytest.mark.parametrize(
    ("nodes", "kind"), [([node(4)], "cores for 4"), ([node(8, gpus=1)], "GPUs for 1"), ([], "cores for 0")]
)
def test_more_workers_than_there_is_room_for_are_an_error(nodes, kind):
    with pytest.raises(ChainError, match=f"The cluster has {kind} workers, and 5 are asked for"):
        share_out(nodes, 1, 5)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.cluster
def test_a_cluster_that_is_there_is_used_and_left_alone(make_jobs, server, tmp_path):
    table, port = make_table(tmp_path, 100), free_port()
    local, jobs = run(make_jobs("local"), table, server.name), make_jobs("far")
    start = f"start --head --block --node-ip-address 127.0.0.1 --port {port} --num-cpus 2 --include-dashboard false"
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    plain |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        ray = [Path(sys.executable).parent / "ray", *start.split(), "--temp-dir", folder]
        head = subprocess.Popen(ray, cwd="/", env=plain, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            for _ in range(2):  # the second time, the first has left it as it was
                id = jobs.submit(table, "text", server.name, copy=False)
                command = [
                    sys.executable,
                    "-c",
                    textwrap.dedent(PROGRAM),
                    tmp_path,
                    server.name,
                    id,
                    f"127.0.0.1:{port}",
                ]
                wait_for(port)
                subprocess.run(command, cwd=ROOT, env=plain, check=True)
                assert list(jobs.results(id)) == local[1]
        finally:
            head.terminate()
            head.wait()


def wait_for(port):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(OSError):
            return socket.create_connection(("127.0.0.1", port), 1).close()
        time.sleep(0.1)
    raise TimeoutError(port)
