"""The page of prompts, with a tiny random BLOOM behind the real chains."""

import runpy
import time

import pytest
import streamlit as st
from streamlit.runtime.scriptrunner import script_runner
from streamlit.testing.v1 import AppTest

import ui
from chains import registry
from chains.prompts import Tasks, load_task
from chains.versions import Versions

PAGE = "pages/prompts.py"
EVIL = "<img src=x onerror=alert(1)> {text} :smile: **bold**"


@pytest.fixture
def app(monkeypatch, tmp_path, tiny_model):
    monkeypatch.setenv("BLOOM_LENS_DATA", str(tmp_path))
    monkeypatch.delenv("BLOOM_LENS_DATABASE", raising=False)
    monkeypatch.setattr(registry, "load", lambda name: tiny_model)
    monkeypatch.setattr(script_runner, "_mpa_v1", runpy.run_path)
    st.cache_resource.clear()
    yield new_session()
    st.cache_resource.clear()


def new_session(**query):
    app = AppTest.from_file("../streamlit_app.py", default_timeout=60)
    for name, value in query.items():
        app.query_params[name] = value
    return check(app.run().switch_page(PAGE).run())


def check(app):
    assert not app.exception
    return app


def field(app, label):
    return next(one for one in (*app.main.text_area, *app.main.text_input) if one.label == label)


def write(app, label, value):
    field(app, label).set_value(value)
    return check(app.run())


def press(app, label):
    next(button for button in app.main.button if button.label == label).click()
    return check(app.run())


def button(app, label):
    return next(button for button in app.main.button if button.label == label)


def errors(app):
    return " ".join(one.value for one in app.main.error).replace("\\", "")


def numbers(app):
    return {metric.label: metric.value for metric in app.main.metric}


def show(app, kind):
    app.session_state["kind"] = kind
    return check(app.run())


def test_the_page_shows_the_shipped_task_its_prompt_and_tokens(app):
    assert field(app, "Instruction").value == "Name the language of every sentence."
    assert field(app, "Labels").value == "english: english\nspanish: español\nfrench: française"
    assert numbers(app)["Shots"] == "0 of 6"
    few = int(numbers(app)["Tokens"])
    assert button(app, "Save as new version").disabled and button(app, "Reset to shipped").disabled
    app.sidebar.slider[0].set_value(6)
    check(app.run())
    assert numbers(app)["Shots"] == "6 of 6" and int(numbers(app)["Tokens"]) > few
    assert numbers(app)["Of the context of 2,048"] == f"{int(numbers(app)['Tokens']) / 2048:.1%}"


def test_a_change_is_tried_saved_used_everywhere_and_reset(app):
    write(app, "Instruction", "Say the language.")
    assert "Not saved yet" in " ".join(one.value for one in app.main.caption)
    assert "embedded model has learned the shipped tasks only" in app.main.info[0].value
    press(app, "Try it")
    assert {"english", "unknown"} & {str(metric.value) for metric in app.main.metric} or numbers(app)["Label"]
    press(app, "Save as new version")
    assert "Saved as version 2" in app.main.success[0].value
    assert app.query_params["language"] in ("2", ["2"])
    saved = Versions(ui.get_versions().folder).load("language", 2)
    assert saved.instruction == "Say the language." and saved.shots == load_task("language").shots
    assert saved.identity.partition(" · ")[0] in app.sidebar.caption[0].value.replace("\\", "")
    app.switch_page("pages/single_text.py").run()
    app.text_area(key="text").set_value("Hola.")
    check(app.button(key="submit").click().run())
    assert saved.identity in " ".join(one.value for one in app.main.caption).replace("\\", "")
    app.switch_page("pages/batch.py").run()
    check(app.button(key="sample").click().run())
    (job,) = ui.get_jobs().list()
    assert Tasks.model_validate_json(job.tasks) == Tasks(language=saved)
    app.switch_page(PAGE).run()
    press(app, "Reset to shipped")
    assert field(app, "Instruction").value == "Name the language of every sentence."
    assert "language" not in app.query_params
    app.selectbox(key="pick language").select(2)
    assert field(check(app.run()), "Instruction").value == "Say the language."


def test_another_session_is_left_alone_unless_it_has_the_link(app):
    write(app, "Instruction", "Say the language.")
    press(app, "Save as new version")
    assert field(new_session(), "Instruction").value == "Name the language of every sentence."
    assert field(new_session(language="2"), "Instruction").value == "Say the language."


@pytest.mark.parametrize("query", ["9", "../../etc/passwd", "2 "])
def test_a_link_to_a_version_that_is_not_there_offers_the_shipped_one(app, query):
    other = new_session(language=query)
    if query == "9":
        assert "no version 9" in errors(other)
        other.sidebar.button(key="shipped_tasks").click()
        check(other.run())
    assert field(other, "Instruction").value == "Name the language of every sentence."


