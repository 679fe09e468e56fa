"""A real server on a free port and Chromium in front of it; the model is the tiny random one of tests/conftest.py."""

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).parents[2]
# Nothing but the page: no sandbox as root, and no requests of Chromium's own.
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
ARGUMENTS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
START_S = 60


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def run_server(data_folder, port=None):
    """The address of a new server; its process ends with the block."""
    port = port or free_port()
    command = [sys.executable, "-m", "streamlit", "run", "streamlit_app.py", "--server.address=127.0.0.1"]
    command += [f"--server.port={port}", "--server.fileWatcherType=none", "--server.headless=true"]
    log = data_folder / "server.log"
    environment = os.environ | {"BLOOM_LENS_DATA": str(data_folder), "HF_HUB_OFFLINE": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until_healthy(address, process, log)
            yield address
        finally:
            process.terminate()
            process.wait(timeout=20)


def wait_until_healthy(address, process, log):
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            with urlopen(f"{address}/_stcore/health", timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(f"The server did not start in {START_S} s: {log.read_text()}")


@pytest.fixture
def new_server(tmp_path):
    """A server that nobody has asked for anything yet."""
    with run_server(tmp_path) as address:
        yield address


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    with run_server(tmp_path_factory.mktemp("data")) as address:
        yield address


# Not for the session: while Playwright's loop runs, no other test in this thread can run a loop of its own.
@pytest.fixture(scope="module")
def chromium():
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        expect.set_options(timeout=60_000)  # the first answer waits for torch
        yield browser
        browser.close()


@pytest.fixture
def new_page(chromium):
    """Opens a page of a given width in a session of its own; an alert in any of them fails the test."""
    contexts, alerts = [], []

    def open_page(address, width=1280):
        context = chromium.new_context(viewport={"width": width, "height": 900}, accept_downloads=True)
        context.set_default_timeout(60_000)
        contexts.append(context)
        page = context.new_page()
        page.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not alerts
