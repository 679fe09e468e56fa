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
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from chains.batch import CHUNK_ROWS, Chunk, ModelEngine, Record, Work, plan_chunks, text_hash
from chains.errors import ChainError, ModelError
from chains.registry import find_model, load
from chains.tables import Layout, read_rows, text_of

__all__ = ["RayEngine"]

# What planned and computed chunks may take of the cluster's memory: some hundred, however long the file.
WAITING_BYTES = 16_000_000
STORE_BYTES = 256_000_000  # shared memory of a cluster that is started here
CONNECT_S = 10.0
MAX_RETRIES = 3  # of a chunk whose process died: one that always kills it must not do so for ever


class RayEngine:
    """A model in each of ``workers`` processes of a Ray cluster, for ``batch.Jobs.run``; to be closed, or used in a
    ``with`` block.

    ``address`` (``host:port``) is that of a cluster to which this machine belongs. Without it this machine alone is
    one, on its loopback interface, until the engine is closed. There is by default a worker for every GPU, or, where
    there is none, for every core, if the memory allows; workers share out the cores.

    Raises:
        ChainError: Ray is not installed, or the cluster cannot be reached or has no room for the workers.
        ModelError: the model cannot be loaded there.
    """

    version: str
    shots: int

    def __init__(self, model_name: str, *, address: str | None = None, workers: int | None = None) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ChainError("The engine 'ray' is not installed. Run: pip install -r requirements-ray.txt")
        # Sockets lie in here, and their paths must be short.
        self._folder = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)
        try:
            nodes = connect(address, workers, self._folder.name)
            self.workers, self._resources, threads = share_out(nodes, find_model(model_name).memory_bytes, workers)
            self._worker = (model_name, os.getcwd(), threads)
            self.version, self.shots = self._describe()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "RayEngine":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        import ray

        ray.shutdown()
        self._folder.cleanup()

    def steps(self, work: Work) -> Iterator[tuple[Chunk, list[Record]]]:
        """See ``Engine``. A text that failed is asked once per run, not once per chunk.

        Raises:
            ChainError: what reading the file or the model raises there, or the cluster fails.
        """
        import ray

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(
            object_store_memory=WAITING_BYTES
        )
        context.target_max_block_size = 1  # bytes: every chunk is a block, and so a task, of its own
        plan = {"file": work.file, "layout": work.layout, "column": work.column, "start": work.start}
        chunks = ray.data.from_items([0]).flat_map(
            read_chunks,
            fn_kwargs={**plan, "answered": ray.put(answered(work))},
            num_cpus=0,  # it must not wait until a worker leaves it a core
            label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},  # here the file is known to be
        )
        outcomes = chunks.map(
            Worker,
            fn_constructor_args=(*self._worker, work.shots),
            compute=ray.data.ActorPoolStrategy(size=self.workers),
            ray_remote_args_fn=lambda: {"max_task_retries": MAX_RETRIES},
            **self._resources,
        )
        try:
            for row in outcomes.iter_rows():
                yield unpacked(row["outcome"])
        except ray.exceptions.RayError as error:
            raise in_words(error) from error

    def _describe(self) -> tuple[str, int]:
        """The model's version and its own number of shots, told by a process of the cluster."""
        import ray

        ask = ray.remote(max_calls=1, **self._resources)(describe)  # one call, so that the process frees its memory
        try:
            described: tuple[str, int] = unpacked(ray.get(ask.remote(*self._worker)))
        except ray.exceptions.RayError as error:
            raise in_words(error) from error
        return described


class Worker:
    """A process's model, which is loaded when the first chunk is to be computed."""

    def __init__(self, model_name: str, folder: str, threads: int, shots: int) -> None:
        self._load = lambda: load_here(model_name, folder, threads)
        self._shots = shots
        self._engine: ModelEngine | None = None

    def __call__(self, row: Mapping[str, bytes]) -> dict[str, bytes]:
        """The ``outcome`` of a ``chunk``: it and its records."""
        return {"outcome": packed(lambda: self._compute(unpacked(row["chunk"])))}

    def _compute(self, chunk: Chunk) -> tuple[Chunk, list[Record]]:
        self._engine = self._engine or self._load()
        return chunk, self._engine.compute(chunk, self._shots)


def describe(model_name: str, folder: str, threads: int) -> bytes:
    """Version and number of shots of the model that a worker loads."""

    def ask() -> tuple[str, int]:
        engine = load_here(model_name, folder, threads)
        return engine.version, engine.shots

    return packed(ask)


def load_here(model_name: str, folder: str, threads: int) -> ModelEngine:
    """The model in this process of the cluster, where relative names mean what they do in ``folder``."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise ModelError(
            f"The machine {socket.gethostname()!r} of the cluster has no folder {folder!r}: {error.strerror}. Start "
            "from a folder that every machine sees under the same path, and in which Bloom Lens is."
        ) from error
    import torch

    torch.set_num_threads(threads)
    return ModelEngine(load(model_name))


def read_chunks(
    row: object, *, file: Path, layout: Layout, column: int, start: int, answered: Any
) -> Iterator[dict[str, bytes]]:
    """The chunks of the rows after ``start``, one after another; ``row`` is Ray Data's, and means nothing.

    ``answered``, in Ray's memory, are the hashes of the texts before. Of what is new a chunk takes in its texts, so it
    is the one that would be planned had all chunks before it been stored.
    """
    import ray

    seen: set[bytes] = ray.get(answered)
    chunks = plan_chunks(read_rows(file, layout, start), column, start, seen.intersection)
    while True:
        outcome = packed(lambda: next(chunks, None))
        yield {"chunk": outcome}
        chunk = pickle.loads(outcome)
        if not isinstance(chunk, Chunk):
            return
        seen.update(chunk.texts)
