import io
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from chains import analysis, batch
from chains.batch import Chunk, Jobs, answer_base, is_alive, plan_chunks, tasks_of, text_hash, this_process
from chains.errors import ChainError, CorrectionError, MissingError, ModelError, StoreError, TableError, TaskError
from chains.evaluation import read_gold
from chains.exports import to_record
from chains.prompts import KINDS, Tasks, load_task
from chains.schema import Analysis, Correction, Detection, Entity, Gold, Mention, Recognition
from chains.store import Store
from chains.tables import Row, scan
from training.gold import read_examples
from training.gold import tasks_of as tasks_of_gold

MODEL = SimpleNamespace(name="fake", version="fake 1 · abc", info=SimpleNamespace(shots=3))
CONTENT = 'id,text\n1,"one, two"\n2,bad\n3,\n4,four\n5,four\n'


def answer(text):
    if "bad" in text:
        return Analysis(text=text, error="no reply", model=MODEL.version)
    detection = Detection(language="english", probability=1 / (1 + len(text)))
    return Analysis(text=text, detection=detection, recognition=Recognition(), model=MODEL.version)


class Scripted:
    """Stands in for ``analysis.analyse``: keeps every call, and can be held before it answers."""

    def __init__(self):
        self.calls = []
        self.tasks = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.error = None
        self.answer = answer

    def __call__(self, texts, model, *, shots=None, tasks=None):
        self.calls.append((list(texts), shots))
        self.tasks.append(tasks)
        self.entered.set()
        assert self.gate.wait(10)
        if self.error:
            raise self.error
        return [self.answer(text) for text in texts]

    def texts(self):
        return [texts for texts, _ in self.calls]


@pytest.fixture
def analyse(monkeypatch):
    scripted = Scripted()
    monkeypatch.setattr(analysis, "analyse", scripted)
    monkeypatch.setattr(batch, "CHUNK", 2)
    monkeypatch.setattr(batch, "IDLE_S", 0.01)
    return scripted


@pytest.fixture
def make_jobs(tmp_path, analyse):
    """Makes the jobs of a process: all of them share one database, the default in a temporary folder."""
    made = []

    def make(load=lambda name: MODEL, url=f"sqlite:///{tmp_path / 'jobs.db'}", start=True):
        jobs = Jobs(Store(url), tmp_path, load)
        made.append(jobs)
        if start:
            jobs.start()
        return jobs

    yield make
    analyse.gate.set()
    for jobs in made:
        jobs.close()
        jobs.store.close()


@pytest.fixture
def jobs(make_jobs):
    return make_jobs()


@pytest.fixture
def table(tmp_path):
    return make_table(tmp_path, CONTENT)


def make_table(folder, content, name="file.csv"):
    path = folder / name
    path.write_bytes(content.encode())
    return scan(path)


def wait(jobs, id, *states):
    deadline = time.monotonic() + 10
    while jobs.status(id).state not in (states or ("done", "stopped", "failed")):
        assert time.monotonic() < deadline, jobs.status(id)
        time.sleep(0.005)
    return jobs.status(id)


def expected(table):
    return [(row, to_record(answer(row.cells[table.column("text")]))) for row in table.rows()]


def rows_of(texts, start=0):
    return [Row(number, (text,)) for number, text in enumerate(texts, start + 1)]


def plan(texts, known=()):
    """The chunks of these texts, each stored before the next is planned."""
    stored = {text_hash(text) for text in known}
    for chunk in plan_chunks(rows_of(texts), 0, 0, stored.intersection):
        stored |= set(chunk.texts)
        yield chunk


@pytest.mark.parametrize(
    ("texts", "known", "ends", "asked"),
    [
        ([], [], [], []),
        (["a"], [], [1], [["a"]]),
        (["a", "b", "c"], [], [2, 3], [["a", "b"], ["c"]]),
        (["a", "a", "a"], [], [3], [["a"]]),
        (["a", "b", "a", "c", "b"], [], [2, 5], [["a", "b"], ["c"]]),
        (["a", "b", "a", "b"], [], [2, 4], [["a", "b"], []]),
        (["a", "b", "c"], ["a", "c"], [3], [["b"]]),
        (["", "\ud800", " "], [], [3], [["", " "]]),
    ],
)
def test_a_chunk_ends_with_so_many_new_texts_and_equal_texts_are_asked_once(analyse, texts, known, ends, asked):
    chunks = list(plan(texts, known))
    assert [chunk.end for chunk in chunks] == ends
    assert [list(chunk.texts.values()) for chunk in chunks] == asked


