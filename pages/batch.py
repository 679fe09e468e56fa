"""A table of texts → a job with progress, results as they come and downloads; below, the list of all jobs."""

from datetime import datetime
from pathlib import Path

import streamlit as st

import plots
import ui
from chains import ChainError
from chains.batch import JobStatus
from chains.registry import MODELS
from chains.tables import DELIMITERS, Table, guess_text_column, read_table, to_csv, to_jsonl

SAMPLE = Path(__file__).with_name("sample.csv")
ENCODINGS = ["utf-8", "cp1252", "latin-1", "iso-8859-15", "utf-16", "mac-roman"]
DELIMITER_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar", "": "nothing (one column)"}
# What bloomz-560m took for a short text on two cores, per parameter; only for a model that no job has measured yet.
SECONDS_PER_PARAMETER = 2e-10


def open_job(job_id: str | None) -> None:
    """Show this job, or the upload: the URL carries it over a refresh, the session over a visit to another page."""
    st.session_state.job = job_id
    st.query_params.from_dict({"job": job_id} if job_id else {})


def keep_upload() -> None:
    """Called when a file comes or goes, not when the page is left: so the file is there on return."""
    uploaded = st.session_state.upload
    st.session_state.file = (uploaded.file_id, uploaded.name, uploaded.getvalue()) if uploaded else None
    st.session_state.pop("table", None)


def submit(name: str, table: Table, column: str) -> None:
    try:
        open_job(ui.get_jobs().submit(name, table, column, ui.picked_name(), ui.picked_shots()))
    except ChainError as error:
        st.session_state.problem = error


def read_file(file_id: str, name: str, content: bytes, encoding: str | None, delimiter: str | None) -> Table:
    """The table, read again only when the file or a choice changed: parsing 200 MB takes seconds."""
    wanted = (file_id, encoding, delimiter)
    if st.session_state.get("table", (None,))[0] != wanted:
        with st.spinner("Reading the file…"):
            st.session_state.table = (wanted, read_table(content, encoding=encoding, delimiter=delimiter, name=name))
    return st.session_state.table[1]


def estimate_seconds(rows: int) -> float | None:
    """How long the picked model needs: by the last job it ran, else by its size; ``None`` if that is unknown."""
    name = ui.picked_name()
    measured = next((job.rows_per_second for job in ui.get_jobs().list() if job.model == name and job.done), 0.0)
    if measured:
        return rows / measured
    return rows * MODELS[name].parameters * SECONDS_PER_PARAMETER if name in MODELS else None


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
    encoding = left.selectbox("Encoding", [None, *ENCODINGS], format_func=lambda e: e or "Detect", key=f"e {file_id}")
    delimiters = [None, *DELIMITERS, ""]
    name_delimiter = lambda d: "Detect" if d is None else DELIMITER_NAMES[d].capitalize()  # noqa: E731
    delimiter = right.selectbox("Columns separated by", delimiters, format_func=name_delimiter, key=f"d {file_id}")
    try:
        table = read_file(file_id, name, content, encoding, delimiter)
    except ChainError as error:
        ui.show_error(error)
        return
    read_as = f"read as {table.encoding}, separated by {DELIMITER_NAMES.get(table.delimiter, repr(table.delimiter))}"
    st.caption(f"{ui.escape_markdown(name)}: {read_as}. The first rows:")
    st.dataframe(table.frame.head(), hide_index=True)
    guess = table.columns.index(guess_text_column(table))
    column = st.selectbox("Column with the texts", table.columns, index=guess, key=f"column {file_id} {encoding} {delimiter}")
    rows = len(table.frame)
    words = f"**{rows:,} {'row' if rows == 1 else 'rows'}**, about {ui.format_seconds(estimate_seconds(rows))}"
    st.markdown(f"{words} with {ui.escape_markdown(ui.picked_name())}")
    st.button("Start", key="start", type="primary", on_click=submit, args=(name, table, column))


