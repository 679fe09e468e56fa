"""REST beside the dashboard, in one process: ``uvicorn api:app --port 7860``.

Both share the model with its queue, the jobs and their database. ``/docs`` describes the requests; ``/`` is the
dashboard. What all requests have in common (errors, tokens, log, metrics) is in gateway.py,
what they carry in messages.py.
"""

import asyncio
import io
import logging
import queue
import shutil
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, TypeVar, cast

import streamlit as st
from anyio import CapacityLimiter, to_thread
from fastapi import Depends, FastAPI, File, Form, HTTPException, Query, Request, Response, UploadFile
from fastapi.responses import StreamingResponse
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import WithJsonSchema
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

import ui
from chains import analysis
from chains.config import load_settings
from chains.entities import find_entities_batch
from chains.errors import BusyError, ChainError, ModelError
from chains.exports import MEDIA_TYPES
from chains.language import detect_languages
from chains.queue import Caller, asking
from chains.registry import MODELS, Model, find_model
from chains.schema import Recognition
from chains.store import Job
from chains.tables import guess_text_column, scan
from gateway import METRICS, Gateway, Outside, Problem, first_part, handle_errors, problem, set_up_log
from messages import (
    EXAMPLE,
    MAX_SHOTS,
    Entities,
    Health,
    JobStatus,
    Languages,
    ModelStatus,
    Name,
    Recognitions,
    Texts,
)  # fmt: skip

__all__ = ["app", "create_app"]

MAX_BODY_BYTES = 4_000_000  # JSON may take twelve bytes for a character
MAX_FILE_BYTES = 200_000_000  # with its form, as in the dashboard
MAX_CALLERS = 64  # requests that ask the model at once: each has a thread
BLOCK_BYTES = 1 << 16
RETRY_LOAD_S = 30.0
LOG = logging.getLogger("bloom_lens.rest")
PAGES = frozenset({"", *(file.stem for file in (Path(__file__).parent / "pages").glob("*.py"))})
# Where Streamlit has files and connections of its own beside the pages.
STREAMLIT = frozenset({"_stcore", "component", "favicon.png", "index.html", "manifest.json", "media", "static"})
LOG_IN = frozenset({"auth", "oauth2callback"})
SHOTS = {"type": "integer", "minimum": 0, "maximum": MAX_SHOTS}
Answer = TypeVar("Answer")