def test_a_chunk_of_known_texts_holds_so_many_rows(analyse, monkeypatch):
    monkeypatch.setattr(batch, "CHUNK_ROWS", 3)
    assert [chunk.end for chunk in plan(["a"] * 7, ["a"])] == [3, 6, 7]


@given(st.lists(st.text(max_size=2)), st.integers(0, 20))
def test_chunks_planned_after_a_stop_are_those_that_were_left(texts, stop):
    chunks = list(plan(texts))
    assert [number for chunk in chunks for number in range(chunk.start + 1, chunk.end + 1)] == list(
        range(1, len(texts) + 1)
    )
    done = chunks[:stop]
    stored = {hash for chunk in done for hash in chunk.texts}
    start = done[-1].end if done else 0
    left = []
    for chunk in plan_chunks(rows_of(texts[start:], start), 0, start, stored.intersection):
        stored |= set(chunk.texts)
        left.append(chunk)
    assert left == chunks[stop:]


def other_tasks(kind, **changes):
    """The shipped tasks, one of them changed."""
    return Tasks(**{kind: load_task(kind).model_copy(update=changes)})


def test_answers_depend_on_model_shots_and_all_of_the_task_files():
    shipped = Tasks()
    bases = {answer_base("a", 3, shipped), answer_base("b", 3, shipped), answer_base("a", 4, shipped)}
    for kind in KINDS:
        for change in ({"version": 2}, {"instruction": "Other."}, {"shots": load_task(kind).shots[:3]}):
            bases.add(answer_base("a", 3, other_tasks(kind, **change)))
    assert len(bases) == 9


def test_an_edited_task_never_gets_answers_of_another(jobs, analyse, table):
    first, edited = Tasks(), other_tasks("entities", version=2, instruction="Copy the names.")
    for tasks in (first, edited, edited):
        job = wait(jobs, jobs.submit(table, "text", "fake", tasks=tasks))
        assert tasks_of(job) == tasks and job.state == "done"
    # "bad" fails in each job, and is asked again; the others are asked once for each task file.
    texts = ["one, two", "", "four"]
    asked = [(text, tasks) for (some, _), tasks in zip(analyse.calls, analyse.tasks, strict=True) for text in some]
    assert [tasks for text, tasks in asked if text in texts] == [first] * 3 + [edited] * 3


def test_a_job_goes_on_with_the_tasks_that_it_began_with(make_jobs, analyse, table):
    jobs, tasks = make_jobs(start=False), other_tasks("language", version=5)
    id = jobs.submit(table, "text", "fake", tasks=tasks)
    assert make_jobs(start=False).run(id).state == "done"
    assert {one.identities["language"] for one in analyse.tasks} == {tasks.language.identity}


def test_a_job_from_before_there_was_a_choice_has_the_shipped_tasks(jobs, table):
    job = jobs.status(jobs.submit(table, "text", "fake"))
    assert tasks_of(replace(job, tasks="")) == Tasks()
    with pytest.raises(TaskError, match="break the rules of this version"):
        tasks_of(replace(job, tasks=job.tasks.replace("english", "")))


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_job_runs_to_its_end(make_jobs, analyse, table, request, kind):
    jobs = make_jobs(**({"url": request.getfixturevalue("postgres_url")} if kind == "postgresql" else {}))
    id = jobs.submit(table, "text", "fake", 4, name="my file", owner="ana")
    job = wait(jobs, id)
    assert (job.state, job.total, job.done, job.failed) == ("done", 5, 5, 1)
    assert (job.name, job.owner, job.text_column, job.model) == ("my file", "ana", "text", "fake")
    assert (job.version, job.shots, job.error, job.seconds_left, job.worker) == (MODEL.version, 4, "", 0.0, "")
    assert job.rows_per_second == 5 / job.seconds
    assert list(jobs.results(id)) == expected(table)
    assert list(jobs.results(id, 1, 3)) == expected(table)[1:3]
    assert analyse.calls == [(["one, two", "bad"], 4), (["", "four"], 4)]


