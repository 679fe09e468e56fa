"""Jobs on more than one machine, by Ray Data: one task plans the file's chunks, a pool of actors computes them.

The chunks are planned from the file alone and come back in its order, to be stored by ``batch.Jobs`` like any other
engine's, so the same command resumes. A process or a machine of the cluster that dies costs the chunks that it had;
Ray has them computed again.
"""

import importlib.util
import logging
import os
import pickle
import secrets
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from chains.batch import CHUNK_ROWS, Chunk, ModelEngine, Record, Work, plan_chunks, text_hash
from chains.errors import ChainError, ModelError
from chains.prompts import Tasks
from chains.registry import find_model, load
from chains.rows import Layout
from chains.tables import read_rows, text_of

__all__ = ["RayEngine"]

# What planned and computed chunks may take of the cluster's memory: some thousand, however long the file.
WAITING_BYTES = 16_000_000
STORE_BYTES = 256_000_000  # shared memory of a cluster that is started here
CONNECT_S = 10.0
MAX_RETRIES = 3  # of a chunk whose process died: one that always kills it must not do so for ever


class RayEngine:
    """A model in each of ``workers`` processes of a Ray cluster, for ``Jobs.run``; to be used in a ``with`` block.

    ``address`` (``host:port``) is that of a cluster to which this machine belongs. Without it this machine alone is
    one, on its loopback interface, until the block ends. There is by default a worker for every GPU, or, where there
    is none, for every core, if the memory allows; workers share out the cores.

    Raises:
        ChainError: Ray is not installed, or the cluster cannot be reached or has no room for the workers.
        ModelError: the model cannot be loaded there.
    """

    def __init__(self, model_name: str, *, address: str | None = None, workers: int | None = None) -> None:
        need_bytes = find_model(model_name).memory_bytes
        with ExitStack() as opened:
            nodes = opened.enter_context(connected(address, workers))
            self.workers, self._resources, threads = share_out(nodes, need_bytes, workers)
            self._model = (model_name, os.getcwd(), threads)
            self.version, self.shots = self._describe()
            self._opened = opened.pop_all()

    def __enter__(self) -> "RayEngine":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._opened.close()

    def steps(self, work: Work) -> Iterator[tuple[Chunk, list[Record]]]:
        """See ``Engine``. A text that failed is not asked again in a later chunk.

        Raises:
            ChainError: what the file or the model raises there; or one chunk ended too many processes.
        """
        import ray

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(
            object_store_memory=WAITING_BYTES
        )
        context.target_max_block_size = 1  # byte: every chunk is a block, and so a task, of its own
        source = {"file": work.file, "layout": work.layout, "column": work.column, "start": work.start}
        chunks = ray.data.from_items([0]).flat_map(
            read_chunks,
            fn_kwargs=source | {"answered": ray.put(answered(work))},
            num_cpus=0,  # it must not wait for a core that a worker has
            label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},  # the file is on this machine
        )
        with warnings.catch_warnings(action="ignore"):  # Ray announces another way for retries, and has none yet
            outcomes = chunks.map(
                Worker,
                fn_constructor_args=(*self._model, work.shots, work.tasks),
                compute=ray.data.ActorPoolStrategy(size=self.workers),
                max_task_retries=MAX_RETRIES,
                **self._resources,
            )
        with in_words():
            for row in outcomes.iter_rows():
                yield unpacked(row["outcome"])

    def _describe(self) -> tuple[str, int]:
        """Version and number of shots of the model, as a process of the cluster tells them."""
        import ray

        # After one call the process ends and frees its memory.
        remote: Any = ray.remote(max_calls=1, **self._resources)(describe)
        with in_words():
            described: tuple[str, int] = unpacked(ray.get(remote.remote(*self._model)))
        return described


# What runs in processes of the cluster. Errors of ours go back as values, since Ray's own would wrap them.


class Worker:
    """A process's model, loaded when there is something to compute."""

    def __init__(self, model_name: str, folder: str, threads: int, shots: int, tasks: Tasks) -> None:
        self._model = (model_name, folder, threads)
        self._shots, self._tasks = shots, tasks
        self._engine: ModelEngine | None = None

    def __call__(self, row: Mapping[str, bytes]) -> dict[str, bytes]:
        """The ``outcome`` of a ``chunk``: the same with its records."""
        return {"outcome": packed(lambda: self._compute(unpacked(row["chunk"])))}

    def _compute(self, chunk: Chunk) -> tuple[Chunk, list[Record]]:
        if chunk.texts and self._engine is None:
            self._engine = load_there(*self._model)
        return chunk, self._engine.compute(chunk, self._shots, self._tasks) if self._engine else []


def describe(model_name: str, folder: str, threads: int) -> bytes:
    """Version and number of shots of the model that a worker loads."""

    def tell() -> tuple[str, int]:
        engine = load_there(model_name, folder, threads)
        return engine.version, engine.shots

    return packed(tell)


