"""What comes in from outside: no code of a checkpoint, no pickle, whole commits, no secret, audited packages.

The source is read by ``ast``; the commands of ``make check`` are run as they stand in the Makefile.
"""

import ast
import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from chains.registry import MODELS

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path
    for folder in ("chains", "pages", "training", "benchmarks", ".")
    for path in (ROOT / folder).glob("*.py" if folder == "." else "**/*.py")
)
# What runs whatever code a file holds. Ray itself sends Python objects this way, and so does cluster.py to its workers.
UNPICKLERS = {"pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "dill.load", "dill.loads"}
OWN_WORKERS = {"cluster.py": {"pickle.loads"}}


def calls(path):
    """Every call in a file as its dotted name and its keyword arguments."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}


def problems(path):
    """What a file does that would let somebody else's code in."""
    text = path.read_text(encoding="utf-8")
    for name, options in calls(path):
        if options.get("trust_remote_code", "False") != "False":
            yield f"{name} trusts remote code"
        if options.get("use_safetensors", "True") != "True":
            yield f"{name} takes other weights than safetensors"
        if name in UNPICKLERS - OWN_WORKERS.get(path.name, set()):
            yield f"{name} opens a pickle"
        if name == "torch.load" and options.get("weights_only") != "True":
            yield "torch.load opens a pickle"
        if name in {"yaml.load", "eval", "exec"} or options.get("allow_pickle", "False") != "False":
            yield f"{name} may run what it reads"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "trust_remote_code" and ast.unparse(value) != "False":
                    yield "a dictionary of options trusts remote code"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_the_code_of_a_checkpoint_or_opens_a_pickle(path):
    assert list(problems(path)) == []


@pytest.mark.parametrize(
    "line",
    [
        "AutoTokenizer.from_pretrained(x, trust_remote_code=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=is_trusted)",
        "load(**{'trust_remote_code': True})",
        "AutoModel.from_pretrained(x, use_safetensors=False)",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "pickle.loads(data)",
        "joblib.load(file)",
        "numpy.load(file, allow_pickle=True)",
        "yaml.load(file)",
        "eval(reply)",
    ],
)
def test_that_reading_finds_what_it_looks_for(tmp_path, line):
    path = tmp_path / "bad.py"
    path.write_text(line)
    assert list(problems(path))


def test_every_commit_of_the_table_is_whole_and_each_model_has_its_own():
    commits = [info.revision for info in MODELS.values() if info.revision]
    assert all(re.fullmatch("[0-9a-f]{40}", commit) for commit in commits)
    assert len(set(commits)) == len(commits) >= 2


def make(target, *options):
    command = ["make", "--no-print-directory", "--old-file=.venv/.installed-dev", *options, target]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture
def bin_folder():
    return f"BIN={Path(sys.executable).parent}"


def test_no_secret_is_in_the_repository(bin_folder):
    done = make("secrets", bin_folder)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_secret_would_be_found(bin_folder, tmp_path):
    recipe = make("secrets", "-n", bin_folder).stdout
    hook = recipe.partition("xargs -0")[2].strip()
    key = "AKIA" + "IOSFODNN7" + "EXAMPLQ"  # AWS's own example with another last letter
    (tmp_path / "settings.py").write_text(f"key = '{key}'\n")
    done = subprocess.run(f"{hook} settings.py", shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "AWS Access Key" in done.stdout


@pytest.fixture
def vulnerability_service():
    """``service(problem)``: the address of an OSV service by which every package has the vulnerability, or none."""
    servers = []

    def start(problem):
        class Service(BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                content = json.dumps({"vulns": [problem]} if problem else {}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Service))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_address[1]}/v1/query"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def audit(bin_folder, tmp_path):
    """``audit(url)``: the end of an audit of one package by the service there."""
    package = tmp_path / "demo-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n")
    options = f"--vulnerability-service osv --path {tmp_path} --osv-url"
    return lambda url: make("audit", bin_folder, f"AUDIT={options} {url}")


def test_an_audit_passes_if_the_service_knows_of_nothing(audit, vulnerability_service):
    done = audit(vulnerability_service(None))
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_audit_fails_for_a_known_vulnerability(audit, vulnerability_service):
    found = {"id": "GHSA-xxxx", "summary": "Bad.", "affected": []}
    done = audit(vulnerability_service(found))
    assert done.returncode != 0 and "GHSA-xxxx" in done.stdout


def test_an_audit_that_cannot_ask_fails_in_words(audit):
    done = audit("http://127.0.0.1:9/v1/query")
    assert done.returncode != 0 and "could not ask" in done.stderr + done.stdout
