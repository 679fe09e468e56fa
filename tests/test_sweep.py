import threading

import pytest

from chains.errors import ModelError, TableError
from chains.prompts import load_task
from chains.schema import Entity
from chains.sweep import Sweep

ENTITIES = load_task("entities")
GOLD = [(f"Ana saw Lima {number}.", (Entity(text="Ana", type="person", start=0, end=3),)) for number in range(40)]


class Scripted:
    """A model whose chains are replaced: it finds Ana once it has seen two shots."""

    def cut(self, prompt, query):
        return [b"x"] * prompt.count("\n")


@pytest.fixture
def asked(monkeypatch):
    calls = []

    def find(texts, model, *, task, shots):
        calls.append((len(texts), shots))
        found = (Entity(text="Ana", type="person", start=0, end=3),) if shots >= 2 else ()
        return [type("Found", (), {"entities": found})() for _ in texts]

    monkeypatch.setattr("chains.entities.find_entities_batch", find)
    return calls


def run(sweep):
    sweep.start()
    sweep.wait()
    assert not sweep.is_live
    return sweep


def test_every_number_of_shots_has_its_score_and_cost(asked):
    sweep = run(Sweep(Scripted(), ENTITIES, GOLD))
    assert [score.shots for score in sweep.scores] == list(range(7))
    assert [score.f1 for score in sweep.scores] == [0, 0, 1, 1, 1, 1, 1]
    assert [score.tokens for score in sweep.scores] == [2 + 2 * shots for shots in range(7)]
    assert all(score.seconds > 0 for score in sweep.scores)
    assert sweep.done == sweep.total == 280 and not sweep.error
    assert asked[:4] == [(1, 0), (16, 0), (16, 0), (8, 0)]  # the first to read the shots


def test_it_goes_through_the_chains(tiny_model):
    task = load_task("language")
    task = task.model_copy(update={"shots": task.shots[:3]})
    sweep = run(Sweep(tiny_model, task, [("Hola.", "spanish"), ("The cat.", "english")]))
    assert [score.shots for score in sweep.scores] == [0, 1, 2, 3] and not sweep.error
    assert sweep.scores[3].tokens > sweep.scores[0].tokens
    assert all(0 <= score.f1 <= 1 for score in sweep.scores)


def test_a_stopped_one_keeps_what_it_has(monkeypatch):
    entered, go_on = threading.Event(), threading.Event()

    def find(texts, model, *, task, shots):
        if shots == 1:
            entered.set()
            assert go_on.wait(10)
        return [type("Found", (), {"entities": ()})() for _ in texts]

    monkeypatch.setattr("chains.entities.find_entities_batch", find)
    sweep = Sweep(Scripted(), ENTITIES, GOLD)
    sweep.start()
    assert entered.wait(10) and sweep.is_live
    sweep.stop()
    go_on.set()
    sweep.wait()
    assert [score.shots for score in sweep.scores] == [0] and sweep.is_stopped and not sweep.error


@pytest.mark.parametrize("error", [ModelError("No memory."), RuntimeError("No memory.")])
def test_a_model_that_fails_says_why(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("chains.entities.find_entities_batch", fail)
    sweep = run(Sweep(Scripted(), ENTITIES, GOLD))
    assert "No memory." in sweep.error and sweep.scores == []


def test_a_gold_set_of_other_labels_is_an_error(tmp_path):
    file = tmp_path / "gold.jsonl"
    file.write_text('{"text": "A dog.", "entities": [{"start": 2, "end": 5, "type": "animal"}]}\n')
    with pytest.raises(TableError, match="the type 'animal' is none of location, person, organization"):
        Sweep.of_file(Scripted(), ENTITIES, file)