def test_an_equal_text_is_never_computed_twice(jobs, analyse, tmp_path, table):
    first = jobs.submit(table, "text", "fake")
    wait(jobs, first)
    analyse.calls.clear()
    second = jobs.submit(make_table(tmp_path, "text\nfour\nnew\none, two\n", "b.csv"), "text", "fake")
    wait(jobs, second)
    assert analyse.texts() == [["new"]]
    jobs.delete(first)
    assert [record["language"] for _, record in jobs.results(second)] == ["english"] * 3
    third = jobs.submit(table, "text", "fake", 5)
    wait(jobs, third)
    assert analyse.texts()[1:] == [["one, two", "bad"], ["", "four"]]  # other shots, other answers


def test_a_waiting_job_has_no_rate_and_no_rows_yet(jobs, analyse, table):
    analyse.gate.clear()
    jobs.submit(table, "text", "fake")
    assert analyse.entered.wait(10)
    id = jobs.submit(table, "text", "fake", 6)
    job = jobs.status(id)
    assert (job.state, job.rows_per_second, job.seconds_left) == ("waiting", 0.0, None)
    assert list(jobs.results(id)) == []


def test_jobs_are_listed_newest_first_for_those_who_may_see_them(jobs, table):
    ids = [jobs.submit(table, "text", "fake", name=name, owner=name) for name in ("", "ana", "bob")]
    assert [job.id for job in jobs.list()] == ids[::-1]
    assert [job.id for job in jobs.list("ana")] == [ids[1]]


def test_jobs_take_turns(jobs, analyse, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "TURN_S", 0.0)
    analyse.gate.clear()
    for name in "ab":
        jobs.submit(
            make_table(tmp_path, "text\n" + "".join(f"{name}{row}\n" for row in range(6)), name), "text", "fake"
        )
    analyse.gate.set()
    for job in jobs.list():
        wait(jobs, job.id)
    assert "".join(texts[0][0] for texts in analyse.texts()[1:]) in ("babab", "ababa", "abab", "babaa")


def test_a_stopped_job_keeps_its_rows_and_resumes_after_them(jobs, analyse, table):
    analyse.gate.clear()
    id = jobs.submit(table, "text", "fake")
    assert analyse.entered.wait(10)
    jobs.stop(id)
    assert jobs.status(id).state == "stopped"
    analyse.gate.set()
    deadline = time.monotonic() + 10
    while jobs.status(id).done < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert list(jobs.results(id)) == expected(table)[:2]
    jobs.resume(id)
    assert wait(jobs, id, "done").failed == 1
    assert list(jobs.results(id)) == expected(table)
    assert analyse.texts() == [["one, two", "bad"], ["", "four"]]


def test_stop_and_resume_leave_a_finished_job_as_it_is(jobs, table):
    id = jobs.submit(table, "text", "fake")
    done = wait(jobs, id)
    jobs.stop(id)
    jobs.resume(id)
    assert jobs.status(id) == done


def test_failed_rows_alone_are_tried_again(jobs, analyse, tmp_path):
    table = make_table(tmp_path, "text,b\ngood,1\nbad a,1\nbad b,1\nlong,1,2\ngood,1\nbad a,1\nbad c,1\n")
    id = jobs.submit(table, "text", "fake")
    assert wait(jobs, id).failed == 5
    analyse.calls.clear()
    analyse.answer = lambda text: answer("good") if text != "bad b" else answer(text)
    jobs.retry(id)
    deadline = time.monotonic() + 10
    while jobs.status(id).failed != 2 or jobs.status(id).state != "done":
        assert time.monotonic() < deadline, jobs.status(id)
        time.sleep(0.01)
    assert analyse.texts() == [["bad a", "bad b"], ["bad c"]]
    errors = [record["error"] for _, record in jobs.results(id)]
    assert errors[:3] == ["", "", "no reply"] and "3 fields" in errors[3] and errors[4:] == ["", "", ""]
    jobs.retry(id)
    assert wait(jobs, id, "done").failed == 2


