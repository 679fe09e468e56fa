import json

import pytest

from chains import analysis
from chains.analysis import analyse
from chains.entities import find_entities
from chains.errors import ModelError, ReplyError
from chains.language import detect_language

SCORES = json.dumps({"english": -0.1, "español": -3.0, "française": -4.0, "other": -5.0})


def answer(prompt):
    if prompt.endswith("\nEntities:"):
        return "?" if "bad entities" in prompt else "<Ana>(person)" if "Text: Ana" in prompt else "none"
    return "?" if "bad language" in prompt else SCORES


def test_language_and_entities_come_in_input_order(scripted):
    model = scripted(answer)
    first, second = analyse(["Ana left.", "It rained."], model)
    assert first.detection == detect_language("Ana left.", model)
    assert first.recognition == find_entities("Ana left.", model)
    assert (first.text, second.text) == ("Ana left.", "It rained.")
    assert [entity.text for entity in first.recognition.entities] == ["Ana"] and second.recognition.entities == ()
    assert {first.model, second.model} == {model.version} and first.error is second.error is None


@pytest.mark.parametrize("bad", ["bad language", "bad entities"])
def test_a_text_that_fails_is_reported_and_costs_the_others_nothing(scripted, bad):
    analyses = analyse(["Ana left.", bad, "It rained."], scripted(answer))
    assert [bool(item.error) for item in analyses] == [False, True, False]
    assert "Cannot read '?'" in analyses[1].error
    assert analyses[1].detection is analyses[1].recognition is None
    assert analyses[0] == analyse(["Ana left."], scripted(answer))[0]


def test_shots_are_handed_to_both_chains(scripted):
    model = scripted(answer)
    analyse(["Ana left."], model, shots=0)
    assert [prompt.count("\n") for prompt in model.llm.history] == [1, 2]


def test_empty_texts_are_answered_without_asking_the_model(scripted):
    model = scripted(answer)
    (item,) = analyse([" "], model)
    assert item.detection.way == "empty" and item.recognition.entities == () and model.llm.history == []
    assert analyse([], model) == []


def test_an_error_that_is_not_ours_is_not_hidden(scripted, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(analysis, "detect_languages", fail)
    with pytest.raises(ZeroDivisionError):
        analyse(["Ana left."], scripted(answer))


def test_a_model_that_cannot_answer_at_all_ends_the_work(scripted):
    def fail(_):
        raise ModelError("the server is down")

    with pytest.raises(ModelError, match="the server is down"):
        analyse(["Ana left.", "It rained."], scripted(fail))


def test_an_analysis_survives_json(scripted):
    (item,) = analyse(["Ana left."], scripted(answer))
    assert type(item).model_validate_json(item.model_dump_json()) == item


def test_a_reply_error_keeps_the_reply():
    assert ReplyError("Cannot read it.", "raw").reply == "raw"
