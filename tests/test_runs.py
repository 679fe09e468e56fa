import json

import pytest

from chains import analysis
from chains.batch import Jobs
from chains.errors import TableError
from chains.evaluation import GoldRow
from chains.prompts import Tasks
from chains.runs import (
    describe_tasks,
    is_run,
    list_runs,
    read_answers,
    repeat_run,
    start_run,
    tasks_of_run,
    write_gold,
)
from chains.schema import Analysis, Correction, Detection, Entity, Recognition
from chains.store import Store
from chains.tables import scan

ANA = Entity(text="Ana", type="person", start=0, end=3)
GOLD = [
    GoldRow("Ana left.", "english", (ANA,)),
    GoldRow("Ana salió.", "spanish", None),
    GoldRow("Nada.", None, ()),
    GoldRow("bad", "english", ()),
]


class Model:
    version = "fake · 1"
    info = type("Info", (), {"shots": 2})


def answer(text):
    if text == "bad":
        return Analysis(text=text, error="no reply")
    found = Recognition(entities=(ANA,) if text.startswith("Ana") else ())
    return Analysis(text=text, detection=Detection(language="english", probability=0.9), recognition=found)


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    monkeypatch.setattr(analysis, "analyse", lambda texts, model, **_: [answer(text) for text in texts])
    jobs = Jobs(Store(f"sqlite:///{tmp_path / 'jobs.db'}"), tmp_path, lambda name: Model())
    yield jobs
    jobs.store.close()


@pytest.fixture
def run(jobs, tmp_path):
    file = tmp_path / "gold"
    run_id = start_run(jobs, GOLD, file, "fake", 2, name="mine.jsonl")
    file.unlink()
    return jobs.run(run_id)


def test_run_gives_the_answers_beside_the_gold_of_each_task(jobs, run):
    languages = read_answers(jobs, run, "language")
    assert languages.numbers == [1, 2, 4]
    assert languages.gold == ["english", "spanish", "english"]
    assert languages.predicted == ["english", "english", ""]
    assert languages.probabilities == [0.9, 0.9, None]
    assert languages.problems == ["", "", "no reply"]
    names = read_answers(jobs, run, "entities")
    assert names.numbers == [1, 3, 4]
    assert names.gold == [(ANA,), (), ()] and names.predicted == [(ANA,), (), ()]
    assert names.is_right() == [True, True, False]


def test_corrections_of_a_run_do_not_make_the_model_right(jobs, run):
    jobs.correct(run.id, 2, Correction(language="spanish"))
    assert read_answers(jobs, run, "language").predicted[1] == "english"


def test_runs_are_told_from_other_jobs_by_their_file(jobs, run, tmp_path):
    (tmp_path / "other.csv").write_text("text,gold language\na,english\n")
    other = scan(tmp_path / "other.csv")
    assert is_run(jobs.status(jobs.submit(other, "text", "fake")))
    (tmp_path / "results.csv").write_text("text,gold language,language\na,english,english\n")
    assert not is_run(jobs.status(jobs.submit(scan(tmp_path / "results.csv"), "text", "fake")))
    assert len(jobs.list()) == 3 and len(list_runs(jobs)) == 2
    assert tasks_of_run(run) == ["language", "entities"]


def test_equal_gold_sets_are_one_and_a_repeated_run_has_the_same(jobs, run, tmp_path):
    again = jobs.status(repeat_run(jobs, run, tmp_path / "copy", "fake", 3))
    assert (again.source, again.name, again.shots, again.total) == (run.source, "mine.jsonl", 3, 4)
    assert jobs.run(again.id).state == "done"
    assert read_answers(jobs, jobs.status(again.id), "language") == read_answers(jobs, run, "language")


def test_gold_file_holds_only_what_is_known_and_orders_entities():
    later = Entity(text="l", type="location", start=4, end=5)
    [first, second] = write_gold([GoldRow("Ana left", None, (later, ANA)), GoldRow("é")]).decode().splitlines()
    assert json.loads(first) == {
        "text": "Ana left",
        "gold entities": [{"start": 0, "end": 3, "type": "person"}, {"start": 4, "end": 5, "type": "location"}],
    }
    assert second == '{"text": "é", "gold entities": null}'


def test_tasks_of_a_run_are_named_with_version_and_fingerprint(run):
    assert describe_tasks(run) == " and ".join(Tasks().identities.values())


def test_empty_gold_set_is_an_error(jobs, tmp_path):
    with pytest.raises(TableError, match="'mine' is empty"):
        start_run(jobs, [], tmp_path / "gold", "fake", 2, name="mine")


def test_text_too_long_to_be_answered_is_an_error(jobs, tmp_path, monkeypatch):
    with pytest.raises(TableError, match="A text of the gold set 'mine' cannot be answered. Row 2"):
        rows = [GoldRow("a", "english"), GoldRow("b" * 1_000_001, "english")]
        start_run(jobs, rows, tmp_path / "gold", "fake", 2, name="mine")