def test_a_row_that_cannot_be_read_costs_the_others_nothing(jobs, tmp_path):
    table = make_table(tmp_path, "id,text\n1,one\n2\n3,three\n")
    id = jobs.submit(table, "text", "fake")
    job = wait(jobs, id)
    assert (job.state, job.done, job.failed) == ("done", 3, 1)
    (_, first), (_, second), (_, third) = jobs.results(id)
    assert (first["language"], third["language"]) == ("english", "english")
    assert "1 field" in second["error"]


def test_a_model_that_does_not_load_fails_the_job_in_words(make_jobs, table):
    def load(name):
        raise ModelError("No memory for it.")

    jobs = make_jobs(load)
    job = wait(jobs, jobs.submit(table, "text", "fake"))
    assert (job.state, job.error, job.done) == ("failed", "No memory for it.", 0)


def test_a_failed_job_resumes_and_others_still_run(jobs, analyse, table):
    analyse.error = RuntimeError("out of cheese")
    id = jobs.submit(table, "text", "fake")
    assert wait(jobs, id).error == "An unexpected RuntimeError ended the job: out of cheese. The log has the details."
    analyse.error = None
    assert wait(jobs, jobs.submit(table, "text", "fake")).state == "done"
    jobs.resume(id)
    job = wait(jobs, id, "done")
    assert (job.error, job.done) == ("", 5)


def test_rows_of_two_models_are_never_mixed(make_jobs, analyse, table):
    jobs = make_jobs()
    analyse.gate.clear()
    id = jobs.submit(table, "text", "fake")
    assert analyse.entered.wait(10)
    jobs.stop(id)
    analyse.gate.set()
    jobs.close()
    later = make_jobs(lambda name: SimpleNamespace(version="fake 2", info=MODEL.info))
    later.resume(id)
    assert wait(later, id).error.startswith("The finished rows are from fake 1 · abc, and now the model is fake 2")
    assert later.status(id).done == 2


def test_a_closed_process_leaves_its_job_to_the_next(make_jobs, analyse, table):
    jobs = make_jobs()
    analyse.gate.clear()
    id = jobs.submit(table, "text", "fake")
    assert analyse.entered.wait(10)
    threading.Timer(0.1, analyse.gate.set).start()
    jobs.close()
    assert (jobs.status(id).state, jobs.status(id).worker) == ("running", "")
    later = make_jobs()
    assert wait(later, id).state == "done"
    assert list(later.results(id)) == expected(table)


def test_a_process_that_ends_in_mid_chunk_leaves_its_job_to_the_next(make_jobs, analyse, table, monkeypatch):
    ended = threading.Event()

    def is_ending():
        ended.set()
        return True

    jobs = make_jobs()
    analyse.error = RuntimeError("cannot schedule new futures after interpreter shutdown")
    with monkeypatch.context() as patch:
        patch.setattr(batch, "is_ending", is_ending)
        id = jobs.submit(table, "text", "fake")
        assert ended.wait(10)
        jobs.close()
    assert jobs.status(id).state == "running"
    analyse.error = None
    later = make_jobs()
    assert wait(later, id).state == "done"


def test_a_process_that_goes_on_is_not_ending():
    assert not batch.is_ending()


def dead_worker():
    """The worker of a process of this system that has ended."""
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    system, _, since = this_process().split(" ")
    return f"{system} {done.stdout.strip()} {since} 0123"


def test_a_job_whose_process_died_is_picked_up_at_the_next_start(make_jobs, table):
    jobs = make_jobs(start=False)
    id = jobs.submit(table, "text", "fake")
    jobs.store.change_job(id, state="running", worker=dead_worker(), heartbeat=time.time())
    jobs.start()
    assert wait(jobs, id).state == "done"


def test_a_job_that_ends_its_process_again_and_again_is_not_tried_forever(make_jobs, table):
    jobs = make_jobs(start=False)
    id = jobs.submit(table, "text", "fake")
    jobs.store.change_job(id, state="running", worker=dead_worker(), crashes=3)
    jobs.start()
    assert "The program ended 3 times at work on the rows after 0" in wait(jobs, id, "failed").error
    jobs.resume(id)
    assert wait(jobs, id).state == "done"