def show_progress(job_id: str, was_live: bool) -> None:
    job = ui.get_jobs().status(job_id)
    if was_live and not job.is_live:
        st.rerun()  # the whole page, which then stops asking
    texts = {
        "waiting": "Waiting for its turn",
        "running": f"{job.rows_per_second:,.1f} rows per second · {ui.format_seconds(job.seconds_left)} left",
        "done": f"Done in {ui.format_seconds(job.seconds)}",
        "stopped": "Stopped",
        "failed": "Failed",
    }
    words = texts[job.state] if job.done or job.state != "running" else f"Loading {ui.escape_markdown(job.model)}…"
    st.progress(job.done / job.total, f"{job.done:,} of {job.total:,} rows · {words}")
    if job.failed:
        st.warning(f"{job.failed:,} of {job.total:,} rows could not be read. Their column “error” says why.")
    if job.error:
        st.error(ui.escape_markdown(job.error))
    if job.is_live:
        st.button("Stop", key="stop", on_click=ui.get_jobs().stop, args=(job_id,), icon=":material/stop:")
    elif job.state != "done":
        st.button("Resume", key="resume", on_click=ui.get_jobs().resume, args=(job_id,), icon=":material/play_arrow:")


def show_results(job_id: str) -> None:
    job = ui.get_jobs().status(job_id)
    if not job.done:
        return
    frame = ui.get_results(job)
    languages = plots.count_languages(plots.read_results(frame))["language"]
    first, second, third, fourth = st.columns(4, vertical_alignment="bottom")
    rows = plots.filter_rows(
        frame,
        languages=first.multiselect("Languages", languages, format_func=plots.language_label, key=f"languages {job_id}"),
        types=second.multiselect("Names a", plots.TYPES, format_func=ui.type_label, key=f"types {job_id}"),
        search=third.text_input("Text contains", key=f"search {job_id}"),
        column=job.text_column,
        only_errors=fourth.toggle("Only rows with an error", key=f"errors {job_id}"),
    )
    ui.show_rows(rows, job.text_column)
    name = Path(job.name).stem
    with st.container(horizontal=True):
        for kind, write, mime in (("csv", to_csv, "text/csv"), ("jsonl", to_jsonl, "application/jsonl")):
            st.download_button(
                f"Download {kind.upper()} ({len(rows):,} {'row' if len(rows) == 1 else 'rows'})",
                lambda write=write: write(rows),
                f"{name}-results.{kind}",
                mime,
                key=f"download {kind}",
                on_click="ignore",
            )


def show_job(job: JobStatus) -> None:
    shots = "" if job.shots is None else f" · {job.shots} shots"
    st.subheader(ui.escape_markdown(job.name))
    st.caption(f"{ui.escape_markdown(job.version or job.model)}{shots} · column “{ui.escape_markdown(job.text_column)}”")
    with st.container(horizontal=True):
        st.button("New file", key="new", on_click=open_job, args=(None,), icon=":material/add:")
        if job.done and st.button("Charts", key="to_charts", icon=":material/bar_chart:"):
            st.switch_page("pages/charts.py")
    st.fragment(show_progress, run_every=1 if job.is_live else None)(job.id, job.is_live)
    st.fragment(show_results, run_every=3 if job.is_live else None)(job.id)


def delete_job(job_id: str) -> None:
    ui.get_jobs().delete(job_id)
    if st.session_state.get("job") == job_id:
        open_job(None)


def show_jobs(jobs: list[JobStatus]) -> None:
    st.subheader("All jobs")
    for job in jobs:
        with st.container(horizontal=True, vertical_alignment="center", border=True):
            when = datetime.fromisoformat(job.created).astimezone().strftime("%d %b %Y, %H:%M")
            rows = f"{job.total:,} rows" if job.done == job.total else f"{job.done:,} of {job.total:,} rows"
            st.markdown(f"**{ui.escape_markdown(job.name)}** · {when} · {rows} · {job.state}")
            st.button("Open", key=f"open {job.id}", on_click=open_job, args=(job.id,))
            with st.popover("Delete"):
                st.write("The job and its results go for good.")
                st.button("Delete for good", key=f"delete {job.id}", on_click=delete_job, args=(job.id,))


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
