"""Every page from the entrypoint, with a scripted model in place of the real one."""

import runpy
import time

import pytest
import streamlit as st
from streamlit.runtime.scriptrunner import script_runner
from streamlit.testing.v1 import AppTest

from chains import analysis, registry
from chains.errors import ModelError
from chains.schema import Analysis, Detection, Entity, Mention, Recognition

TEXT = "Ana left Lyon."
BATCH, CHARTS = "pages/batch.py", "pages/charts.py"


class ScriptedModel:
    def __init__(self, name):
        self.info = registry.find_model(name)
        self.name = name
        self.version = f"{name} · 0123abcd"

    def count_tokens(self, text):
        return len(text.split())


def scripted_load(name):
    if name == "bloomz-3b":
        raise ModelError("bloomz-3b needs about 6.0 GB *of memory*. Choose a smaller model.")
    return ScriptedModel(name)


def scripted_analyse(texts, model, *, shots=None):
    return [answer(text, model) for text in texts]


def answer(text, model):
    if "unreadable" in text:
        return Analysis(text=text, error="The reply '<' could not be read.", model=model.version)
    probabilities = {"english": 0.9, "spanish": 0.04, "french": 0.04, "unknown": 0.02}
    prompts, replies = ("Name the language.",), ("english",)
    entities = [
        Entity(text=name, type=type_, start=text.index(name), end=text.index(name) + len(name))
        for name, type_ in (("Ana", "person"), ("Lyon", "location"))
        if name in text
    ]
    detection = Detection(
        language="english",
        probability=0.9,
        probabilities=probabilities,
        threshold=0.5,
        prompts=prompts,
        replies=replies,
    )
    ungrounded = (Mention(text="*Zed*", type="person"),) if "Zoë" in text else ()
    recognition = Recognition(entities=tuple(entities), ungrounded=ungrounded, prompts=prompts, replies=replies)
    return Analysis(text=text, detection=detection, recognition=recognition, model=model.version)


@pytest.fixture
def app(monkeypatch, tmp_path):
    monkeypatch.setenv("BLOOM_LENS_DATA", str(tmp_path))
    monkeypatch.delenv("BLOOM_LENS_DATABASE", raising=False)
    monkeypatch.setattr(registry, "load", scripted_load)
    monkeypatch.setattr(analysis, "analyse", scripted_analyse)
    # A folder named pages/ makes AppTest run a page bare, as a server does for its very first request only.
    monkeypatch.setattr(script_runner, "_mpa_v1", runpy.run_path)
    st.cache_resource.clear()
    yield AppTest.from_file("../streamlit_app.py", default_timeout=30).run()
    st.cache_resource.clear()


def detect(app, text):
    app.text_area(key="text").set_value(text)
    return app.button(key="submit").click().run()


def words(elements):
    return " ".join(str(element.value) for element in elements)


def wait_for_job(app):
    """The page once its job is over; AppTest does not run fragments by itself."""
    for _ in range(100):
        app.run()
        if not any("Stop" in button.label for button in app.button):
            return app
        time.sleep(0.1)
    raise AssertionError("The job did not end.")


@pytest.mark.parametrize("page", ["pages/single_text.py", BATCH, CHARTS])
def test_every_page_opens(app, page):
    app.switch_page(page).run()
    assert not app.exception
    assert len(app.title) == 1
    assert "embedded · 0123abcd is ready" in words(app.sidebar.caption).replace("\\", "")


def test_text_gives_language_entities_counts_and_working(app):
    detect(app, TEXT)
    assert not app.exception and not app.error
    assert [(metric.label, metric.value) for metric in app.metric] == [
        ("Language", "English"),
        ("Locations (LOC)", "1"),
        ("People (PER)", "1"),
        ("Organizations (ORG)", "0"),
    ]
    assert app.dataframe[0].value["First position"].tolist() == [1, 10]
    assert "Name the language." in words(app.code)
    assert f"analyse([{TEXT!r}], model, shots=0)" in words(app.code)


def test_example_is_answered_at_one_click(app):
    app.button(key="example Spanish").click().run()
    assert app.metric[0].value == "English"
    assert "Valencia" in app.text_area(key="text").value


