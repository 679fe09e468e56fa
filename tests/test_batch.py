import json
import threading
import time
from types import SimpleNamespace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chains import analysis, batch
from chains.batch import Jobs, analyse_in_chunks
from chains.errors import ChainError, ModelError, TableError
from chains.schema import Analysis, Detection, Recognition
from chains.tables import add_results, read_table

MODEL = SimpleNamespace(name="fake", version="fake 1 · abc", info=SimpleNamespace(shots=3))
TABLE = read_table(b'id,text\n1,"one, two"\n2,bad\n3,\n4,four\n5,four\n')


def answer(text):
    if text == "bad":
        return Analysis(text=text, error="no reply", model=MODEL.version)
    detection = Detection(language="english", probability=1 / (1 + len(text)))
    return Analysis(text=text, detection=detection, recognition=Recognition(), model=MODEL.version)


class Scripted:
    """Stands in for ``analysis.analyse``: keeps every call, and can be held before it answers."""

    def __init__(self):
        self.calls = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.error = None

    def __call__(self, texts, model, *, shots=None):
        self.calls.append((list(texts), shots))
        self.entered.set()
        assert self.gate.wait(10)
        if self.error:
            raise self.error
        return [answer(text) for text in texts]


@pytest.fixture
def analyse(monkeypatch):
    scripted = Scripted()
    monkeypatch.setattr(analysis, "analyse", scripted)
    monkeypatch.setattr(
        batch, "analyse_in_chunks", lambda *args, **options: analyse_in_chunks(*args, **options, chunk=2)
    )
    return scripted


@pytest.fixture
def jobs(tmp_path, analyse):
    jobs = Jobs(tmp_path, lambda name: MODEL)
    yield jobs
    # Let its thread come to rest, or it would call the next test's script.
    analyse.gate.set()
    for status in jobs.list():
        wait(jobs, status.id)


def wait(jobs, id, *states):
    deadline = time.monotonic() + 10
    while jobs.status(id).state not in (states or ("done", "stopped", "failed")):
        assert time.monotonic() < deadline, jobs.status(id)
        time.sleep(0.005)
    return jobs.status(id)


def expected(table=TABLE):
    return add_results(table.frame, [answer(text) for text in table.frame["text"]])


@pytest.mark.parametrize(
    ("texts", "chunk", "rows", "asked"),
    [
        ([], 2, [], []),
        (["a"], 2, [1], [["a"]]),
        (["a", "b", "c"], 2, [2, 1], [["a", "b"], ["c"]]),
        (["a", "a", "a"], 2, [3], [["a"]]),
        (["a", "b", "a", "c", "b"], 2, [2, 3], [["a", "b"], ["c"]]),
        (["a", "b", "a", "b"], 2, [2, 2], [["a", "b"]]),
        (["", ""], 1, [1, 1], [[""]]),
    ],
)
def test_a_chunk_holds_so_many_new_texts_and_equal_texts_are_asked_once(analyse, texts, chunk, rows, asked):
    chunks = list(analyse_in_chunks(texts, MODEL, shots=4, chunk=chunk))
    assert [len(one) for one in chunks] == rows
    assert analyse.calls == [(one, 4) for one in asked]


@given(st.lists(st.text(max_size=2)), st.integers(1, 5))
def test_chunks_together_are_the_analyses_of_all_rows(texts, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis, "analyse", lambda some, model, *, shots=None: [answer(text) for text in some])
        chunks = analyse_in_chunks(texts, MODEL, chunk=chunk)
        assert [one for rows in chunks for one in rows] == [answer(text) for text in texts]


def test_a_job_runs_to_its_end(jobs, analyse):
    id = jobs.submit("my file", TABLE, "text", "fake", 4)
    status = wait(jobs, id)
    assert (status.state, status.total, status.done, status.failed) == ("done", 5, 5, 1)
    assert (status.name, status.text_column, status.model, status.version) == ("my file", "text", "fake", MODEL.version)
    assert (status.shots, status.error, status.seconds_left) == (4, "", 0.0)
    assert status.rows_per_second == 5 / status.seconds
    pd.testing.assert_frame_equal(jobs.results(id), expected())
    assert [shots for _, shots in analyse.calls] == [4, 4]


