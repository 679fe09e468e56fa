"""The container as far as it goes without an engine: what is copied is there, what it runs runs, as who it says."""

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml
from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def dockerfile():
    """The instructions of the Dockerfile's last stage, and those of the first, as pairs of name and value."""
    with (ROOT / "Dockerfile").open("rb") as file:
        steps = [(step["instruction"], step["value"]) for step in DockerfileParser(fileobj=file).structure]
    steps = [step for step in steps if step[0] != "COMMENT"]
    *_, last = (number for number, (name, _) in enumerate(steps) if name == "FROM")
    return steps[last:], steps[:last]


def values(steps, name):
    return [value for instruction, value in steps if instruction == name]


def copied(steps):
    """The sources and the target of each COPY from the repository."""
    for value in values(steps, "COPY"):
        if not value.startswith("--from"):
            *sources, target = shlex.split(value)
            yield sources, target


def tracked(path):
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", path]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name]


def test_the_linter_finds_nothing():
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_every_base_is_pinned_by_its_digest(dockerfile):
    bases = [base for steps in dockerfile for base in values(steps, "FROM")]
    assert len({base.split()[0] for base in bases}) == 1
    assert all(re.match(r"python:[\w.-]+-slim-\w+@sha256:[0-9a-f]{64}( AS \w+)?$", base) for base in bases)


def test_what_is_copied_is_in_the_repository_and_let_through(dockerfile):
    let_through = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for steps in dockerfile:
        for sources, _ in copied(steps):
            for source in sources:
                assert tracked(source), source
                assert source in let_through
    assert {source for steps in dockerfile for sources, _ in copied(steps) for source in sources} == set(let_through)


def test_it_runs_as_a_user_with_a_health_check_and_one_volume(dockerfile):
    steps, _ = dockerfile
    [user] = values(steps, "USER")
    assert int(user.split(":")[0]) > 1000
    assert any(f"useradd --uid {user.split(':')[0]} " in run for run in values(steps, "RUN"))
    assert values(steps, "VOLUME") == ["/data"] and values(steps, "EXPOSE") == ["7860"]
    [check] = values(steps, "HEALTHCHECK")
    assert "/health" in check and "--start-period" in check
    assert steps.index(("USER", user)) < [name for name, _ in steps].index("CMD")


@pytest.fixture
def image(dockerfile, tmp_path):
    """The folders /app and /data as the image has them."""
    steps, _ = dockerfile
    app, data = tmp_path / "app", tmp_path / "data"
    data.mkdir()
    for sources, target in copied(steps):
        for source in sources:
            for name in tracked(source):
                # As COPY does: a file goes by its name into a folder, a folder's content into the target.
                rest = Path(name).relative_to(source) if name != source else Path(Path(name).name)
                (app / target / rest).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, app / target / rest)
    return app, data


# What an engine does for a container with a read-only root: a view of the file system in which all but one folder is
# read-only, and a process without privileges. It keeps its user, who may own the interpreter alone.
CONFINE = """mount --make-rprivate / && mount --bind "$0" "$0" && mount -o remount,bind,ro / &&
exec setpriv --bounding-set -all --inh-caps -all --no-new-privs "$@" """


def confined(data, *command):
    return ["unshare", "--mount", "sh", "-c", CONFINE, str(data), *command]


@pytest.fixture
def needs_mounts(tmp_path):
    done = subprocess.run(confined(tmp_path, "true"), capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"A view of the file system of its own needs root on Linux: {done.stderr.strip()}")


def test_that_view_is_read_only_but_for_the_data(needs_mounts, tmp_path):
    (tmp_path / "data").mkdir()
    for place, is_writable in (("data/x", True), ("x", False)):
        done = subprocess.run(confined(tmp_path / "data", "touch", str(tmp_path / place)), capture_output=True)
        assert (done.returncode == 0) == is_writable


def test_its_command_answers_with_the_data_folder_as_the_only_place_to_write(needs_mounts, dockerfile, image, tmp_path):
    steps, _ = dockerfile
    app, data = image
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    settings = dict(pair.split("=", 1) for value in values(steps, "ENV") for pair in shlex.split(value))
    environment = {name: value.replace("/data", str(data)) for name, value in settings.items()}
    environment["PATH"] = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    [command] = values(steps, "CMD")
    command = [word.replace("0.0.0.0", "127.0.0.1").replace("7860", port) for word in json.loads(command)]
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(confined(data, *command), cwd=app, env=environment, stdout=output, stderr=output)
    try:
        [check] = values(steps, "HEALTHCHECK")
        check = [word.replace("7860", port) for word in json.loads(check.partition("CMD ")[2])]
        deadline = time.monotonic() + 120
        while subprocess.run(check, env=environment, capture_output=True).returncode:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(1)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            answer = client.post("/entity-recognition", json={"text": "Nadia Okafor left Siemens for Porto."})
            assert answer.json()["counts"], answer.text
            file = ("text\n" + "Hola, Porto.\n" * 200_000).encode()  # goes through a temporary file
            job = client.post("/jobs", files={"file": ("in.csv", file)})
            assert job.status_code == 202, job.text
            assert client.delete(f"/jobs/{job.json()['id']}").status_code == 204
            assert "<title>Streamlit</title>" in client.get("/").text
        process.terminate()
        assert process.wait(30) in (0, -15)
    finally:
        process.kill()
        process.wait()
    assert (data / "jobs.db").exists() and "Traceback" not in log.read_text()


@pytest.mark.slow
def test_its_packages_can_be_installed_together(dockerfile, tmp_path):
    _, steps = dockerfile
    [install] = [run for run in values(steps, "RUN") if run.startswith("pip install")]
    words = shlex.split(install)[2:]
    place = words.index("--extra-index-url")
    del words[place : place + 2]  # of torch for processors alone; what else it needs is the same
    words[words.index("torch==2.13.0+cpu")] = "torch==2.13.0"
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    # Into a folder of another Python: that of the image.
    pip += ["--python-version", "3.13", "--only-binary", ":all:", "--target", str(tmp_path)]
    done = subprocess.run([*pip, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = {package["metadata"]["name"].lower() for package in json.loads(done.stdout)["install"]}
    assert {"torch", "transformers", "streamlit", "authlib", "fastapi", "uvicorn", "psycopg-binary"} <= names


def test_compose_starts_it_with_a_database_that_is_ready():
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    lens, database = services["lens"], services["db"]
    assert lens["read_only"] and lens["cap_drop"] == ["ALL"] and lens["volumes"] == ["data:/data"]
    assert lens["depends_on"]["db"]["condition"] == "service_healthy" and "pg_isready" in str(database["healthcheck"])
    assert lens["ports"] == ["127.0.0.1:7860:7860"]
    known = re.findall(r'"(BLOOM_LENS_[A-Z_]+)"', (ROOT / "chains" / "config.py").read_text())
    assert set(lens["environment"]) <= set(known)
    words = (ROOT / "compose.yaml").read_text()
    assert words.count("${POSTGRES_PASSWORD:?") == 2  # there is none by default
