"""A table of texts → a job with progress, results as they come and downloads; below, the list of all jobs."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import streamlit as st

import plots
import ui
from chains import ChainError
from chains.batch import JobStatus
from chains.registry import MODELS
from chains.tables import Table, guess_text_column, read_table, to_csv, to_jsonl
from plots import TYPES

SAMPLE = Path(__file__).with_name("sample.csv")
NEWEST = 5  # jobs that are listed at once
ENCODINGS = ["utf-8", "cp1252", "latin-1", "iso-8859-15", "utf-16", "mac-roman"]
DELIMITER_NAMES = {",": "Comma", ";": "Semicolon", "\t": "Tab", "|": "Vertical bar", "": "Nothing: one column"}
# Per parameter, for random weights in bloomz-560m's shape and a short text; only until a job has measured the model.
SECONDS_PER_PARAMETER = 2e-10
# What the embedded model takes on two cores (benchmarks/RESULTS.md); no model is faster.
LEAST_SECONDS = 0.022


def open_job(job_id: str | None) -> None:
    """Show this job, or the upload: the URL carries it over a refresh, the session over a visit to another page."""
    st.session_state.job = job_id
    st.query_params.from_dict({"job": job_id} if job_id else {})


def keep_upload() -> None:
    """Called when a file comes or goes, not when the page is left: so the file is there on return."""
    uploaded = st.session_state.upload
    st.session_state.file = (uploaded.file_id, uploaded.name, uploaded.getvalue()) if uploaded else None
    st.session_state.pop("table", None)


def attempt(action: Callable[..., Any], *args: Any) -> Any:
    """What ``action`` gives; what goes wrong in it is shown at the top of the page."""
    try:
        return action(*args)
    except ChainError as error:
        st.session_state.problem = error


def submit(name: str, table: Table, column: str) -> None:
    open_job(attempt(ui.get_jobs().submit, name, table, column, ui.picked_name(), ui.picked_shots()))


def delete_job(job_id: str) -> None:
    attempt(ui.get_jobs().delete, job_id)
    if st.session_state.get("job") == job_id:
        open_job(None)


def read_file(file_id: str, name: str, content: bytes, encoding: str | None, delimiter: str | None) -> Table:
    """The table, read again only when the file or a choice changed: parsing 200 MB takes seconds."""
    wanted = (file_id, encoding, delimiter)
    if st.session_state.get("table", (None,))[0] != wanted:
        with st.spinner("Reading the file…"):
            st.session_state.table = (wanted, read_table(content, encoding=encoding, delimiter=delimiter, name=name))
    return st.session_state.table[1]


def estimate_seconds(rows: int) -> int | None:
    """How long the picked model needs: by the last job it ran, else by its size; ``None`` if that is unknown."""
    name = ui.picked_name()
    measured = next((job.rows_per_second for job in ui.get_jobs().list() if job.model == name and job.done), 0.0)
    if measured:
        return math.ceil(rows / measured)
    if name not in MODELS:
        return None
    return math.ceil(rows * max(LEAST_SECONDS, MODELS[name].parameters * SECONDS_PER_PARAMETER))


def show_upload() -> None:
    st.file_uploader("CSV file with one text per row", type=["csv", "tsv", "txt"], key="upload", on_change=keep_upload)
    file = st.session_state.get("file")
    if file is None:
        st.caption("The file stays on this machine. No file at hand?")
        sample = read_table(SAMPLE)
        st.button("Try with sample data", key="sample", on_click=submit, args=("Sample data", sample, "text"))
        return
    file_id, name, content = file
    left, right = st.columns(2)
    encoding = left.selectbox(
        "Encoding", [None, *ENCODINGS], format_func=lambda name: name or "Detect", key=f"encoding {file_id}"
    )
    delimiter = right.selectbox(
        "Columns separated by",
        [None, *DELIMITER_NAMES],
        format_func=lambda character: DELIMITER_NAMES.get(character, "Detect"),
        key=f"delimiter {file_id}",
    )
    try:
        table = read_file(file_id, name, content, encoding, delimiter)
    except ChainError as error:
        ui.show_error(error)
        return
    read_as = f"{table.encoding}, separated by {DELIMITER_NAMES[table.delimiter].lower()}"
    st.caption(f"{ui.escape_markdown(name)} was read as {read_as}. Its first rows:")
    st.dataframe(table.frame.head(), hide_index=True)
    guess = table.columns.index(guess_text_column(table))
    column = st.selectbox(
        "Column with the texts", table.columns, index=guess, key=f"column {file_id} {encoding} {delimiter}"
    )
    about = ui.format_seconds(estimate_seconds(len(table.frame)))
    st.markdown(f"**{ui.count_rows(len(table.frame))}**, about {about} with {ui.escape_markdown(ui.picked_name())}")
    st.button("Start", key="start", type="primary", on_click=submit, args=(name, table, column))


def show_progress(job: JobStatus) -> None:
    words = {
        "waiting": "waiting for its turn",
        "running": f"{job.rows_per_second:,.1f} rows per second · {ui.format_seconds(job.seconds_left)} left",
        "done": f"done in {ui.format_seconds(job.seconds)}",
    }.get(job.state, job.state)
    if job.state == "running" and not job.done:
        words = f"loading {ui.escape_markdown(job.model)}…"
    st.progress(job.done / job.total, f"{job.done:,} of {ui.count_rows(job.total)} · {words}")
    if job.failed:
        st.warning(f"{job.failed:,} of {ui.count_rows(job.done)} could not be read; the column “error” says why.")
    if job.error:
        st.error(ui.escape_markdown(job.error))
    if job.is_live:
        st.button("Stop", key="stop", on_click=attempt, args=(ui.get_jobs().stop, job.id), icon=":material/stop:")
    elif job.state != "done":
        st.button(
            "Resume", key="resume", on_click=attempt, args=(ui.get_jobs().resume, job.id), icon=":material/play_arrow:"
        )


def show_results(job: JobStatus) -> None:
    frame = ui.get_results(job)
    languages = plots.count_languages(plots.read_results(frame))["language"]
    first, second, third = st.columns(3)
    rows = plots.filter_rows(
        frame,
        languages=first.multiselect(
            "Languages", languages, format_func=plots.label_language, key=f"languages {job.id}", placeholder="All"
        ),
        types=second.multiselect(
            "Rows that name",
            TYPES,
            format_func=lambda name: TYPES[name].many,
            key=f"types {job.id}",
            placeholder="Anything",
        ),
        search=third.text_input("Text contains", key=f"search {job.id}"),
        column=job.text_column,
        only_errors=bool(job.failed) and st.toggle("Only rows with an error", key=f"errors {job.id}"),
    )
    ui.show_rows(rows, job.text_column)
    with st.container(horizontal=True):
        for kind, write, mime in (("csv", to_csv, "text/csv"), ("jsonl", to_jsonl, "application/jsonl")):
            st.download_button(
                f"{kind.upper()}, {ui.count_rows(len(rows))}",
                lambda write=write: write(rows),
                f"{Path(job.name).stem}-results.{kind}",
                mime,
                key=f"download {kind}",
                on_click="ignore",
                icon=":material/download:",
            )


def show_live(job_id: str, was_live: bool) -> None:
    """Everything about a job that changes while it runs; only reads."""
    try:
        job = ui.get_jobs().status(job_id)
        show_progress(job)
        if job.done:
            show_results(job)
    except ChainError as error:
        ui.show_error(error)
        return
    if job.is_live != was_live:
        st.rerun()  # the whole page, which then stops or begins to ask every second


def show_job(job: JobStatus) -> None:
    shots = "" if job.shots is None else f" · {job.shots} shots"
    st.subheader(ui.escape_markdown(job.name))
    st.caption(ui.escape_markdown(f"{job.version or job.model}{shots} · texts in column “{job.text_column}”"))
    with st.container(horizontal=True):
        st.button("New file", key="new", on_click=open_job, args=(None,), icon=":material/add:")
        if job.done and st.button("Charts", key="to_charts", icon=":material/bar_chart:"):
            st.switch_page("pages/charts.py")
    st.fragment(show_live, run_every=1 if job.is_live else None)(job.id, job.is_live)


def show_jobs(jobs: list[JobStatus]) -> None:
    st.subheader("All jobs")
    older = st.expander(f"{len(jobs) - NEWEST:,} older") if len(jobs) > NEWEST else None
    for number, job in enumerate(jobs):
        place = st if number < NEWEST or older is None else older
        with place.container(horizontal=True, vertical_alignment="center", border=True):
            rows = ui.count_rows(job.total) if job.done == job.total else f"{job.done:,} of {ui.count_rows(job.total)}"
            name = ui.escape_markdown(job.name)
            st.markdown(f"**{name}** · {ui.format_time(job.created)} · {rows} · {job.state}", width="stretch")
            st.button("Open", key=f"open {job.id}", on_click=open_job, args=(job.id,))
            with st.popover("Delete"):
                st.write("The job and its results go for good.")
                st.button("Delete for good", key=f"delete {job.id}", on_click=delete_job, args=(job.id,))


ui.require_entrypoint()
st.title("Many texts at once")
if problem := st.session_state.pop("problem", None):
    ui.show_error(problem)
if "job" not in st.query_params and st.session_state.get("job"):
    open_job(st.session_state.job)
if job_id := st.query_params.get("job"):
    try:
        st.session_state.job = job_id
        show_job(ui.get_jobs().status(job_id))
    except ChainError as error:
        ui.show_error(error)
        st.button("New file", key="new", on_click=open_job, args=(None,))
else:
    show_upload()
if jobs := ui.get_jobs().list():
    show_jobs(jobs)