@pytest.mark.parametrize(
    ("worker", "beat_s_ago", "lives"),
    [
        (f"{this_process()} 00", 1000, True),
        (dead_worker(), 0, False),
        (f"{this_process().rpartition(' ')[0]} 1 00", 0, False),  # another process with the same number
        ("elsewhere 1 2 00", 10, True),
        ("elsewhere 1 2 00", 100, False),
        ("- 1 - 00", 10, True),
    ],
)
def test_who_is_alive_is_known_here_and_told_by_heartbeats_elsewhere(make_jobs, table, worker, beat_s_ago, lives):
    jobs = make_jobs(start=False)
    job = jobs.status(jobs.submit(table, "text", "fake"))
    assert is_alive(replace(job, worker=worker, heartbeat=1e9 - beat_s_ago), 1e9) is lives


def test_two_processes_on_one_database_share_the_jobs_and_compute_nothing_twice(make_jobs, analyse, tmp_path):
    first, second = make_jobs(), make_jobs()
    ids = [
        first.submit(make_table(tmp_path, "text\n" + "".join(f"{name}{row}\n" for row in range(20)), name), "text", "f")
        for name in "abcd"
    ]
    for id in ids:
        assert wait(second, id).done == 20
    asked = [text for texts in analyse.texts() for text in texts]
    assert len(asked) == len(set(asked)) == 80


def test_a_database_that_fails_is_tried_again(jobs, analyse, table, monkeypatch):
    commit, failures = jobs.store.commit, iter([True, True])

    def fail_twice(*args, **options):
        if next(failures, False):
            raise StoreError("The disk is full.")
        return commit(*args, **options)

    monkeypatch.setattr(jobs.store, "commit", fail_twice)
    monkeypatch.setattr(batch, "MAX_PAUSE_S", 0.01)
    id = jobs.submit(table, "text", "fake")
    deadline = time.monotonic() + 10
    while not jobs.problem and time.monotonic() < deadline:
        time.sleep(0.001)
    assert jobs.problem == "The disk is full."
    assert wait(jobs, id).state == "done"
    assert list(jobs.results(id)) == expected(table)
    assert analyse.texts() == [["one, two", "bad"], ["", "four"]]  # what was computed is kept until it can be stored


def test_a_deleted_job_leaves_nothing(tmp_path, jobs, table):
    id = jobs.submit(table, "text", "fake")
    wait(jobs, id)
    list(jobs.results(id))
    jobs.delete(id)
    assert jobs.list() == []
    assert list((tmp_path / "sources").iterdir()) == []
    with jobs.store.engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM answers")) == 0


def test_a_running_job_can_be_deleted(jobs, analyse, table):
    analyse.gate.clear()
    id = jobs.submit(table, "text", "fake")
    assert analyse.entered.wait(10)
    jobs.delete(id)
    analyse.gate.set()
    other = jobs.submit(table, "text", "fake", 5)
    assert wait(jobs, other).state == "done"
    assert [job.id for job in jobs.list()] == [other]


def test_a_renamed_job_keeps_its_new_name(jobs, table):
    id = jobs.submit(table, "text", "fake")
    jobs.rename(id, " new name ")
    assert jobs.status(id).name == "new name"
    jobs.rename(id, " ")
    assert jobs.status(id).name == "Untitled"


@pytest.mark.parametrize(
    "method",
    ["status", "stop", "resume", "retry", "delete", "results", "run", ("rename", "x"), ("export", io.BytesIO())],
)
def test_an_unknown_id_is_an_error(jobs, method):
    method, *arguments = [method] if isinstance(method, str) else method
    with pytest.raises(ChainError, match="There is no job '../etc'"):
        list(getattr(jobs, method)("../etc", *arguments) or [])


def test_a_job_is_there_for_its_owner_and_for_those_who_see_all(jobs, table):
    own, nobodys = (jobs.submit(table, "text", "fake", owner=owner) for owner in ("ana", ""))
    for id, owner in ((own, "ana"), (own, None), (nobodys, ""), (nobodys, None)):
        assert jobs.status(id, owner).id == id
    for id, owner in ((own, "bo"), (own, ""), (nobodys, "ana")):
        with pytest.raises(ChainError, match="There is no job"):
            jobs.status(id, owner)


