"""A queue in front of one model: one worker thread answers the calls of all threads, several of them in one batch.

Calls that somebody waits for (``interactive``: a page, a request) go before those of a job (``batch``), which come in
parts of about half a second, so a single text never waits behind a file; and a job gets its turn every few seconds
however many others ask. Calls of one kind are joined: every call gives the next part as many prompts as the others, so
a short one is not held up by a long one. Knows nothing of models: prompts in, replies out.

Who asks, how long they wait and whether they still do is a ``Caller``, which belongs to the context, not to the call:
what lies between an edge and the model (chains, LangChain) passes it on without knowing of it.
"""

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

from chains.errors import BusyError

__all__ = ["MAX_WAITING", "Caller", "Lane", "Queue", "asking"]

Lane = Literal["interactive", "batch"]
Run = Callable[[list[str], dict[str, Any]], list[Any]]

MAX_WAITING = 1024  # prompts of interactive calls; a call that finds so many and is limited is refused
PART_S = 0.5  # how long a part should take: the longest wait of a call that comes next
ALONE_S = 5.0  # the same for a job while nobody else asks: larger parts are faster
ATTENDED_S = 60.0  # for so long after an interactive call another one is expected
MIN_PART = 8  # prompts
TURN_S = 3.0  # how long a job waits for its turn while others ask
IDLE_S = 5.0  # how long the worker waits for calls; then it ends, and a model that nobody holds can go


@dataclass(eq=False)
class Caller:
    """On whose behalf a model is asked.

    ``deadline`` is a time of ``time.monotonic()``. A caller that ``is_limited`` is refused when too many wait; any
    other waits as long as it takes, which is right for whoever has a thread of their own and nobody to answer to.
    """

    lane: Lane = "interactive"
    deadline: float = math.inf
    is_limited: bool = False
    _gone: "Future[None]" = field(default_factory=Future, init=False, repr=False)

    def leave(self) -> None:
        """Give up what the caller waits for, from any thread: its calls end with ``CancelledError``."""
        if not self._gone.done():
            self._gone.set_result(None)

    @property
    def has_left(self) -> bool:
        """Whether the caller gave up."""
        return self._gone.done()

    def wait_for(self, answer: "Future[list[Any]]") -> list[Any]:
        """The answer, as soon as it is there; see ``Queue.ask`` for the errors."""
        left = self.deadline - time.monotonic()
        try:
            futures: list[Future[Any]] = [answer, self._gone]
            wait(futures, None if left == math.inf else max(0.0, left), FIRST_COMPLETED)
            if answer.done():
                return answer.result()
        finally:
            answer.cancel()
        if self.has_left:
            raise CancelledError("The caller has left.")
        raise BusyError("The model had no time for this until the deadline: ask for less, or try again later.", 1.0)


CALLER: ContextVar[Caller] = ContextVar("caller", default=Caller())  # noqa: B039  # nobody can make the default leave


@contextmanager
def asking(caller: Caller) -> Iterator[Caller]:
    """Ask models on behalf of ``caller`` inside the block, in this thread and in those that LangChain starts for it."""
    token = CALLER.set(caller)
    try:
        yield caller
    finally:
        CALLER.reset(token)


@dataclass(eq=False)
class Call:
    """Prompts that one caller waits for: ``waiting`` are the places of those that no part has taken yet."""

    caller: Caller
    kind: str
    options: dict[str, Any]
    prompts: Sequence[str]
    waiting: deque[int]
    replies: list[Any]
    missing: int  # replies
    since: float
    answer: "Future[list[Any]]" = field(default_factory=Future)

    def joins(self, other: "Call") -> bool:
        """Whether prompts of both may run in one part; a call without a kind runs alone and whole."""
        return self is other or bool(self.kind) and self.kind == other.kind and self.options == other.options


Part = list[tuple[Call, int]]  # a call, and the place of one of its prompts