class Served:
    """The model that answers REST: loaded and asked once on a thread of its own, again and again until that works."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.version = ""
        self.problem = f"The model {name!r} is being loaded."
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._warm_up, name="bloom-lens-warm-up", daemon=True)

    def start(self) -> None:
        """Begin to load."""
        self._thread.start()

    def close(self) -> None:
        """Do not try again."""
        self._end.set()
        self._thread.join()

    def model(self) -> Model:
        """The loaded model; raises ``ModelError`` until it has answered for the first time."""
        if not self.version:
            raise ModelError(self.problem)
        # Kept there: the dashboard has the same one, and may have put it out for others meanwhile.
        return ui.load_model(self.name)

    def _warm_up(self) -> None:
        while not self._end.is_set():
            try:
                model = ui.load_model(self.name)
                analysis.analyse([EXAMPLE], model)
                self.version = model.version
                return
            except ChainError as error:
                self.problem = str(error)
                LOG.warning("%s Trying again in %.0f s.", error, RETRY_LOAD_S)
                self._end.wait(RETRY_LOAD_S)


class QueueCollector(Collector):
    """What waits for the served model, counted when somebody asks."""

    def __init__(self, served: Served) -> None:
        self.served = served

    def collect(self) -> Iterator[Metric]:
        """See ``prometheus_client.registry.Collector``."""
        yield GaugeMetricFamily("bloom_lens_ready", "Whether the model answers.", value=bool(self.served.version))
        waiting = GaugeMetricFamily("bloom_lens_queue_waiting", "Prompts that wait for the model.", labels=["lane"])
        pipeline = getattr(self.served.model().llm, "pipeline", None) if self.served.version else None
        if pipeline is not None:  # a model behind a server has none
            counted = pipeline.queue.waiting()
            for lane in ("interactive", "batch"):
                waiting.add_metric([lane], counted[cast(Any, lane)])
        yield waiting


async def ask(request: Request, timeout_s: float, work: Callable[[Model], Answer]) -> tuple[str, Answer]:
    """The model's version and its answer, which ``work`` gets on a thread of its own.

    Raises:
        BusyError: too many ask already, or there is no answer within ``timeout_s``.
        CancelledError: the client has left.
    """
    served, threads = request.app.state.served, request.app.state.threads
    caller = Caller(deadline=time.monotonic() + timeout_s, is_limited=True)
    if threads.available_tokens < 1:
        raise BusyError(f"{MAX_CALLERS} requests ask the model already: try again later.", 1.0)

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        caller.leave()

    def run() -> tuple[str, Answer]:
        with asking(caller):
            model = served.model()
            return model.version, work(model)

    watching = asyncio.create_task(watch())
    try:
        return await to_thread.run_sync(run, limiter=threads)
    finally:
        watching.cancel()


def owned_job(id: str, request: Request) -> Job:
    """The job; raises ``MissingError`` if there is none that the caller may see."""
    return ui.get_jobs().status(id, request.state.owner)


OwnedJob = Annotated[Job, Depends(owned_job)]


class Pipe(io.RawIOBase):
    """A file that one thread writes and another reads in blocks, a few of which it holds; for files of any size."""

    def __init__(self) -> None:
        self._block = bytearray()
        self._blocks: queue.Queue[bytes | Exception] = queue.Queue(maxsize=8)
        self._is_left = threading.Event()

    def writable(self) -> bool:
        """See ``io.RawIOBase``."""
        return True

    def write(self, data: Any) -> int:
        """Waits for the reader; raises ``BrokenPipeError`` when there is none any more."""
        self._block += data
        if len(self._block) >= BLOCK_BYTES:
            self._put(bytes(self._block))
            self._block.clear()
        return len(data)

    def _put(self, block: bytes | Exception) -> None:
        while not self._is_left.is_set():
            try:
                self._blocks.put(block, timeout=0.5)
                return
            except queue.Full:
                continue
        raise BrokenPipeError

    def read_from(self, write: Callable[[BinaryIO], object]) -> Iterator[bytes]:
        """The blocks that ``write`` writes on a thread of its own; what it raises is raised here, after them."""

        def run() -> None:
            try:
                write(cast(BinaryIO, self))
                end: list[bytes | Exception] = [bytes(self._block), b""] if self._block else [b""]
            except Exception as error:
                end = [error]
            with suppress(BrokenPipeError):
                for block in end:
                    self._put(block)

        threading.Thread(target=run, name="bloom-lens-export", daemon=True).start()
        try:
            while block := self._blocks.get():
                if isinstance(block, Exception):
                    raise block
                yield block
        finally:
            self._is_left.set()


def add_routes(app: FastAPI) -> None:
    """All of REST."""
    problems: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem, "content": {"application/problem+json": {}}}
        for status in (400, 401, 403, 404, 405, 409, 413, 422, 429, 503)
    }

    def of(*statuses: int) -> dict[int | str, dict[str, Any]]:
        return {status: problems[status] for status in (401, 403, 422, 429, 503, *statuses)}

    @app.post("/language-detection", responses=of(400, 413), tags=["texts"])
    async def detect_language(body: Texts, request: Request) -> Languages:
        """English, Spanish, French or `unknown`, with probabilities."""
        version, results = await ask(request, body.timeout_s, partial(detect_languages, body.all, shots=body.shots))
        if not body.explain:
            results = [result.model_copy(update={"prompts": (), "replies": ()}) for result in results]
        return Languages(model=version, counts=dict(Counter(result.language for result in results)), results=results)

    @app.post("/entity-recognition", responses=of(400, 413), tags=["texts"])
    async def recognise_entities(body: Texts, request: Request) -> Recognitions:
        """Locations, people and organizations, each with its place in the text (code points, end exclusive)."""
        version, results = await ask(request, body.timeout_s, partial(find_entities_batch, body.all, shots=body.shots))
        together = Recognition(entities=tuple(entity for result in results for entity in result.entities))
        left_out = {} if body.explain else {"prompts": (), "replies": ()}
        return Recognitions(
            model=version,
            counts=together.counts(),
            names=[Name(text=text, type=type, count=count) for (text, type), count in together.distinct().items()],
            results=[Entities(**dict(result) | left_out, occurrences=result.counts()) for result in results],
        )

    @app.post("/jobs", status_code=202, responses=of(400, 413), tags=["files"])
    async def start_job(
        request: Request,
        response: Response,
        file: Annotated[UploadFile, File(description="CSV, TSV, JSON Lines (also .gz), Parquet or Excel; 200 MB.")],
        text_column: Annotated[str, Form(description="Whose texts are read; without it, the likeliest one.")] = "",
        # A form has no null.
        shots: Annotated[int | None, Form(ge=0, le=MAX_SHOTS), WithJsonSchema(SHOTS)] = None,
    ) -> JobStatus:
        """Read every text of a file; the answer says under which id, and `Location` where, to ask for the job."""
        name = Path(file.filename or "").name[:200] or "upload"
        work = partial(submit, file.file, name, text_column, shots, request.app.state.served.name, request.state.owner)
        job = await to_thread.run_sync(work, limiter=request.app.state.files)
        response.headers["Location"] = f"/jobs/{job.id}"
        return JobStatus.of(job)

    @app.get("/jobs/{id}", responses=of(404), tags=["files"])
    def show_job(job: OwnedJob) -> JobStatus:
        """How far the job is."""
        return JobStatus.of(job)

    @app.get("/jobs/{id}/result", responses=of(404, 409), response_class=StreamingResponse, tags=["files"])
    def export_job(
        job: OwnedJob,
        format: Literal["csv", "jsonl", "parquet", "xlsx"] = "csv",
        shape: Annotated[Literal["wide", "long"], Query(description="A row per text, or per name.")] = "wide",
        neutralise: Annotated[bool, Query(description="Whether a spreadsheet is kept from running cells.")] = True,
        partial_: Annotated[bool, Query(alias="partial", description="Also before all rows are done.")] = False,
    ) -> StreamingResponse:
        """The rows of the file with their results."""
        if job.state != "done" and not partial_:
            words = f"{job.done:,} of {job.total:,} rows are done and the job is {job.state}"
            raise HTTPException(409, f"{words}: ask again later, or with partial=true for these rows.")
        export = partial(ui.get_jobs().export, job.id, format=format, shape=shape, neutralise=neutralise)
        blocks = Pipe().read_from(export)
        first = next(blocks, b"")  # what goes wrong at once is a problem document, and not half a file
        return StreamingResponse(
            chain_blocks(first, blocks),
            media_type=MEDIA_TYPES[format],
            headers={"Content-Disposition": f'attachment; filename="{job.id}.{format}"'},
        )

    @app.delete("/jobs/{id}", status_code=204, responses=of(404), tags=["files"])
    def delete_job(job: OwnedJob) -> None:
        """Stop the job and remove it, its file, and the answers that no other job uses."""
        ui.get_jobs().delete(job.id)

    @app.get("/models", responses=of(), tags=["about"])
    def list_models(request: Request) -> list[ModelStatus]:
        """The models that are known by name, and which of them answers here."""
        served = find_model(request.app.state.served.name)
        infos = [*MODELS.values()] + [served] * (served.name not in MODELS)
        return [
            ModelStatus(
                name=info.name, licence=info.licence, parameters=info.parameters, memory_bytes=info.memory_bytes,
                shots=info.shots, is_served=info.name == served.name,
            )
            for info in infos
        ]  # fmt: skip

    @app.get("/health", responses={503: problems[503]}, tags=["about"])
    def show_health(request: Request) -> Health:
        """Whether the model answers."""
        served: Served = request.app.state.served
        if not served.version:
            raise BusyError(served.problem, 1.0)
        return Health(model=served.version)

    @app.get("/metrics", responses=of(), response_class=Response, tags=["about"])
    def show_metrics(request: Request) -> Response:
        """Figures for Prometheus."""
        own = generate_latest(request.app.state.collector)
        return Response(generate_latest(METRICS) + own, media_type=CONTENT_TYPE_LATEST)


def chain_blocks(first: bytes, blocks: Iterator[bytes]) -> Iterator[bytes]:
    """``first`` and then all of ``blocks``, which end when nobody reads on."""
    try:
        yield first
        yield from blocks
    finally:
        cast(Any, blocks).close()


def submit(file: BinaryIO, name: str, text_column: str, shots: int | None, model: str, owner: str) -> Job:
    """A new job over an uploaded file; see ``Jobs.submit``."""
    with ui.new_file("uploads") as copy:
        shutil.copyfileobj(file, copy)
    path = Path(copy.name)
    try:
        table = scan(path, name=name)
        jobs = ui.get_jobs()
        id = jobs.submit(table, text_column or guess_text_column(table), model, shots, name=name, owner=owner)
        return jobs.status(id)
    finally:
        path.unlink(missing_ok=True)


class WrongMethod:
    """Answers what a path does not take."""

    def __init__(self, allowed: set[str]) -> None:
        self.allowed = ", ".join(sorted(allowed))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        words = f"{scope['path']} takes {self.allowed}, and this was {scope['method']}."
        await problem(405, words, headers={"Allow": self.allowed})(scope, receive, send)


def refuse_other_methods(routes: list[BaseRoute]) -> list[Route]:
    """A route for each path of ``routes`` that answers all other methods: the dashboard would take them for a page."""
    methods: dict[str, set[str]] = {}
    for route in routes:
        if path := getattr(route, "path", "") if getattr(route, "methods", None) else "":
            methods.setdefault(path, set()).update(cast(Any, route).methods)
    return [Route(path, cast(Any, WrongMethod(allowed)), methods=None) for path, allowed in methods.items()]


class Dashboard:
    """The dashboard where it has something to show; any other path is a problem, and not a page that looks fine."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        part = first_part(scope)
        app: ASGIApp = self.app
        if scope["type"] == "http" and part not in PAGES | STREAMLIT | LOG_IN:
            app = problem(404, f"There is nothing at {scope['path'][:200]!r}: /docs lists what there is.")
        elif scope["type"] == "http" and part in PAGES and scope["method"] not in {"GET", "HEAD"}:
            app = WrongMethod({"GET", "HEAD"})
        await app(scope, receive, send)


