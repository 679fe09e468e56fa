"""``uvicorn api:app`` in a process of its own on a free loopback port, for benchmarks that ask, kill and start it."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import httpx

__all__ = ["Service"]

START_S = 120


class Service:
    """The server with the embedded model; it listens at ``address`` and keeps its data in ``folder``."""

    def __init__(self, folder: Path, **variables: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.log = folder / "log.txt"
        self.environment = os.environ | {"BLOOM_LENS_DATA": str(folder), "BLOOM_LENS_RATE": "0"} | variables
        self.start()

    def start(self) -> None:
        """Start it and wait until its model answers."""
        command = [sys.executable, "-m", "uvicorn", "api:app", "--port", str(self.port), "--no-access-log"]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        until = time.monotonic() + START_S
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > until:
                self.process.kill()
                raise SystemExit(f"The server did not start:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.2)

    def is_ready(self) -> bool:
        """Whether its model answers."""
        try:
            return httpx.get(f"{self.address}/health").status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """End it as when memory runs out: no time for a last word."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()
