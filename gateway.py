"""What every request passes: an id, headers for browsers, a line in the log, metrics; REST also tokens and limits.

An error is a problem document (RFC 9457, ``application/problem+json``). Nothing of a request's body or query is logged,
and of an error in the program its kind and place, but not its message, which may quote a text.
"""

import base64
import hashlib
import hmac
import json
import logging
import math
import re
import secrets
import time
import traceback
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import CancelledError
from datetime import UTC, datetime
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any

import streamlit
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from pydantic import BaseModel
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chains.config import Settings
from chains.errors import BusyError, ChainError, MissingError, ModelError, QuotaError, ReplyError, StoreError

__all__ = [
    "METRICS", "OPEN", "Gateway", "Outside", "Problem", "Rate", "first_part", "handle_errors", "problem", "set_up_log",
]  # fmt: skip

LOG = logging.getLogger("bloom_lens.rest")
OPEN = frozenset({"health", "docs", "openapi.json", "static-offline-docs"})  # what needs no token
REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
CLIENT_LEFT = 499  # nginx's number, which HTTP has no word for
TOO_LARGE = "The request has more than the {:,} bytes that may be sent here. See /docs for the limits."
MAX_CALLERS = 10_000  # whose rate is remembered
STATUS = {
    MissingError: 404, QuotaError: 429, BusyError: 503, ModelError: 503, StoreError: 503, ReplyError: 502,
    ChainError: 422,
}  # fmt: skip
FILES = frozenset({"static", "static-offline-docs", "component", "favicon.png"})  # too many for a line each
# No answer is shown in another site's frame, none is taken for another type than it has, no other site is told of it.
FOR_BROWSERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
NOTHING = "default-src 'none'; frame-ancestors 'none'"

METRICS = CollectorRegistry()
ProcessCollector(registry=METRICS)
REQUESTS = Counter(
    "bloom_lens_requests", "Requests that were answered.", ["method", "path", "status"], registry=METRICS
)
SECONDS = Histogram("bloom_lens_request_seconds", "Time until the last byte of an answer.", ["path"], registry=METRICS)


class Problem(BaseModel):
    """An error as RFC 9457 has it; ``errors`` are those of single fields, each with its place and what is wrong."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[dict[str, Any]] | None = None


def problem(
    status: int, detail: str, *, headers: Mapping[str, str] | None = None, errors: list[dict[str, Any]] | None = None
) -> JSONResponse:
    """A problem document as a response."""
    title = "Client Closed Request" if status == CLIENT_LEFT else HTTPStatus(status).phrase
    content = Problem(title=title, status=status, detail=detail, errors=errors).model_dump(exclude_none=True)
    return JSONResponse(content, status, headers, media_type="application/problem+json")


def try_again(status: int, detail: str, after_s: float) -> JSONResponse:
    """A problem that goes away by itself in about so many seconds."""
    return problem(status, detail, headers={"Retry-After": str(math.ceil(after_s))})


def handle_errors(app: FastAPI, settings: Settings) -> None:
    """Let every error of ``app`` become a problem document."""

    @app.exception_handler(HTTPException)
    async def from_http(request: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, error.detail, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def from_input(request: Request, error: RequestValidationError) -> JSONResponse:
        errors = [{"place": [*map(str, one["loc"])], "problem": one["msg"]} for one in error.errors()]
        first = f"{'.'.join(errors[0]['place'])}: {errors[0]['problem']}"
        return problem(422, f"The request is not as it should be. {first}. See /docs.", errors=errors)

    @app.exception_handler(ChainError)
    async def from_chain(request: Request, error: ChainError) -> JSONResponse:
        status = next(status for kind, status in STATUS.items() if isinstance(error, kind))
        if settings.is_shared and isinstance(error, StoreError):  # whose words name hosts and folders
            LOG.error({"problem": str(error)})
            return try_again(status, "Jobs cannot be stored or read at the moment; the log says why.", 30.0)
        if status in (429, 503):
            return try_again(status, str(error), getattr(error, "retry_after_s", 30.0))
        return problem(status, str(error))

    @app.exception_handler(CancelledError)
    async def from_leaving(request: Request, error: CancelledError) -> JSONResponse:
        return problem(CLIENT_LEFT, "The client left before there was an answer.")


@cache
def page_policy(is_swagger: bool) -> str:
    """The Content-Security-Policy of a page: everything from this server, scripts only from files.

    Streamlit styles in place and has one script in its page, allowed by its hash; Swagger's page has its own script,
    and nothing of a user.
    """
    page = Path(streamlit.__file__).with_name("static") / "index.html"
    scripts = re.findall(r"<script>(.*?)</script>", page.read_text(encoding="utf-8"), re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = "'unsafe-inline'" if is_swagger else " ".join(f"'sha256-{hash}'" for hash in hashes)
    return (
        f"default-src 'self'; script-src 'self' {allowed}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; "
        "base-uri 'self'; form-action 'self'; "
        "frame-ancestors 'none'"
    )


class Outside:
    """ASGI middleware around all of ``app``: an id, headers for browsers, metrics and a line in the log per request.

    ``parts`` are the first parts of all paths that there are, which metrics tell apart.
    """

    def __init__(self, app: ASGIApp, parts: frozenset[str]) -> None:
        self.app = app
        self.parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request, started, status = HTTPConnection(scope), time.perf_counter(), 0
        given = request.headers.get("X-Request-Id", "")
        id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        part = first_part(scope)

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=list(message["headers"]))
                is_page = headers.get("Content-Type", "").startswith("text/html")
                policy = page_policy(part == "docs") if is_page else NOTHING
                headers.update(FOR_BROWSERS | {"Content-Security-Policy": policy, "X-Request-Id": id})
                message["headers"] = headers.raw
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except Exception as error:
            LOG.error({"request": id}, exc_info=error)
            if status:
                raise ConnectionAbortedError("The answer had begun.") from None
            words = "Something unexpected went wrong here; the log has it under this request's X-Request-Id."
            await problem(500, words)(scope, receive, send_with_headers)
        finally:
            seconds = time.perf_counter() - started
            # The route as it was declared: a label per job would be too many.
            path = getattr(scope.get("route"), "path", None) or (f"/{part}" if part in self.parts else "other")
            method = scope["method"] if scope["method"] in {"GET", "POST", "DELETE"} else "other"
            REQUESTS.labels(method, path, status).inc()
            SECONDS.labels(path).observe(seconds)
            if part not in FILES or status >= 400:
                line = {"request": id, "method": method, "path": path, "status": status, "ms": round(1000 * seconds)}
                owner = scope.get("state", {}).get("owner")
                LOG.info(line | ({"caller": owner} if owner else {}))


class Rate:
    """How many requests callers may send: ``per_minute`` in the long run, and at first as many at once."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # by caller: requests, and when that was so

    def take(self, caller: str, now: float) -> float:
        """0.0 if the caller may send a request at ``now``, else the seconds until then."""
        if not self.per_minute:
            return 0.0
        left, since = self._left.pop(caller, (float(self.per_minute), now))
        left = min(self.per_minute, left + (now - since) * self.per_minute / 60)
        is_allowed = left >= 1
        self._left[caller] = (left - is_allowed, now)
        if len(self._left) > MAX_CALLERS:
            self._left.popitem(last=False)
        return 0.0 if is_allowed else (1 - left) * 60 / self.per_minute