class Queue:
    """The calls that wait for ``run``, which answers prompts with as many replies and is never run twice at once."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._calls: list[Call] = []
        self._changed = threading.Condition()
        self._worker: threading.Thread | None = None
        self._pace_s: dict[str, float] = {}  # seconds per prompt, by kind
        self._attended = -math.inf  # when the last interactive call came
        self._served = -math.inf  # when a job last had its turn

    def ask(self, prompts: Sequence[str], options: dict[str, Any], kind: str = "") -> list[Any]:
        """A reply per prompt, in order, after waiting for its turn.

        Calls of the same ``kind`` with equal ``options`` share batches. One without a kind runs alone and whole.

        Raises:
            BusyError: the caller is limited and too many prompts wait, or the deadline passed.
            CancelledError: the caller has left.
            Exception: what ``run`` raised.
        """
        caller, now = asked_by(), time.monotonic()
        call = Call(
            caller, kind, options, prompts, deque(range(len(prompts))), [None] * len(prompts), len(prompts), now
        )
        if not prompts:
            return []
        with self._changed:
            if caller.is_limited and (ahead := self.waiting()["interactive"]) and ahead + len(prompts) > MAX_WAITING:
                raise BusyError(
                    f"{ahead:,} texts or parts of texts wait for the model, and {MAX_WAITING:,} may: try again later.",
                    self._seconds(self._calls),
                )
            if caller.lane == "interactive":
                self._attended = now
            self._calls.append(call)
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="bloom-lens-model", daemon=True)
                self._worker.start()
            self._changed.notify()
        return caller.wait_for(call.answer)

    def waiting(self) -> Counter[Lane]:
        """How many prompts wait, by lane."""
        with self._changed:
            counted: Counter[Lane] = Counter()
            for call in self._calls:
                if not call.answer.done():
                    counted[call.caller.lane] += len(call.waiting)
            return counted

    def _work(self) -> None:
        while part := self._take():
            started = time.monotonic()
            kind = part[0][0].kind
            self._answer(part)
            pace = (time.monotonic() - started) / len(part)
            # A small part says little about a large one: the pace of the last few counts.
            self._pace_s[kind] = 0.7 * self._pace_s.get(kind, pace) + 0.3 * pace
            del part  # must not keep anything alive while the worker waits

    def _take(self) -> Part:
        """The next part, or an empty one after ``IDLE_S`` without a call: then the worker has to end."""
        with self._changed:
            until = time.monotonic() + IDLE_S
            while True:
                self._calls = [call for call in self._calls if call.waiting and not call.answer.done()]
                if self._calls:
                    return self._next_part()
                if (left := until - time.monotonic()) <= 0:
                    self._worker = None
                    return []
                self._changed.wait(left)

    def _next_part(self) -> Part:
        now = time.monotonic()
        jobs = [call for call in self._calls if call.caller.lane == "batch"]
        others = [call for call in self._calls if call.caller.lane == "interactive"]
        is_turn = bool(jobs) and now - max(self._served, jobs[0].since) > TURN_S
        calls = jobs if is_turn or not others else others
        first = calls[0]
        if first.caller.lane == "batch":
            self._served = now
        if not first.kind:
            return [(first, first.waiting.popleft()) for _ in range(len(first.waiting))]
        is_attended = first.caller.lane == "interactive" or now - self._attended < ATTENDED_S
        aim_s = PART_S if is_attended else ALONE_S
        pace_s = self._pace_s.get(first.kind)
        size = max(MIN_PART, int(aim_s / pace_s)) if pace_s else MIN_PART
        part: Part = []
        givers = deque(call for call in calls if call.joins(first))
        while givers and len(part) < size:
            call = givers.popleft()
            part.append((call, call.waiting.popleft()))
            if call.waiting:
                givers.append(call)
        return part

    def _answer(self, part: Part) -> None:
        """Run a part and hand its replies on; if it fails, each call's prompts apart, so that the error is its own."""
        calls = {call: [place for other, place in part if other is call] for call, _ in part}
        order = [(call, place) for call, places in calls.items() for place in places]
        try:
            replies = self.run([call.prompts[place] for call, place in order], part[0][0].options)
        except BaseException as error:  # the worker must live on, and the caller hear of it
            if len(calls) == 1:
                settle(part[0][0].answer, error)
                return
            for call, places in calls.items():
                self._answer([(call, place) for place in places])
            return
        for (call, place), reply in zip(order, replies, strict=True):
            call.replies[place] = reply
            call.missing -= 1
        for call in calls:
            if not call.missing:
                settle(call.answer, call.replies)

    def _seconds(self, calls: Sequence[Call]) -> float:
        """About how long the model is busy with what waits of ``calls``."""
        return max(1.0, sum(len(call.waiting) * self._pace_s.get(call.kind, 0.0) for call in calls))


def asked_by() -> Caller:
    """The caller of this context."""
    return CALLER.get()


def settle(answer: "Future[list[Any]]", outcome: list[Any] | BaseException) -> None:
    """Give a call its outcome, unless its caller has given it up."""
    if not answer.set_running_or_notify_cancel():
        return
    if isinstance(outcome, BaseException):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)