def test_a_waiting_job_has_no_rate_and_no_rows_yet(jobs, analyse):
    analyse.gate.clear()
    jobs.submit("first", TABLE, "text", "fake")
    id = jobs.submit("second", TABLE, "text", "fake")
    status = jobs.status(id)
    assert (status.state, status.rows_per_second, status.seconds_left) == ("waiting", 0.0, None)
    assert len(jobs.results(id)) == 0
    assert list(jobs.results(id).columns) == list(expected().columns)


def test_jobs_are_listed_newest_first(jobs):
    ids = [jobs.submit(name, TABLE, "text", "fake") for name in ("a", "b", "c")]
    assert [status.id for status in jobs.list()] == ids[::-1]


def test_finished_chunks_can_be_read_while_a_job_runs(jobs, analyse):
    analyse.gate.clear()
    id = jobs.submit("", TABLE, "text", "fake")
    analyse.entered.wait(10)
    assert (jobs.status(id).state, jobs.status(id).done) == ("running", 0)
    assert len(jobs.results(id)) == 0


def test_a_stopped_job_keeps_its_rows_and_resumes_after_them(jobs, analyse):
    analyse.gate.clear()
    id = jobs.submit("", TABLE, "text", "fake")
    analyse.entered.wait(10)
    jobs.stop(id)
    analyse.gate.set()
    status = wait(jobs, id)
    assert (status.state, status.done) == ("stopped", 2)
    pd.testing.assert_frame_equal(jobs.results(id), expected().iloc[:2])
    jobs.resume(id)
    assert wait(jobs, id, "done").failed == 1
    pd.testing.assert_frame_equal(jobs.results(id), expected())
    assert [texts for texts, _ in analyse.calls] == [["one, two", "bad"], ["", "four"]]


def test_a_waiting_job_stops_and_resumes(jobs, analyse):
    analyse.gate.clear()
    jobs.submit("first", TABLE, "text", "fake")
    id = jobs.submit("second", TABLE, "text", "fake")
    jobs.stop(id)
    assert jobs.status(id).state == "stopped"
    jobs.resume(id)
    assert jobs.status(id).state == "waiting"
    analyse.gate.set()
    assert wait(jobs, id, "done").done == 5


def test_stop_and_resume_leave_a_finished_job_as_it_is(jobs):
    id = jobs.submit("", TABLE, "text", "fake")
    done = wait(jobs, id)
    jobs.stop(id)
    jobs.resume(id)
    assert jobs.status(id) == done


def test_a_model_that_does_not_load_fails_the_job_in_words(tmp_path, analyse):
    def load(name):
        raise ModelError("No memory for it.")

    jobs = Jobs(tmp_path, load)
    id = jobs.submit("", TABLE, "text", "fake")
    status = wait(jobs, id)
    assert (status.state, status.error, status.done) == ("failed", "No memory for it.", 0)


def test_a_failed_job_resumes_and_others_still_run(jobs, analyse):
    analyse.error = RuntimeError("out of cheese")
    id = jobs.submit("", TABLE, "text", "fake")
    assert wait(jobs, id).error == ("An unexpected RuntimeError ended the job: out of cheese. The log has the details.")
    analyse.error = None
    other = jobs.submit("", TABLE, "text", "fake")
    assert wait(jobs, other).state == "done"
    jobs.resume(id)
    status = wait(jobs, id, "done")
    assert (status.error, status.done) == ("", 5)


