import csv
import gc
import threading
import time
import weakref
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import pytest

from chains import analysis, queue
from chains.errors import BusyError
from chains.exports import to_record
from chains.language import language_chain
from chains.prompts import Tasks
from chains.queue import Caller, Queue, asking
from chains.registry import load

OPTIONS = {"labels": "a"}


class Held:
    """Answers ``x`` by ``X``, keeps every part, and waits before each until it may go on."""

    def __init__(self):
        self.parts = []
        self.entered, self.may_go = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, prompts, options):
        self.parts.append(list(prompts))
        self.entered.release()
        assert self.may_go.acquire(timeout=10)
        if "bad" in prompts:
            raise ValueError("bad")
        return [prompt.upper() for prompt in prompts]

    def let_go(self, parts=1000):
        self.may_go.release(parts)


@pytest.fixture
def held(threads):
    held = Held()
    yield held
    held.let_go()


@pytest.fixture
def threads():
    with ThreadPoolExecutor(50) as pool:
        yield pool


def wait_until(is_so):
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def ask(queue, prompts, caller=None, kind="labels", options=OPTIONS):
    with asking(caller or Caller()):
        return queue.ask(prompts, options, kind)


def occupy(queue, held, threads):
    """Have the worker at work on something."""
    first = threads.submit(ask, queue, ["first"])
    assert held.entered.acquire(timeout=10)
    return first


def enqueue(queue, threads, prompts, *rest, **options):
    """Have one more call wait, after all that wait already."""
    before = queue.waiting().total()
    future = threads.submit(ask, queue, prompts, *rest, **options)
    wait_until(lambda: queue.waiting().total() == before + len(prompts))
    return future


def test_waiting_calls_of_a_kind_share_a_batch_and_get_their_own_replies(held, threads):
    queue = Queue(held)
    occupy(queue, held, threads)
    calls = [enqueue(queue, threads, prompts) for prompts in (["a", "b"], ["c"], ["a"])]
    other = enqueue(queue, threads, ["d"], options={"labels": "b"})
    alone = enqueue(queue, threads, ["e", "f"], kind="")
    held.let_go()
    assert [call.result(10) for call in calls] == [["A", "B"], ["C"], ["A"]]
    assert (other.result(10), alone.result(10)) == (["D"], ["E", "F"])
    assert held.parts == [["first"], ["a", "b", "c", "a"], ["d"], ["e", "f"]]
    assert queue.ask([], OPTIONS) == []


def test_a_short_call_is_not_held_up_by_a_long_one(held, threads, monkeypatch):
    monkeypatch.setattr(queue, "PART_S", 0)  # parts as small as they may be
    line = Queue(held)
    occupy(line, held, threads)
    long = enqueue(line, threads, [f"l{number}" for number in range(20)])
    short = enqueue(line, threads, ["s1", "s2"])
    held.let_go(2)
    assert short.result(10) == ["S1", "S2"]
    assert len(held.parts[1]) == 8 and not long.done()
    held.let_go()
    assert long.result(10) == [f"L{number}" for number in range(20)]
    assert sum(map(len, held.parts)) == 23


def test_a_text_waits_for_one_part_of_a_job_and_not_for_its_file(held, threads):
    queue = Queue(held)
    job = threads.submit(ask, queue, [f"j{number}" for number in range(30)], Caller("batch"))
    assert held.entered.acquire(timeout=10)
    text = enqueue(queue, threads, ["text"])
    held.let_go(2)
    assert text.result(10) == ["TEXT"]
    assert held.parts[:2] == [[f"j{number}" for number in range(8)], ["text"]]
    held.let_go()
    assert job.result(10) == [f"J{number}" for number in range(30)]


def test_a_job_has_its_turn_however_many_others_ask(held, threads, monkeypatch):
    monkeypatch.setattr(queue, "TURN_S", 0.05)
    line = Queue(held)
    occupy(line, held, threads)
    job = enqueue(line, threads, ["j1", "j2"], Caller("batch"))
    text = enqueue(line, threads, [f"t{number}" for number in range(100)])
    time.sleep(0.1)
    held.let_go(2)
    assert job.result(10) == ["J1", "J2"] and not text.done()
    assert held.parts[1] == ["j1", "j2"]


def test_a_full_queue_refuses_who_is_limited_and_says_when_to_come_back(held, threads, monkeypatch):
    monkeypatch.setattr(queue, "MAX_WAITING", 3)
    line = Queue(held)
    occupy(line, held, threads)
    limited = Caller(is_limited=True)
    calls = [enqueue(line, threads, ["a"] * 4, limited)]  # more than may wait, but it is the only one
    with pytest.raises(BusyError, match="4 texts or parts of texts wait for the model, and 3 may") as caught:
        ask(line, ["b"], limited)
    assert caught.value.retry_after_s >= 1
    calls += [enqueue(line, threads, ["c"]), enqueue(line, threads, ["d"], Caller("batch"))]
    held.let_go()
    assert [call.result(10) for call in calls] == [["A"] * 4, ["C"], ["D"]]
    assert ask(line, ["b"], limited) == ["B"]