def create_app(*, with_dashboard: bool = True) -> FastAPI:
    """The program; what it needs of the environment is read when it starts."""

    @asynccontextmanager
    async def live(app: FastAPI) -> AsyncIterator[None]:
        set_up_log()
        served = app.state.served = Served(load_settings().model)
        app.state.collector = QueueCollector(served)
        app.state.threads, app.state.files = CapacityLimiter(MAX_CALLERS), CapacityLimiter(2)
        async with AsyncExitStack() as opened:
            if dashboard:
                await opened.enter_async_context(dashboard.lifespan()(app))
            await to_thread.run_sync(ui.get_jobs)  # which go on with what other processes left
            served.start()
            yield
            # All requests have their answers by now. A job ends with the chunk that is being computed, and goes on
            # with the next one in the next process.
            await to_thread.run_sync(served.close)
            await to_thread.run_sync(ui.get_jobs.clear)

    app = FastAPIOffline(
        title="Bloom Lens",
        description="In which language a text is, and which locations, people and organizations it names.",
        redoc_url=None,
        lifespan=live,
    )
    handle_errors(app, load_settings())
    add_routes(app)
    app.router.routes += refuse_other_methods(app.routes)
    parts = {str(getattr(route, "path", "")).split("/")[1] for route in app.routes}
    bodies = dict.fromkeys(parts, MAX_BODY_BYTES) | {"jobs": MAX_FILE_BYTES}
    app.add_middleware(Gateway, parts=bodies, settings=load_settings())
    app.add_middleware(Outside, parts=frozenset(bodies) | PAGES | STREAMLIT | LOG_IN)
    dashboard = st.App(Path(__file__).with_name("streamlit_app.py")) if with_dashboard else None
    app.mount("/", Dashboard(dashboard) if dashboard else WrongPath())
    return app


class WrongPath:
    """Answers any path."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await Dashboard(problem(404, "There is no dashboard here."))(scope, receive, send)


app = create_app()