@pytest.mark.parametrize("text", ["", "  \n "])
def test_empty_text_is_a_hint_and_no_error(app, text):
    detect(app, text)
    assert not app.error and not app.metric
    assert "no text yet" in app.info[0].value


def test_text_that_fails_shows_why(app):
    detect(app, "unreadable")
    assert "could not be read" in app.error[0].value
    assert not app.metric


def test_ungrounded_names_are_listed_apart(app):
    detect(app, "Zoë left Lyon.")
    assert r"\*Zed\*" in app.info[0].value
    assert len(app.dataframe[0].value) == 1


def test_result_and_text_stay_while_another_page_is_visited(app):
    detect(app, TEXT)
    app.switch_page(CHARTS).run()
    app.switch_page("pages/single_text.py").run()
    assert app.text_area(key="text").value == TEXT
    assert app.metric[0].value == "English"


def test_model_that_cannot_be_loaded_leaves_the_one_before(app):
    app.selectbox(key="model").select("bloomz-3b").run()
    assert r"\*of memory\*" in app.sidebar.error[0].value
    detect(app, TEXT)
    assert app.metric[0].value == "English"
    assert "embedded" in words(app.main.caption)
    app.selectbox(key="model").select("bloomz-560m").run()
    assert not app.sidebar.error
    assert app.slider[0].value == 3
    detect(app, TEXT)
    assert "bloomz" in words(app.main.caption)


def test_without_any_model_the_page_says_why(app, monkeypatch):
    st.cache_resource.clear()

    def fail(name):
        raise ModelError("The weights are missing.")

    monkeypatch.setattr(registry, "load", fail)
    fresh = AppTest.from_file("../streamlit_app.py", default_timeout=30).run()
    detect(fresh, TEXT)
    assert not fresh.exception
    assert "weights are missing" in words(fresh.main.error)


def test_sample_job_runs_to_its_charts(app):
    app.switch_page(BATCH).run()
    app.button(key="sample").click().run()
    wait_for_job(app)
    assert not app.exception and not app.error
    table = app.dataframe[0].value
    assert len(table) == 30 and "Spanish" not in set(table["language"])
    assert app.query_params["job"]
    app.switch_page(CHARTS).run()
    assert not app.exception
    assert "Rows: 30" in words(app.subheader)
    app.multiselect(key="chart_types").select("person").run()
    assert not app.exception
    assert "Rows: 0" in words(app.subheader)


def test_file_is_read_and_every_guess_can_be_corrected(app):
    app.switch_page(BATCH).run()
    content = "id;texte\n1;Ana à Lyon\n2;unreadable\n".encode("cp1252")
    app.file_uploader[0].upload("mine.csv", content, "text/csv").run()
    assert "cp1252, separated by semicolon" in words(app.caption).replace("\\", "")
    choices = {box.label: box for box in app.main.selectbox}
    assert choices["Column with the texts"].value == "texte"
    choices["Columns separated by"].select("|").run()
    choices = {box.label: box for box in app.main.selectbox}
    assert choices["Column with the texts"].value == "id;texte"
    choices["Columns separated by"].select(";").run()
    app.button(key="start").click().run()
    wait_for_job(app)
    assert "1 of 2 rows could not be read" in app.warning[0].value
    assert app.dataframe[0].value["locations"].tolist()[0] == 1


def test_unknown_job_is_an_error_with_a_way_out(app):
    app.switch_page(BATCH).run()
    app.query_params["job"] = "no-such-job"
    app.run()
    assert "no\\-such\\-job" in app.error[0].value
    app.button(key="new").click().run()
    assert not app.error and app.file_uploader


def test_deleted_job_is_gone(app):
    app.switch_page(BATCH).run()
    app.button(key="sample").click().run()
    wait_for_job(app)
    next(button for button in app.button if button.label == "Delete for good").click().run()
    assert not app.exception and not app.error
    assert app.file_uploader and "All jobs" not in words(app.subheader)


def test_charts_without_a_job_lead_to_batch(app):
    app.switch_page(CHARTS).run()
    assert "there is none yet" in app.info[0].value
    assert app.button(key="to_batch").label == "Go to Batch"