def test_a_deadline_ends_the_wait_and_what_was_asked_is_never_run(held, threads):
    queue = Queue(held)
    occupy(queue, held, threads)
    with pytest.raises(BusyError, match="until the deadline"):
        ask(queue, ["late"], Caller(deadline=time.monotonic() + 0.02))
    with pytest.raises(BusyError, match="until the deadline"):
        ask(queue, ["late"], Caller(deadline=time.monotonic() - 1))
    assert queue.waiting().total() == 0
    held.let_go()
    assert ask(queue, ["next"]) == ["NEXT"]
    assert held.parts == [["first"], ["next"]]


def test_who_leaves_waits_no_longer_and_costs_at_most_the_part_that_runs(held, threads):
    queue = Queue(held)
    caller = Caller()
    call = threads.submit(ask, queue, ["a"] * 50, caller)
    assert held.entered.acquire(timeout=10)
    caller.leave()
    caller.leave()
    with pytest.raises(CancelledError):
        call.result(10)
    with pytest.raises(CancelledError):
        ask(queue, ["later"], caller)
    held.let_go()
    assert ask(queue, ["next"]) == ["NEXT"]
    assert held.parts == [["a"] * 8, ["next"]]


def test_an_error_is_its_own_calls_and_not_that_of_those_who_share_the_batch(held, threads):
    queue = Queue(held)
    occupy(queue, held, threads)
    calls = [enqueue(queue, threads, prompts) for prompts in (["a"], ["bad", "x"], ["c"])]
    held.let_go()
    assert (calls[0].result(10), calls[2].result(10)) == (["A"], ["C"])
    with pytest.raises(ValueError, match="bad"):
        calls[1].result(10)
    assert ask(queue, ["next"]) == ["NEXT"]


def test_parts_take_about_half_a_second_by_what_prompts_took_before():
    parts = []

    def run(prompts, options):
        parts.append(len(prompts))
        time.sleep(0.001 * len(prompts))
        return prompts

    queue = Queue(run)
    queue.ask(["a"] * 1500, OPTIONS, "labels")
    assert parts[0] == 8 and 100 < max(parts) <= 500


def test_a_model_that_nobody_holds_any_more_is_let_go(monkeypatch):
    monkeypatch.setattr(queue, "IDLE_S", 0.02)

    class Model:
        def run(self, prompts, options):
            return prompts

    models = [Model()]
    models[0].queue, gone = Queue(models[0].run), weakref.ref(models[0])
    assert ask(models[0].queue, ["a"]) == ["a"]
    wait_until(lambda: models[0].queue._worker is None)
    assert ask(models[0].queue, ["b"]) == ["b"], "it begins again"
    models.clear()
    time.sleep(0.1)
    wait_until(lambda: gc.collect() >= 0 and gone() is None)


def test_jobs_ask_as_batch_and_others_do_not(tiny_model, monkeypatch):
    from chains.batch import Chunk, ModelEngine

    lanes = []
    run = tiny_model.llm.pipeline.queue.ask
    spy = lambda *args: lanes.append(queue.asked_by().lane) or run(*args)  # noqa: E731
    monkeypatch.setattr(tiny_model.llm.pipeline.queue, "ask", spy)
    ModelEngine(tiny_model).compute(Chunk(0, 1, texts={b"a": "Hola."}), 0, Tasks())
    assert set(lanes) == {"batch"}
    lanes.clear()
    language_chain(tiny_model).batch([{"text": "Hola."}, {"text": "Adiós."}])
    assert lanes == ["interactive"]


def test_measuring_a_text_does_not_wait_for_the_model(tiny_model, threads, monkeypatch):
    decoder, entered, gate = tiny_model.llm.pipeline.decoder, threading.Event(), threading.Event()
    score = decoder.score_labels

    def slow(*args):
        entered.set()
        assert gate.wait(10)
        return score(*args)

    monkeypatch.setattr(decoder, "score_labels", slow)
    asked = threads.submit(language_chain(tiny_model).invoke, {"text": "Hola."})
    try:
        assert entered.wait(10)
        assert threads.submit(tiny_model.count_tokens, "Hola.").result(5) > 0
    finally:
        gate.set()
    assert asked.result(10).language


@pytest.mark.model
def test_answers_of_many_threads_are_those_of_one():
    model = load("embedded")
    with (Path(__file__).parent.parent / "pages" / "sample.csv").open(encoding="utf-8-sig") as file:
        samples = [row["text"] for row in csv.DictReader(file)]
    texts = [f"{a[:24]} {b[-10:]}" for a in samples for b in samples[:7]][:200]
    expected = [to_record(one) for one in analysis.analyse(texts, model)]
    sizes = [1, 1, 2, 1, 5, 17, 1]
    portions, place = [], 0
    while place < len(texts):
        size = sizes[len(portions) % len(sizes)]
        portions.append((texts[place : place + size], Caller("batch" if size == 17 else "interactive")))
        place += size

    def answer(portion):
        with asking(portion[1]):
            return [to_record(one) for one in analysis.analyse(portion[0], model)]

    with ThreadPoolExecutor(24) as pool:
        answers = [record for part in pool.map(answer, portions) for record in part]
    for given, known in zip(answers, expected, strict=True):
        assert given["language_probability"] == pytest.approx(known["language_probability"], abs=1e-3)
        assert given | {"language_probability": 0} == known | {"language_probability": 0}