def test_a_file_of_too_many_rows_is_no_job(jobs, table):
    jobs.max_rows = table.total
    jobs.submit(table, "text", "fake")
    jobs.max_rows = table.total - 1
    with pytest.raises(TableError, match=f"has {table.total:,} rows: expected at most {table.total - 1:,}"):
        jobs.submit(table, "text", "fake")
    assert len(jobs.list()) == 1


def test_a_missing_text_column_is_an_error_and_makes_no_job(jobs, table):
    with pytest.raises(TableError, match="There is no column 'txt'"):
        jobs.submit(table, "txt", "fake")
    assert jobs.list() == []


def test_odd_cells_and_names_survive_a_job(jobs, tmp_path):
    table = make_table(tmp_path, 'text,language,"a ""b"", c",text\r\n" é\n\r😀 ",,=1,\r\n\0,,,\r\n')
    id = jobs.submit(table, "text", "fake", name="a\0b")
    wait(jobs, id)
    assert list(jobs.results(id)) == expected(table)
    target = io.BytesIO()
    assert jobs.export(id, target, neutralise=False) == 2
    copy = tmp_path / "copy.csv"
    copy.write_bytes(target.getvalue())
    assert [row.cells[:4] for row in scan(copy).rows()] == [row.cells for row in table.rows()]


def test_a_job_runs_in_the_foreground_and_is_found_again(make_jobs, analyse, table):
    jobs = make_jobs(start=False)
    base, tasks = answer_base(MODEL.version, 3, Tasks()), Tasks()
    assert jobs.find(table, "text", "fake", None, tasks, base) is None
    id = jobs.submit(table, "text", "fake", copy=False)
    seen = []
    job = jobs.run(id, on_progress=lambda job: seen.append(job.done))
    assert (job.state, seen) == ("done", [2, 4, 5])
    assert jobs.find(table, "text", "fake", None, tasks, base) == job
    for other in (("id", "fake", None, base), ("text", "fake", 2, base), ("text", "fake", None, base[::-1])):
        assert jobs.find(table, *other[:3], tasks, other[3]) is None
    assert list(jobs.results(id)) == expected(table)
    assert jobs.run(id) == job


def test_a_file_that_changed_is_not_mixed_with_its_former_rows(make_jobs, table):
    jobs = make_jobs(start=False)
    id = jobs.submit(table, "text", "fake", copy=False)
    table.path.write_text("other")
    with pytest.raises(ChainError, match="is no longer the file that the job began with"):
        jobs.run(id)
    table.path.unlink()
    with pytest.raises(ChainError, match="Cannot read .*No such file"):
        jobs.run(id)


def test_an_interrupted_run_stops_the_job_and_the_same_goes_on(make_jobs, analyse, table):
    jobs = make_jobs(start=False)
    id = jobs.submit(table, "text", "fake", copy=False)

    def interrupt(job):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jobs.run(id, on_progress=interrupt)
    job = jobs.status(id)
    assert (job.state, job.done, job.worker) == ("stopped", 2, "")
    assert make_jobs(start=False).run(id).done == 5
    assert analyse.texts() == [["one, two", "bad"], ["", "four"]]


def test_a_run_waits_for_the_process_that_has_the_job(make_jobs, analyse, table):
    jobs, other = make_jobs(), make_jobs(start=False)
    analyse.gate.clear()
    id = jobs.submit(table, "text", "fake")
    assert analyse.entered.wait(10)
    threading.Timer(0.1, analyse.gate.set).start()
    assert other.run(id).done == 5
    assert len(analyse.calls) == 2


def test_another_engine_computes_the_same(make_jobs, analyse, table):
    class Engine:
        version, shots = MODEL.version, 3

        def steps(self, work):
            assert (work.shots, work.start) == (3, 0)
            seen = set()
            for chunk in plan_chunks(table.rows(), work.column, work.start, seen.intersection):
                seen |= set(chunk.texts)
                yield chunk, [to_record(answer(text)) for text in chunk.texts.values()]

    jobs = make_jobs(start=False)
    id = jobs.submit(table, "text", "fake")
    assert jobs.run(id, engine=Engine()).failed == 1
    assert list(jobs.results(id)) == expected(table)
    assert analyse.calls == []