def load_there(model_name: str, folder: str, threads: int) -> ModelEngine:
    """The model in this process, to which relative names mean what they mean to the command in ``folder``."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise ModelError(
            f"The machine {socket.gethostname()!r} of the cluster cannot enter {folder!r}: {error.strerror}. Start in "
            "a folder that all machines share, under one path."
        ) from error
    import torch

    torch.set_num_threads(threads)
    return ModelEngine(load(model_name))


def read_chunks(
    row: object, *, file: Path, layout: Layout, column: int, start: int, answered: Any
) -> Iterator[dict[str, bytes]]:
    """The chunks of the rows after ``start``; ``answered``, in Ray's memory, are the hashes of the texts before.

    What a chunk asks is known to those after it, as if it were stored by then. ``row`` is Ray Data's and means nothing.
    """
    import ray

    known: set[bytes] = ray.get(answered)
    try:
        for chunk in plan_chunks(read_rows(file, layout, start), column, start, known.intersection):
            yield {"chunk": pickle.dumps(chunk)}
            known.update(chunk.texts)
    except ChainError as problem:
        yield {"chunk": pickle.dumps(problem)}


def packed(work: Callable[[], object]) -> bytes:
    """What ``work`` returns, or the error of ours that it raises."""
    try:
        return pickle.dumps(work())
    except ChainError as problem:
        return pickle.dumps(problem)


def unpacked(outcome: bytes) -> Any:
    """What was packed; an error is raised. Only processes of the cluster pack, so it can be trusted as they are."""
    value = pickle.loads(outcome)
    if isinstance(value, ChainError):
        raise value
    return value


# What runs here


@contextmanager
def connected(address: str | None, workers: int | None) -> Iterator[list[dict[str, Any]]]:
    """The nodes of the cluster at ``address``, or of one on this machine that is there for ``workers`` in the block."""
    if importlib.util.find_spec("ray") is None:
        raise ChainError("Ray is not installed. Run: pip install -r requirements-ray.txt")
    # Read when ray is imported. The last keeps off stdout, where results go, what it says of workers that died.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_DEDUP_LOGS_SKIP_REGEX": "."}
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.CRITICAL}
    with ExitStack() as opened:
        if address is None:
            # Despite its name this makes Ray listen on loopback on any system, if it is there when ray is imported.
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
            # Keeps out other users of this machine. Ray reads it once in a process.
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            # In /tmp, because a socket's path must be short.
            folder = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)
            options |= {"address": "local", "_temp_dir": opened.enter_context(folder)}
            options |= {"num_cpus": max(count_cores(), workers or 1), "object_store_memory": STORE_BYTES}
            options |= {"include_dashboard": False}
        else:
            check_address(address)
        import ray
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        warnings.filterwarnings("ignore", module=r"ray\.")
        try:
            with hushed():
                ray.init(**options)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ChainError(
                f"Ray does not start, or does not let this machine in: {reason}. All machines need the same versions "
                "of Python and Ray, and RAY_AUTH_MODE=token if the cluster has a token."
            ) from error
        opened.callback(ray.shutdown)
        yield ray.nodes()


@contextmanager
def hushed() -> Iterator[None]:
    """Nothing is written to stderr in the block, not by libraries in other languages either."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def check_address(address: str) -> None:
    """Raise ``ChainError`` if nothing listens at ``host:port``; Ray itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise ChainError(
            f"No Ray cluster answers at {address!r}: {error}. Expected host:port of its head, as 'ray start --head' "
            "names it."
        ) from error


def count_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_out(nodes: list[dict[str, Any]], need_bytes: int, workers: int | None) -> tuple[int, dict[str, int], int]:
    """How many workers there are, what each takes of Ray's resources, and its number of threads.

    ``need_bytes`` is the memory of one, which bounds their number where it is not given.

    Raises:
        ChainError: there is no room for so many.
    """
    machines = [node["Resources"] for node in nodes if node["Alive"]]
    has_gpus = any(machine.get("GPU", 0) >= 1 for machine in machines)

    def count(threads: int, memory_bytes: int = 1) -> int:
        unit = {"GPU": 1} if has_gpus else {"memory": memory_bytes}
        return sum(
            int(min(machine.get("CPU", 0) // threads, *(machine.get(name, 0) // size for name, size in unit.items())))
            for machine in machines
        )

    wanted = workers or max(1, count(1, need_bytes))
    if count(1) < wanted:
        kind = "GPUs" if has_gpus else "cores"
        raise ChainError(f"The cluster has {kind} for {count(1):,} workers, and {wanted:,} are asked for.")
    most = max(int(machine.get("CPU", 0)) for machine in machines)
    threads = max(number for number in range(1, most + 1) if count(number) >= wanted)
    return wanted, {"num_gpus": 1} if has_gpus else {"num_cpus": threads}, threads


def answered(work: Work) -> set[bytes]:
    """The hashes of the texts before row ``work.start`` that have an answer; the others failed, and are asked again."""
    rows, found = islice(read_rows(work.file, work.layout), work.start), set()
    while block := list(islice(rows, CHUNK_ROWS)):
        texts = (text_of(row, work.column) for row in block)
        found |= work.known(list({text_hash(text) for text, error in texts if not error}))
    return found


@contextmanager
def in_words() -> Iterator[None]:
    """Raises ``ModelError`` for what Ray raises when processes of the cluster end; errors of code stay as they are."""
    from ray.exceptions import RayError, RayTaskError

    try:
        yield
    except RayTaskError:
        raise
    except RayError as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"Processes of the Ray cluster ended again and again, perhaps for lack of memory: {reason} Use fewer "
            "workers or a smaller model; the same command goes on after the last stored chunk."
        ) from error