@pytest.mark.parametrize(
    ("label", "value", "words"),
    [
        ("Instruction", "", "at least 1 character"),
        ("Labels", "english", "Expected a line 'name: word'"),
        ("Labels", "a: [", "is not YAML"),
        ("Labels", "english: english\nspanish: español\nfrench: française\ncatalan: català", "No shot shows"),
        ("Reply 2", "deutsch", "Shot 2 has the label 'deutsch'"),
        ("Text 3", "", "at least 1 character"),
        ("Question", "<{text}> ", "Must be the beginning of 'shot'"),
        ("Shot", EVIL, "must hold {text} then {reply} once"),
        ("Word for none of them", "english", "one label only"),
    ],
)
def test_a_broken_rule_is_told_and_costs_nothing_else(app, label, value, words):
    write(app, label, value)
    assert words in errors(app)
    assert button(app, "Save as new version").disabled
    assert "Mend what is marked" in app.main.info[0].value
    assert not [metric for metric in app.main.metric if metric.label == "Tokens"]
    press(app, "Discard")
    assert not app.main.error and "Tokens" in numbers(app)


def test_catalan_takes_a_label_and_a_shot(app):
    write(app, "Labels", "english: english\nspanish: español\nfrench: française\ncatalan: català")
    write(app, "Text 6", "Demà anirem a la platja.")
    write(app, "Reply 6", "català")
    assert not app.main.error
    press(app, "Save as new version")
    assert list(ui.get_versions().load("language", 2).labels) == ["english", "spanish", "french", "catalan"]


def test_a_fourth_type_and_pasted_shots(app):
    show(app, "entities")
    write(app, "Labels", "location: location\nperson: person\norganization: organization\nproduct: product")
    assert "No shot shows the label ['product']" in errors(app)
    drop = [one for one in app.main.button if one.key.startswith("drop")]
    check(drop[3].click().run())
    paste = next(one for one in app.main.text_area if one.label.startswith("Paste them"))
    paste.set_value("- text: one\n  answer: two")
    press(app, "Add")
    assert "Expected one or more with 'text' and 'reply'" in errors(app)
    paste = next(one for one in app.main.text_area if one.label.startswith("Paste them"))
    paste.set_value('- text: "Rex bought a Corolla."\n  reply: "<Corolla>(product)"')
    press(app, "Add")
    assert not app.main.error and field(app, "Reply 6").value == "<Corolla>(product)"
    press(app, "Try it")
    press(app, "Save as new version")
    assert "product" in ui.get_versions().load("entities", 2).labels


def test_hostile_texts_are_shown_as_they_are(app):
    write(app, "A text to try", EVIL)
    write(app, "Instruction", EVIL)
    press(app, "Try it")
    html = " ".join(one.proto.body for one in app.main.get("html"))
    assert "<img" not in html and "&lt;" in html
    press(app, "Save as new version")
    assert ui.get_versions().load("language", 2).instruction == EVIL


def test_a_pasted_file_is_checked_and_becomes_a_version(app):
    whole = next(one for one in app.main.text_area if one.label == "Or paste a task file")
    whole.set_value("name: &a [*a]")
    press(app, "Check it and save it as a new version")
    assert "is not YAML" in errors(app)
    content = app.main.code[0].value.replace("Name the language", "Tell the language")
    next(one for one in app.main.text_area if one.label == "Or paste a task file").set_value(content)
    press(app, "Check it and save it as a new version")
    assert field(app, "Instruction").value.startswith("Tell the language")


def test_a_draft_stays_while_another_page_is_visited(app):
    write(app, "Reply 1", "français")
    app.switch_page("pages/batch.py").run()
    app.switch_page(PAGE).run()
    assert field(app, "Reply 1").value == "français"


def test_fewer_shots_in_a_task_bound_the_slider(app):
    for _ in range(3):
        check([one for one in app.main.button if one.key.startswith("drop")][-1].click().run())
    press(app, "Save as new version")
    assert app.sidebar.slider[0].max == 3


def test_what_shots_bring_is_measured_and_shown(app):
    app.file_uploader[0].upload("gold.csv", b"text,language\nHola.,spanish\nHello.,english\n").run()
    press(app, "Measure")
    for _ in range(200):
        if not [one for one in app.main.button if one.label == "Stop"]:
            break
        time.sleep(0.1)
        app.run()
    check(app)
    assert not app.main.error
    table = next(one.value for one in app.main.dataframe if "shots" in one.value)
    assert table["shots"].tolist() == list(range(7)) and table["tokens"].is_monotonic_increasing
    assert "2 texts" in " ".join(one.value for one in app.main.caption)


def test_a_gold_set_that_does_not_fit_is_told(app):
    app.file_uploader[0].upload("moods.csv", b"text,language\nLovely.,positive\n").run()
    press(app, "Measure")
    assert "Row 1 of 'moods.csv' has the language 'positive'" in errors(app)
