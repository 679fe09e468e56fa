"""The page Evaluation from the entrypoint, with the scripted model of test_app.py: all English, Ana and Lyon found."""

import json

import pytest

import ui
from chains import analysis
from tests.test_app import (  # noqa: F401  # fixtures are found by their names here
    PAYLOAD,
    app,
    choose,
    gate,
    plain,
    press,
    run_job,
    wait_for_job,
    wait_until,
    words,
)

PAGE = "pages/evaluation.py"
LANGUAGES = b"text,language\nvague,english\nle chat,french\nthe cat,english\n"
NAMES = "\n".join(
    json.dumps({"text": text, "entities": [{"start": start, "end": end, "type": type_} for start, end, type_ in spans]})
    for text, spans in (
        ("Ana left Lyon.", [(0, 3, "person"), (9, 13, "location")]),
        ("Ana met Zoe.", [(0, 3, "location"), (8, 11, "person")]),
    )
).encode()


def upload(app, content, name="gold.csv"):  # noqa: F811
    app.switch_page(PAGE).run()
    box = next(box for box in app.main.selectbox if box.label == "Gold set")
    box.select(("upload", "")).run()
    app.file_uploader[0].upload(name, content).run()
    assert not app.exception
    return app


def evaluate(app, content, name="gold.csv"):  # noqa: F811
    upload(app, content, name)
    press(app, "Start")
    wait_for_job(app)
    assert not app.exception and not app.error
    return app


def scores(app):  # noqa: F811
    return {metric.label: metric.value for metric in app.metric}


@pytest.fixture
def offered(monkeypatch):
    """What each download button gives, by its label."""
    import streamlit as st

    given = {}
    show = st.download_button

    def download_button(label, data, *args, **options):
        given[label] = data
        return show(label, data, *args, **options)

    monkeypatch.setattr(st, "download_button", download_button)
    return given


def test_sample_is_evaluated_at_one_click(app):  # noqa: F811
    app.switch_page(PAGE).run()
    assert "70 texts with their language, 60 with their names" in plain(app.caption)
    press(app, "Start")
    wait_for_job(app)
    assert not app.exception and not app.error
    assert scores(app)["Accuracy"] == "28.6%"  # 20 of 70 are English
    assert "Texts with a wrong language: 50" in words(app.subheader)
    next(radio for radio in app.radio if radio.label == "What is measured").set_value("entities").run()
    assert not app.exception
    assert "Micro-F1" in scores(app) and "Accuracy" not in scores(app)


def test_languages_have_scores_classes_calibration_and_wrong_texts(app, offered):  # noqa: F811
    evaluate(app, LANGUAGES)
    assert scores(app)["Accuracy"] == "66.7%"
    assert "Expected calibration error" in plain(app.caption)
    tables = [table.value for table in app.dataframe]
    assert tables[0]["Class"].tolist() == ["English", "French"] and tables[0]["Support"].tolist() == [2, 1]
    assert tables[1][["text", "right", "answered"]].to_numpy().tolist() == [["le chat", "French", "English"]]
    report = json.loads(offered["Scores (JSON)"])
    assert (report["accuracy"], report["shots"], report["texts"]) == (pytest.approx(2 / 3), 0, 3)
    assert report["intervals"]["accuracy"] and report["model"] == "embedded · 0123abcd"


def test_names_have_errors_by_kind_marked_in_their_texts(app, offered):  # noqa: F811
    evaluate(app, NAMES, "gold.jsonl")
    assert scores(app)["Micro-F1"] == "57.1%"
    assert "Errors: 2" in words(app.subheader)
    assert "Wrong kind · row 2" in words(app.caption) and "Missed · row 2" in words(app.caption)
    assert len(offered["Errors (CSV)"].splitlines()) == 3


def test_runs_on_one_gold_set_are_compared(app, offered):  # noqa: F811
    evaluate(app, LANGUAGES)
    app.slider[0].set_value(2).run()
    press(app, "Run with embedded, 2 shots")
    wait_for_job(app)
    assert "Which run is better?" in words(app.subheader)
    assert "exact McNemar test" in plain(app.caption)
    document = json.loads(offered["Comparison (JSON)"])
    assert [run["shots"] for run in document["runs"]] == [0, 2]
    assert document["comparisons"][0]["differences"]["accuracy"]["p_value"] == 1.0
    assert "Texts that they answer differently: 0" in words(app.subheader)