class Gateway:
    """ASGI middleware around REST, whose paths begin with one of ``parts``; other requests pass untouched.

    ``parts`` says how many bytes a request's body may have. The caller's name, or ``""`` in a deployment that is not
    shared, stands in ``request.state.owner``.
    """

    def __init__(self, app: ASGIApp, parts: Mapping[str, int], settings: Settings) -> None:
        self.app = app
        self.parts = parts
        self.is_shared = settings.is_shared
        self.tokens = settings.tokens
        self.rate = Rate(settings.requests_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or first_part(scope) not in self.parts:
            await self.app(scope, receive, send)
            return
        request = HTTPConnection(scope)
        limit, received = self.parts[first_part(scope)], 0

        async def receive_some() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise HTTPException(413, TOO_LARGE.format(limit))
            return message

        owner = "" if first_part(scope) in OPEN else self._owner(request)
        request.state.owner = owner
        app: ASGIApp = self.app
        if owner is None:
            app = problem(
                401, "Expected the header 'Authorization: Bearer <token>' with a known token.",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        elif is_from_another_site(request):
            app = problem(403, "A page of another site sent this: only a page of this server, or a program, may.")
        elif int(request.headers.get("Content-Length", "0")) > limit:  # the server lets digits through only
            app = problem(413, TOO_LARGE.format(limit))
        elif first_part(scope) not in OPEN and (after_s := self._wait_s(request, owner)):
            app = try_again(429, f"More than {self.rate.per_minute} requests a minute: send fewer.", after_s)
        await app(scope, receive_some, send)

    def _owner(self, request: HTTPConnection) -> str | None:
        """The name of the caller whose token came with the request; ``None`` if none did and one should."""
        if not self.is_shared:
            return ""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        hash = hashlib.sha256(token.strip().encode()).hexdigest()
        # All are compared, so that the time taken tells nothing.
        owners = [name for name, known in self.tokens.items() if hmac.compare_digest(hash, known)]
        return owners[0] if owners and scheme.lower() == "bearer" else None

    def _wait_s(self, request: HTTPConnection, owner: str) -> float:
        host = request.client.host if request.client else ""
        return self.rate.take(owner or f"host {host}", time.monotonic())


def is_from_another_site(request: HTTPConnection) -> bool:
    """Whether a browser says so: any page can send a form to a server on its reader's machine.

    Read from ``Origin``, which browsers put into every POST and DELETE (https://fetch.spec.whatwg.org/#origin-header).
    """
    origin = request.headers.get("Origin")
    return origin is not None and origin.partition("://")[2] != request.headers.get("Host", "")


def first_part(scope: Scope) -> str:
    """The first part of the path, which says whose it is."""
    return str(scope["path"]).split("/")[1] if "/" in scope["path"] else ""


class JsonLines(logging.Formatter):
    """A line of JSON per record; a message that is a dictionary becomes part of it."""

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter``."""
        own = record.msg if isinstance(record.msg, dict) else {"message": record.getMessage()}
        if record.exc_info and record.exc_info[0]:
            place = "".join(traceback.format_tb(record.exc_info[2]))
            own = own | {"error": record.exc_info[0].__name__, "place": place}
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return json.dumps({"time": time, "level": record.levelname.lower(), **own}, ensure_ascii=False)


def set_up_log() -> None:
    """Write this program's log to standard error as lines of JSON, one of them per request.

    uvicorn's own line is left out: it has the query, where a text may stand.
    """
    logging.getLogger("uvicorn.access").disabled = True
    for name in ("bloom_lens", "chains"):
        logger = logging.getLogger(name)
        if not logger.handlers:
            handler = logging.StreamHandler()
            handler.setFormatter(JsonLines())
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
            logger.propagate = False
