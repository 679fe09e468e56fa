"""Every page from the entrypoint, with a scripted model in place of the real one."""

import csv
import gzip
import io
import json
import os
import re
import runpy
import threading
import time

import openpyxl
import pyarrow
import pytest
import streamlit as st
from pyarrow import parquet
from streamlit.runtime.scriptrunner import script_runner
from streamlit.testing.v1 import AppTest

import ui
from chains import analysis, registry
from chains.batch import CHUNK
from chains.errors import ModelError
from chains.schema import Analysis, Correction, Detection, Entity, Mention, Recognition

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


def scripted_analyse(texts, model, *, shots=None, tasks=None):
    return [answer(text, model) for text in texts]


def answer(text, model):
    if "unreadable" in text:
        return Analysis(text=text, error="The reply '<' could not be read.", model=model.version)
    sure = 0.6 if "vague" in text else 0.9
    probabilities = {"english": sure, "spanish": 0.04, "french": 0.04, "unknown": round(0.92 - sure, 2)}
    prompts, replies = ("Name the language.",), ("english",)
    entities = [
        Entity(text=name, type=type_, start=text.index(name), end=text.index(name) + len(name))
        for name, type_ in (("Ana", "person"), ("Lyon", "location"))
        if name in text
    ]
    detection = Detection(
        language="english",
        probability=sure,
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


def plain(elements):
    """The words of elements as the user reads them."""
    return words(elements).replace("\\", "")


def wait_for_job(app):
    """The page once its job is over; AppTest does not run fragments by itself."""
    return wait_until(app, lambda: not buttons(app, "Stop"))


def wait_until(app, is_so):
    for _ in range(100):
        app.run()
        if is_so():
            return app
        time.sleep(0.1)
    raise AssertionError(f"It did not come: {plain(app.main)}")


def buttons(app, label):
    return [button for button in app.button if button.label == label]


def press(app, label):
    buttons(app, label)[0].click().run()
    assert not app.exception
    return app


def choose(app, label, option):
    next(box for box in app.main.selectbox if box.label == label).select(option).run()
    assert not app.exception


def upload(app, content, name="mine.csv"):
    app.switch_page(BATCH).run()
    app.file_uploader[0].upload(name, content).run()
    assert not app.exception
    return app


def run_job(app, *texts):
    """The page of a finished job over ``texts``."""
    upload(app, "\n".join(["text", *texts]).encode())
    press(app, "Start")
    return wait_for_job(app)


def job_ids():
    return [job.id for job in ui.get_jobs().list()]


class Gate(threading.Event):
    """Lets ``free`` chunks of jobs pass, and the others when it is set."""

    free = 1

    def analyse(self, texts, model, *, shots=None, tasks=None):
        self.free -= 1
        assert self.free >= 0 or self.wait(30)
        return scripted_analyse(texts, model)


@pytest.fixture
def gate(app, monkeypatch):
    gate = Gate()
    monkeypatch.setattr(analysis, "analyse", gate.analyse)
    yield gate
    gate.set()


@pytest.fixture
def download(monkeypatch):
    """``download(app)``: what the button gives once the file is prepared."""
    given = {}
    show = st.download_button

    def download_button(label, data, *args, key, **options):
        given[key] = data
        return show(label, data, *args, key=key, **options)

    def prepare(app):
        given.pop("download", None)
        press(app, "Prepare download")
        return given["download"]

    monkeypatch.setattr(st, "download_button", download_button)
    return prepare


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
    next(box for box in app.multiselect if box.label == "Kinds of names").select("person").run()
    assert not app.exception
    assert "Rows: 0" in words(app.subheader)


def test_file_is_read_and_every_guess_can_be_corrected(app):
    upload(app, "id;texte\n1;Ana à Lyon\n2;unreadable\n".encode("cp1252"))
    assert "Read as CSV, cp1252, separated by semicolon, first row holds the column names." in plain(app.caption)
    choices = {box.label: box for box in app.main.selectbox}
    assert choices["Column with the texts"].value == "texte"
    choose(app, "Columns separated by", "|")
    assert next(box for box in app.main.selectbox if box.label == "Column with the texts").value == "id;texte"
    choose(app, "Columns separated by", ";")
    choose(app, "First row", False)
    assert app.dataframe[0].value["column 2"].tolist() == ["texte", "Ana à Lyon", "unreadable"]
    choose(app, "First row", True)
    app.switch_page(CHARTS).run()
    app.switch_page(BATCH).run()
    assert next(box for box in app.main.selectbox if box.label == "Columns separated by").value == ";"
    press(app, "Start")
    wait_for_job(app)
    assert "1 of 2 rows could not be read" in app.warning[0].value
    assert app.dataframe[0].value["locations"].tolist()[0] == 1


def written(write):
    target = io.BytesIO()
    write(target)
    return target.getvalue()


def workbook():
    book = openpyxl.Workbook()
    for cells in (["n", "text"], [1, "Ana"], [2, "Lyon"]):
        book.active.append(cells)
    return written(book.save)


LINES = b'{"text": "Ana", "n": 1}\n{"text": "Lyon"}\n'
FILES = {
    "a.csv": (b"n,text\n1,Ana\n2,Lyon\n", "CSV, utf-8, separated by comma, first row holds the column names"),
    "a.tsv": (b"n\ttext\n1\tAna\n2\tLyon\n", "CSV, utf-8, separated by tab, first row holds the column names"),
    "a.txt": (b"text\nAna\nLyon\n", "CSV, utf-8, one column, first row holds the column names"),
    "a.jsonl": (LINES, "JSON Lines, utf-8"),
    "a.ndjson": (LINES, "JSON Lines, utf-8"),
    "a.jsonl.gz": (gzip.compress(LINES), "gzipped JSON Lines, utf-8"),
    "a.csv.gz": (gzip.compress(b"text\nAna\nLyon\n"), "gzipped CSV, utf-8, one column"),
    "a.parquet": (written(lambda to: parquet.write_table(pyarrow.table({"text": ["Ana", "Lyon"]}), to)), "Parquet"),
    "a.xlsx": (workbook(), "Excel, first row holds the column names"),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_is_read_and_run(app, name, tmp_path):
    content, read_as = FILES[name]
    upload(app, content, name)
    assert f"Read as {read_as}" in plain(app.caption)
    assert "**2 rows**, about" in words(app.markdown)
    press(app, "Start")
    wait_for_job(app)
    assert not app.error
    assert app.dataframe[0].value[["text", "people"]].values.tolist() == [["Ana", 1], ["Lyon", 0]]
    assert list((tmp_path / "uploads").iterdir()) == []


def test_rows_that_cannot_be_read_are_told_before_and_cost_the_others_nothing(app):
    upload(app, b"id,text\n1,Ana\n2\n3,Lyon\n")
    assert "1 of 3 rows cannot be read" in app.warning[0].value
    assert "Row 2" in app.warning[0].value
    press(app, "Start")
    wait_for_job(app)
    assert [bool(error) for error in app.dataframe[0].value["error"]] == [False, True, False]


def test_file_that_is_no_table_says_why_and_can_be_replaced(app, tmp_path):
    upload(app, b"%PDF-1.7 ...", "a.csv")
    assert "is a PDF document" in app.error[0].value
    press(app, "Another file")
    assert not app.error and app.file_uploader
    assert list((tmp_path / "uploads").iterdir()) == []


def test_uploads_of_sessions_that_ended_go_after_a_day(app, tmp_path):
    folder = tmp_path / "uploads"
    folder.mkdir()
    for name, age_s in (("old", 2 * ui.SESSION_FILE_AGE_S), ("young", 60)):
        (folder / name).touch()
        os.utime(folder / name, (time.time() - age_s,) * 2)
    upload(app, b"text\nAna\n")
    assert "young" in os.listdir(folder) and "old" not in os.listdir(folder)


def test_running_job_shows_what_is_done_and_can_be_stopped_and_resumed(app, gate, download):
    upload(app, "\n".join(["text", *map(str, range(2 * CHUNK))]).encode())
    press(app, "Start")
    wait_until(app, lambda: app.dataframe)
    assert buttons(app, "Stop") and not buttons(app, "Resume")
    assert len(app.dataframe[0].value) == CHUNK
    assert len(download(app).splitlines()) == CHUNK + 1
    press(app, "Stop")
    assert buttons(app, "Resume")
    gate.set()
    press(app, "Resume")
    wait_for_job(app)
    assert not app.error and not buttons(app, "Resume")
    assert len(app.dataframe[0].value) == 2 * CHUNK


def test_job_without_rows_yet_says_where_they_will_appear(app, gate):
    gate.free = 0
    app.switch_page(BATCH).run()
    press(app, "Try with sample data")
    assert "The rows appear here as they are done." in plain(app.caption)
    assert buttons(app, "Stop") and not app.dataframe
    gate.set()
    wait_for_job(app)
    assert len(app.dataframe[0].value) == 30


def test_database_that_fails_for_a_while_is_told_in_words(app, gate):
    upload(app, "\n".join(["text", *map(str, range(2 * CHUNK))]).encode())
    press(app, "Start")
    wait_until(app, lambda: app.dataframe)
    ui.get_jobs().problem = "The disk is *full*."
    app.run()
    assert "goes on by itself" in app.warning[0].value
    assert r"\*full\*" in app.warning[0].value


def test_job_that_fails_says_why_and_can_be_resumed(app, monkeypatch):
    app.selectbox(key="model").select("bloomz-3b").run()
    app.switch_page(BATCH).run()
    press(app, "Try with sample data")
    wait_for_job(app)
    assert r"\*of memory\*" in app.main.error[0].value
    monkeypatch.setattr(registry, "load", ScriptedModel)
    press(app, "Resume")
    wait_for_job(app)
    assert not app.main.error
    assert len(app.dataframe[0].value) == 30


def test_failed_rows_can_be_tried_again(app, monkeypatch):
    run_job(app, "Ana", "unreadable")
    assert "1 of 2 rows could not be read" in app.warning[0].value
    monkeypatch.setattr(analysis, "analyse", lambda texts, model, **_: scripted_analyse(["mended"] * len(texts), model))
    press(app, "Try the row that failed again")
    wait_for_job(app)
    assert not app.warning and not buttons(app, "Try the row that failed again")
    assert app.dataframe[0].value["error"].tolist() == ["", ""]


def test_jobs_are_listed_renamed_opened_and_deleted(app):
    run_job(app, "Ana", "unreadable")
    press(app, "New file")
    [job_id] = job_ids()
    assert "**mine.csv** · " in plain(app.markdown) and "2 rows · done · 1 failed" in plain(app.markdown)
    app.text_input(key=f"name {job_id}").set_value("<b>Mine</b> *2026*")
    press(app, "Rename")
    assert r"**\<b\>Mine\</b\> \*2026\***" in words(app.markdown)
    press(app, "Open")
    assert app.query_params["job"] == job_id and len(app.dataframe[0].value) == 2
    assert f"?job={job_id}" in words(app.code)
    press(app, "New file")
    press(app, "Delete for good")
    assert job_ids() == [] and "All jobs" not in words(app.subheader)


def test_older_jobs_are_listed_on_demand(app):
    app.switch_page(BATCH).run()
    for _ in range(7):
        press(app, "Try with sample data")
        press(app, "New file")
    assert len(buttons(app, "Open")) == 5
    press(app, "Show more")
    assert len(buttons(app, "Open")) == 7 and not buttons(app, "Show more")


def test_rows_are_filtered_and_what_matches_is_downloaded(app, download):
    run_job(app, "Ana in Lyon", "vague", "unreadable", "Ana")
    filters = {toggle.label: toggle for toggle in app.toggle}
    filters["Only languages less than 90% probable"].set_value(True).run()
    assert app.dataframe[0].value["text"].tolist() == ["vague"]
    choose(app, "Rows", False)
    assert [line[0] for line in csv.reader(io.StringIO(download(app).decode("utf-8-sig")))] == [
        "text",
        "vague",
    ]
    filters = {toggle.label: toggle for toggle in app.toggle}
    filters["Only languages less than 90% probable"].set_value(False)
    filters["Only rows with an error"].set_value(True).run()
    assert app.dataframe[0].value["text"].tolist() == ["unreadable"]
    choose(app, "Rows", True)
    assert len(download(app).splitlines()) == 5


def test_every_format_and_shape_is_downloaded(app, download):
    run_job(app, "Ana in Lyon", "=1+1")
    assert b"\r\n'=1+1," in download(app)
    next(toggle for toggle in app.toggle if "formulas" in toggle.label).set_value(False).run()
    assert b"\r\n=1+1," in download(app)
    choose(app, "Shape", "long")
    lines = list(csv.DictReader(io.StringIO(download(app).decode("utf-8-sig"))))
    assert [(line["entity"], line["type"]) for line in lines] == [("Ana", "person"), ("Lyon", "location")]
    choose(app, "Shape", "wide")
    choose(app, "File format", "jsonl")
    assert [json.loads(line)["people"] for line in download(app).splitlines()] == [1, 0]
    choose(app, "File format", "parquet")
    assert parquet.read_table(io.BytesIO(download(app))).column("text").to_pylist() == ["Ana in Lyon", "=1+1"]
    choose(app, "File format", "xlsx")
    assert "32,767 characters" in words(app.caption)
    sheet = openpyxl.load_workbook(io.BytesIO(download(app))).active
    assert [cell.value for cell in sheet["A"]] == ["text", "Ana in Lyon", "=1+1"]


def test_prepared_file_is_of_the_choices_on_the_page_and_leaves_nothing_behind(app, download, tmp_path, monkeypatch):
    def prepared():
        return [button.label for button in app.get("download_button")], len(list((tmp_path / "downloads").iterdir()))

    run_job(app, "Ana in Lyon and nobody anywhere else", "Bo")
    size = len(download(app))
    assert prepared() == ([f"Download 2 rows ({ui.format_bytes(size)})"], 1)
    choose(app, "File format", "jsonl")
    assert prepared() == ([], 0)
    choose(app, "File format", "xlsx")
    monkeypatch.setattr("chains.exports.MAX_SHEET_CHARACTERS", 30)
    press(app, "Prepare download")
    assert "Row 1 has 36 characters in column 'text'" in plain(app.error)
    assert prepared() == ([], 0)
    app.switch_page(CHARTS).run()
    app.switch_page(BATCH).run()
    assert not app.error


def test_disk_without_room_is_an_error_in_words(app, monkeypatch, tmp_path):
    (tmp_path / "uploads").touch()  # no folder can be made there
    upload(app, b"text\nAna\n")
    assert "Cannot write a file in" in plain(app.error) and app.file_uploader


def test_pages_look_at_the_first_rows_only_and_say_so(app, download, monkeypatch):
    monkeypatch.setattr(ui, "MAX_ROWS", 10)
    app.switch_page(BATCH).run()
    press(app, "Try with sample data")
    wait_for_job(app)
    assert len(app.dataframe[0].value) == 10
    assert "the first 10 of 30 finished rows" in plain(app.caption)
    assert len(download(app).splitlines()) > 30
    app.switch_page(CHARTS).run()
    assert "the first 10 of 30 finished rows" in plain(app.caption)
    assert "Rows: 10" in words(app.subheader)


def test_long_texts_count_against_what_pages_look_at(app, monkeypatch):
    monkeypatch.setattr(ui, "MAX_CHARACTERS", 8)
    run_job(app, "Ana", "Lyon", "Bo")
    assert app.dataframe[0].value["text"].tolist() == ["Ana", "Lyon"]


@pytest.mark.parametrize("page", [BATCH, CHARTS])
def test_database_that_cannot_be_used_is_an_error_in_words(app, monkeypatch, page):
    monkeypatch.setenv("BLOOM_LENS_DATABASE", "nonsense")
    app.switch_page(page).run()
    assert not app.exception
    assert "BLOOM\\_LENS\\_DATABASE" in app.main.error[0].value


def test_model_server_cannot_be_chosen_in_the_dashboard(app):
    app.selectbox(key="model").select(ui.FOLDER).run()
    app.text_input(key="model_folder").set_value(" openai:http://169.254.169.254#x").run()
    assert "cannot be chosen here" in app.sidebar.error[0].value
    assert "embedded · 0123abcd is ready" in plain(app.sidebar.caption)
    app.switch_page(BATCH).run()
    press(app, "Try with sample data")
    wait_for_job(app)
    assert [job.model for job in ui.get_jobs().list()] == ["embedded"]


PAYLOAD = "<img src=x onerror=alert(1)> [a](javascript:alert(2)) *b* $c$ :red[d]"


def test_names_of_files_and_columns_are_never_markup(app):
    column = PAYLOAD.replace(",", "")
    upload(app, f"id,{column}\n1,{PAYLOAD}\n2\n".encode(), f"{PAYLOAD}.csv")
    choose(app, "Column with the texts", column)
    press(app, "Start")
    wait_for_job(app)
    assert app.dataframe[0].value[column].tolist()[0] == PAYLOAD
    shown = [*app.markdown, *app.caption, *app.subheader, *app.warning, *app.error]
    assert any("onerror" in element.value for element in shown)
    # What a backslash stands before is no markup.
    assert not any(re.search(r"(?<!\\)(<img|\[a|\*b|\$c|:red)", element.value) for element in shown)


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


# Corrections


def pick(app, number):
    """The page with this row of the only job picked; AppTest cannot click into a table."""
    (id,) = job_ids()
    app.session_state[f"picked {id}"] = number
    app.run()
    assert not app.exception
    return app


def mark_by_list(app, first, last, kind):
    for label, option in (("From word", first), ("To word", last), ("Is a", kind)):
        box = next(box for box in app.main.selectbox if box.label == label)
        box.select_index(box.options.index(option)).run()
    return press(app, "Apply")


def corrections():
    (id,) = job_ids()
    return ui.get_jobs().corrections(id)


def test_row_is_corrected_undone_and_corrected_again_after_a_reload(app):
    run_job(app, f"😀 {TEXT}", "other")
    assert "Tick a row" in words(app.caption) and not buttons(app, "Undo")
    pick(app, 1)
    assert [heading.value for heading in app.subheader][1] == "Row 1"
    choose(app, "Language of this row", "french")
    assert corrections()[1].language == "french"
    assert "The model's own answer: English (90.0%); Ana (PER), Lyon (LOC)." in plain(app.caption)
    table = app.main.dataframe[0].value
    assert table["language"].tolist() == ["French", "English"] and table["corrected"].tolist() == ["corrected", ""]
    mark_by_list(app, "3: left", "4: Lyon", "Organization")
    left_lyon = Entity(text="left Lyon", type="organization", start=6, end=15)
    assert [entity.text for entity in corrections()[1].entities] == ["Ana", "left Lyon"]
    assert corrections()[1].entities[1] == left_lyon
    mark_by_list(app, "2: Ana", "2: Ana", "Location")
    mark_by_list(app, "3: left", "3: left", "Not a name")
    assert corrections()[1].entities == (Entity(text="Ana", type="location", start=2, end=5),)
    press(app, "Undo")
    assert corrections()[1].entities[1] == left_lyon
    for _ in range(3):
        press(app, "Undo")
    assert corrections() == {} and not buttons(app, "Undo")
    assert next(box for box in app.main.selectbox if box.label == "Language of this row").value == "english"
    assert app.main.dataframe[0].value["language"].tolist() == ["English", "English"]


def test_row_that_failed_is_answered_and_one_that_is_right_is_confirmed(app):
    run_job(app, "unreadable Lyon", TEXT)
    pick(app, 1)
    choose(app, "Language of this row", "spanish")
    assert "own answer: none. The reply '<' could not be read." in plain(app.caption)
    pick(app, 2)
    press(app, "Right as it is")
    assert corrections()[2] == Correction(
        language="english",
        entities=(
            Entity(text="Ana", type="person", start=0, end=3),
            Entity(text="Lyon", type="location", start=9, end=13),
        ),
    )
    assert app.main.dataframe[0].value["corrected"].tolist() == ["corrected", "corrected"]


def test_charts_follow_corrections(app):
    run_job(app, TEXT, TEXT)
    pick(app, 2)
    choose(app, "Language of this row", "french")
    mark_by_list(app, "1: Ana", "1: Ana", "Not a name")
    app.switch_page(CHARTS).run()
    assert not app.exception
    table = app.main.dataframe[0].value
    assert table["language"].tolist() == ["English", "French"] and table["people"].tolist() == [1, 0]


def test_corrected_rows_are_downloaded_as_gold(app, download, tmp_path):
    run_job(app, TEXT, "=other")
    assert (
        "Gold set: only corrected rows" not in next(box for box in app.main.selectbox if box.label == "Shape").options
    )
    pick(app, 2)
    choose(app, "Language of this row", "french")
    choose(app, "Shape", "gold")
    assert download(app).decode() == '{"text": "=other", "language": "french", "entities": []}\n'
    assert buttons(app, "Prepare download")
    choose(app, "Language of this row", "spanish")
    assert not [button for button in app.get("download_button") if button.proto.label.startswith("Download")]
    choose(app, "File format", "csv")
    assert download(app).decode("utf-8-sig") == "text,language\r\n'=other,spanish\r\n"
    app.toggle(key=f"neutralise {job_ids()[0]}").set_value(False).run()
    assert download(app).decode("utf-8-sig") == "text,language\r\n=other,spanish\r\n"
    choose(app, "Shape", "wide")
    assert b"spanish,,[],0,0,0,True" in download(app)


def test_corrected_row_is_shown_as_a_shot(app):
    run_job(app, f"{TEXT} Lyon")
    pick(app, 1)
    press(app, "Right as it is")
    assert "  - text: Ana left Lyon. Lyon\n    reply: english" in words(app.code)
    assert "A shot cannot say this" in plain(app.caption)  # one Lyon of two is marked
    mark_by_list(app, "5: Lyon", "5: Lyon", "Location")
    assert "    reply: <Ana>(person) <Lyon>(location)" in words(app.code)


def test_rows_stand_least_sure_first_and_buttons_lead_through_them(app):
    run_job(app, "sure", "unreadable", "vague", "vague again")
    id = job_ids()[0]
    app.toggle(key=f"doubt {id}").set_value(True).run()
    assert app.main.dataframe[0].value["text"].tolist() == ["unreadable", "vague", "vague again", "sure"]
    pick(app, 2)
    assert buttons(app, "Previous")[0].disabled
    for number in (3, 4, 1):
        press(app, "Next")
        assert f"Row {number}" in words(app.subheader)
    assert buttons(app, "Next")[0].disabled
    press(app, "Previous")
    choose(app, "Language of this row", "french")
    app.toggle(key=f"unsure {id}").set_value(True).run()
    assert app.main.dataframe[0].value["text"].tolist() == ["vague"]
    assert "Row 4" in words(app.subheader)
    press(app, "Next")
    assert "Row 3" in words(app.subheader)
    app.toggle(key=f"unsure {id}").set_value(False).run()
    app.toggle(key=f"corrected {id}").set_value(True).run()
    assert app.main.dataframe[0].value["text"].tolist() == ["vague again"]


def test_correction_that_cannot_be_stored_is_told_in_words(app):
    run_job(app, TEXT, '"a" b')
    pick(app, 1)
    ui.get_jobs().store.delete_job(job_ids()[0])
    press(app, "Right as it is")
    assert "There is no job" in plain(app.error)


def test_row_without_a_text_cannot_be_corrected(app):
    upload(app, b"id,text\n1,a\n2\n")
    press(app, "Start")
    wait_for_job(app)
    pick(app, 2)
    press(app, "Right as it is")
    assert "Row 2 has no text that could be answered. " in plain(app.error)
    assert corrections() == {}