def test_runs_that_differ_show_the_rows(app, monkeypatch):  # noqa: F811
    evaluate(app, LANGUAGES)
    plain_analyse = analysis.analyse

    def french(texts, model, **_):
        found = plain_analyse(texts, model)
        return [one.model_copy(update={"detection": one.detection.model_copy(update={"language": "french"})})
                for one in found]  # fmt: skip

    monkeypatch.setattr(analysis, "analyse", french)
    app.slider[0].set_value(1).run()
    press(app, "Run with embedded, 1 shot")
    wait_for_job(app)
    assert "Texts that they answer differently: 3" in words(app.subheader)
    assert "-33.3 points" in app.dataframe[0].value["Against the first"].tolist()


def test_evaluation_goes_on_in_another_tab_and_is_listed(app, gate):  # noqa: F811
    upload(app, b"text,language\n" + b"".join(b"%d,english\n" % number for number in range(200)))
    press(app, "Start")
    wait_until(app, lambda: "first 64 of 200 texts" in plain(app.info))
    run_id = app.query_params["run"]
    app.switch_page("pages/batch.py").run()
    assert "All jobs" not in words(app.subheader)  # an evaluation is no batch of the user's
    app.switch_page(PAGE).run()
    assert app.query_params["run"] == run_id
    press(app, "Stop")
    gate.set()
    wait_until(app, lambda: ui.get_jobs().list()[0].state == "stopped")
    press(app, "New evaluation")
    assert "All evaluations" in words(app.subheader)
    press(app, "Open")
    press(app, "Resume")
    wait_for_job(app)
    assert scores(app)["Accuracy"] == "100.0%"
    assert "up to 1.5%" in plain(app.caption)  # no text is wrong


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"text,label\na,b\n", "mine.csv", "'mine.csv' has the columns 'text', 'label'"),
        (b"text,language\na,German\n", "mine.csv", "Row 1 of 'mine.csv' has the language 'German'"),
        (b'{"text": "Ana", "entities": [{"start": 0, "end": 9, "type": "person"}]}', "mine.jsonl", "Line 1 of"),
        (b"%PDF-1.7", "mine.csv", "is a PDF document"),
    ],
)
def test_wrong_gold_file_is_an_error_and_the_next_can_be_chosen(app, content, name, message):  # noqa: F811
    upload(app, content, name)
    assert message in plain(app.error)
    assert not app.button or "Start" not in [button.label for button in app.main.button]
    app.file_uploader[0].upload("gold.csv", LANGUAGES).run()
    assert not app.error
    assert "3 rows" in plain(app.markdown)


def test_texts_and_names_of_files_are_never_markup(app):  # noqa: F811
    text = f"{PAYLOAD} Ana"
    line = {"text": text, "entities": [{"start": 0, "end": 4, "type": "location"}]}
    evaluate(app, json.dumps(line).encode(), f"{PAYLOAD}.jsonl")
    shown = " ".join(element.proto.body for element in app.main.get("html"))
    assert "&lt;img" in shown and "<img" not in shown
    assert not any("<img" in element.value and "\\<img" not in element.value for element in app.subheader)


def test_corrected_rows_of_a_job_are_a_gold_set(app):  # noqa: F811
    from chains.schema import Correction

    run_job(app, "le chat", "the cat")
    [job] = ui.get_jobs().list()
    ui.get_jobs().correct(job.id, 1, Correction(language="french"))
    app.switch_page(PAGE).run()
    choose(app, "Gold set", ("corrected", job.id))
    assert "1 texts with their language, 1 with their names" in plain(app.caption)
    press(app, "Start")
    wait_for_job(app)
    assert scores(app)["Accuracy"] == "0.0%"


def test_unknown_run_is_an_error_with_a_way_out(app):  # noqa: F811
    app.switch_page(PAGE).run()
    app.query_params["run"] = "no-such-run"
    app.run()
    assert "no-such-run" in plain(app.error)
    press(app, "New evaluation")
    assert not app.error


def test_deleted_run_is_gone(app):  # noqa: F811
    evaluate(app, LANGUAGES)
    press(app, "Delete for good")
    assert not app.error and "All evaluations" not in words(app.subheader)