def test_a_job_of_an_earlier_process_is_stopped_and_resumes_as_if_uninterrupted(tmp_path, jobs, analyse):
    id = jobs.submit("old", TABLE, "text", "fake")
    wait(jobs, id)
    # As a process leaves it that dies while it writes the last chunk.
    folder = tmp_path / "jobs" / id
    job = json.loads((folder / "job.json").read_text())
    (folder / "job.json").write_text(json.dumps(job | {"state": "running", "done": 2, "failed": 1}))
    whole = (folder / "results.jsonl").read_bytes()
    (folder / "results.jsonl").write_bytes(whole[:-10])
    later = Jobs(tmp_path, lambda name: MODEL)
    status = later.status(id)
    assert (status.state, status.done, status.failed, status.name) == ("stopped", 4, 1, "old")
    pd.testing.assert_frame_equal(later.results(id), expected().iloc[:4])
    later.resume(id)
    wait(later, id, "done")
    assert (folder / "results.jsonl").read_bytes() == whole
    pd.testing.assert_frame_equal(later.results(id), expected())
    assert analyse.calls[-1][0] == ["four"]


def test_rows_of_two_models_are_never_mixed(tmp_path, jobs, analyse):
    analyse.gate.clear()
    id = jobs.submit("", TABLE, "text", "fake")
    analyse.entered.wait(10)
    jobs.stop(id)
    analyse.gate.set()
    wait(jobs, id)
    later = Jobs(tmp_path, lambda name: SimpleNamespace(version="fake 2"))
    later.resume(id)
    assert wait(later, id).error.startswith("The finished rows are from fake 1 · abc, and the model is now fake 2")
    assert later.status(id).done == 2


def test_a_folder_that_is_no_job_is_skipped(tmp_path, caplog):
    for name, content in (("a", "{"), ("b", "{}"), ("c", "[]")):
        (tmp_path / "jobs" / name).mkdir(parents=True)
        (tmp_path / "jobs" / name / "job.json").write_text(content)
    assert Jobs(tmp_path, lambda name: MODEL).list() == []
    assert caplog.text.count("is no job of this version") == 3


def test_a_damaged_result_fails_only_its_job(tmp_path, jobs):
    id, other = (jobs.submit("", TABLE, "text", "fake") for _ in range(2))
    wait(jobs, other)
    file = tmp_path / "jobs" / id / "job.json"
    file.write_text(file.read_text().replace('"done"', '"running"', 1))
    (file.parent / "results.jsonl").write_text("nonsense\n")
    later = Jobs(tmp_path, lambda name: MODEL)
    assert "is damaged" in later.status(id).error
    assert later.status(other).state == "done"


def test_a_deleted_job_leaves_nothing(tmp_path, jobs):
    id = jobs.submit("", TABLE, "text", "fake")
    wait(jobs, id)
    jobs.delete(id)
    assert jobs.list() == []
    assert list((tmp_path / "jobs").iterdir()) == []


def test_a_running_job_can_be_deleted(tmp_path, jobs, analyse):
    analyse.gate.clear()
    id = jobs.submit("", TABLE, "text", "fake")
    analyse.entered.wait(10)
    jobs.delete(id)
    assert jobs.list() == []
    assert Jobs(tmp_path, lambda name: MODEL).list() == []
    analyse.gate.set()
    other = jobs.submit("", TABLE, "text", "fake")
    wait(jobs, other)
    assert [folder.name for folder in (tmp_path / "jobs").iterdir()] == [other]


@pytest.mark.parametrize("method", ["status", "stop", "resume", "results", "delete"])
def test_an_unknown_id_is_an_error(jobs, method):
    with pytest.raises(ChainError, match="There is no job '../etc'"):
        getattr(jobs, method)("../etc")


def test_a_missing_text_column_is_an_error_and_makes_no_job(jobs):
    with pytest.raises(TableError, match="There is no column 'txt'"):
        jobs.submit("", TABLE, "txt", "fake")
    assert jobs.list() == []


def test_a_data_folder_that_cannot_be_written_is_an_error_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    jobs = Jobs(tmp_path / "file", lambda name: MODEL)
    with pytest.raises(ChainError, match="Cannot store the job in .*file/jobs': Not a directory"):
        jobs.submit("", TABLE, "text", "fake")


def test_odd_cells_and_names_survive_a_job(jobs):
    table = read_table('text,language,"a ""b"", c",text\r\n" é\n\r😀 ",,=1,\r\n,,,\r\n'.encode())
    id = jobs.submit("", table, "text", "fake")
    wait(jobs, id)
    pd.testing.assert_frame_equal(jobs.results(id), expected(table))