def test_an_empty_chunk_before_the_end_is_an_error(make_jobs, table):
    class Engine:
        version, shots = MODEL.version, 3

        def steps(self, work):
            yield Chunk(0, 2, {1: b"a", 2: b"b"}, {}, {b"a": "x", b"b": "y"}), [to_record(answer("x"))] * 2

    jobs = make_jobs(start=False)
    id = jobs.submit(table, "text", "fake")
    with pytest.raises(ChainError, match="ended after 2 of 5 rows"):
        jobs.run(id, engine=Engine())


@pytest.mark.parametrize(("kind", "kills"), [("sqlite", 2), ("postgresql", 1)])
def test_a_killed_process_loses_no_row_and_doubles_none(tmp_path, tiny_folder, request, kind, kills):
    source = tmp_path / "in.csv"
    source.write_text("text\n" + "".join(f"Nadia Okafor left Porto in {year}.\n" for year in range(400)))
    environment = os.environ | {"BLOOM_LENS_DATA": str(tmp_path / "data")}
    if kind == "postgresql":
        environment["BLOOM_LENS_DATABASE"] = request.getfixturevalue("postgres_url")

    def command(target):
        options = ["--model", str(tiny_folder), "--text-column", "text", "--json"]
        return [sys.executable, "-m", "chains", "batch", str(source), str(target), *options]

    whole, resumed = tmp_path / "whole.csv", tmp_path / "resumed.csv"
    subprocess.run(command(whole), env=environment | {"BLOOM_LENS_DATA": str(tmp_path / "other"),
                   "BLOOM_LENS_DATABASE": ""}, check=True, capture_output=True)  # fmt: skip
    url = environment.get("BLOOM_LENS_DATABASE") or f"sqlite:///{tmp_path / 'data' / 'jobs.db'}"
    rows_done = [0]
    for _ in range(kills):
        process = subprocess.Popen(command(resumed), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline and done_rows(url) <= rows_done[-1]:
            time.sleep(0.01)
        process.kill()
        process.communicate()
        rows_done.append(done_rows(url))
    assert rows_done == sorted(rows_done) and 0 < rows_done[1] < 400
    done = subprocess.run(command(resumed), env=environment, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["rows"] == 400
    assert resumed.read_bytes() == whole.read_bytes()


def done_rows(url):
    """How many rows of its only job a database says are done; 0 while it is being made."""
    engine = sa.create_engine(url)
    try:
        with engine.connect() as connection:
            return connection.scalar(sa.text("SELECT done FROM jobs")) or 0
    except sa.exc.SQLAlchemyError:
        return 0
    finally:
        engine.dispose()


# Corrections


PEOPLE = 'id,text\n1,"😀 Ana, Ana"\n2,bad\n3\n4,four\n5,"=1 < 2"\n'
SECOND_ANA = Entity(text="Ana", type="person", start=7, end=10)


@pytest.fixture
def finished(jobs, tmp_path):
    """The id of a finished job whose rows 2 and 3 failed."""
    id = jobs.submit(make_table(tmp_path, PEOPLE), "text", "fake", owner="ana")
    assert wait(jobs, id).failed == 2
    return id


def test_a_correction_takes_the_place_of_an_answer_and_leaves_it(jobs, finished):
    before = list(jobs.results(finished))
    jobs.correct(finished, 1, Correction(language="french", entities=(SECOND_ANA,)))
    after = list(jobs.results(finished))
    assert after[1:] == before[1:]
    assert after[0][1] == {
        "language": "french", "language_probability": None, "entities": [SECOND_ANA.model_dump()], "locations": 0,
        "people": 1, "organizations": 0, "corrected": True, "error": "",
    }  # fmt: skip
    assert list(jobs.results(finished, corrected=False)) == before
    assert list(jobs.results(finished, 1)) == before[1:]
    jobs.undo(finished, 1)
    jobs.undo(finished, 1)
    assert list(jobs.results(finished)) == before


def test_a_row_that_the_model_failed_at_can_be_answered(jobs, finished):
    jobs.correct(finished, 2, Correction(language="unknown"))
    (_, record) = list(jobs.results(finished))[1]
    assert (record["language"], record["entities"], record["error"], record["corrected"]) == ("unknown", [], "", True)


@pytest.mark.parametrize(
    ("row", "message"), [(0, "no finished row 0"), (6, "expected one from 1 to 5"), (3, "has no text .* 1 field")]
)
def test_a_row_without_a_text_cannot_be_corrected(jobs, finished, row, message):
    with pytest.raises(CorrectionError, match=message):
        jobs.correct(finished, row, Correction(language="french"))


def test_a_correction_that_does_not_fit_its_row_is_not_stored(jobs, finished):
    with pytest.raises(CorrectionError, match="'Ana' is not what stands"):
        jobs.correct(finished, 4, Correction(language="french", entities=(SECOND_ANA,)))
    assert jobs.corrections(finished) == {}


def test_corrections_are_for_those_who_may_see_the_job(jobs, finished):
    for owner in ("", "bo"):
        with pytest.raises(MissingError):
            jobs.correct(finished, 1, Correction(language="french"), owner)
        with pytest.raises(MissingError):
            jobs.undo(finished, 1, owner)
        with pytest.raises(MissingError):
            jobs.corrections(finished, owner)
        with pytest.raises(MissingError):
            list(jobs.gold(finished, owner))
    jobs.correct(finished, 1, Correction(language="french"), "ana")
    assert [gold.language for gold in jobs.gold(finished, "ana")] == ["french"]


def test_corrections_are_there_in_the_next_process_and_go_with_the_job(make_jobs, jobs, finished):
    jobs.correct(finished, 1, Correction(language="french"))
    later = make_jobs(start=False)
    assert later.corrections(finished) == {1: Correction(language="french")}
    later.delete(finished)
    with pytest.raises(MissingError):
        jobs.correct(finished, 1, Correction(language="french"))


def test_corrected_rows_are_gold_that_every_reader_takes(jobs, finished, tmp_path):
    assert list(jobs.gold(finished)) == []
    jobs.correct(finished, 5, Correction(language="unknown"))
    jobs.correct(finished, 1, Correction(language="french", entities=(SECOND_ANA,)))
    text = "😀 Ana, Ana"
    assert list(jobs.gold(finished)) == [
        Gold(text=text, language="french", entities=(SECOND_ANA,)), Gold(text="=1 < 2", language="unknown")
    ]  # fmt: skip
    lines, table, safe = tmp_path / "gold.jsonl", tmp_path / "gold.csv", tmp_path / "safe.csv"
    with lines.open("wb") as one, table.open("wb") as two, safe.open("wb") as three:
        assert jobs.export_gold(finished, one) == 2
        assert jobs.export_gold(finished, two, format="csv", neutralise=False) == 2
        assert jobs.export_gold(finished, three, format="csv") == 2
    assert json.loads(lines.read_text(encoding="utf-8").splitlines()[0]) == {
        "text": text, "language": "french", "entities": [{"start": 7, "end": 10, "text": "Ana", "type": "person"}],
    }  # fmt: skip
    languages = [(text, "french"), ("=1 < 2", "unknown")]
    assert read_gold(lines, "language") == read_gold(table, "language") == languages
    assert read_gold(safe, "language")[1] == ("'=1 < 2", "unknown")
    assert read_gold(lines, "entities") == [(text, (SECOND_ANA,)), ("=1 < 2", ())]
    assert tasks_of_gold(lines) == ["language", "entities"] and tasks_of_gold(table) == ["language"]
    examples = read_examples([lines])
    assert [(one.task, one.answer) for one in examples[:2]] == [("language", "française"), ("language", "other")]
    assert examples[2].answer == (Mention(text="Ana", type="person"),)
    with pytest.raises(ValueError, match="cannot write gold as 'xlsx'"):
        jobs.export_gold(finished, io.BytesIO(), format="xlsx")


def test_answers_of_a_version_that_knew_no_corrections_are_read(jobs, finished):
    with jobs.store.engine.begin() as connection:
        connection.execute(sa.text("UPDATE answers SET record = replace(record, '\"corrected\": false, ', '')"))
        assert connection.scalar(sa.text("SELECT count(*) FROM answers WHERE record LIKE '%corrected%'")) == 0
    assert [record["corrected"] for _, record in jobs.results(finished)] == [False] * 5
