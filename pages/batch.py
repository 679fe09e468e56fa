"""A table of texts → a job with progress, results as they come and downloads; below, the other jobs."""

import math
import secrets
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

import plots
import ui
from chains import ChainError
from chains.batch import layout_of, tasks_of
from chains.exports import FORMATS, MEDIA_TYPES, SHAPES, write_results
from chains.registry import MODELS
from chains.store import Job
from chains.tables import Table, scan

SAMPLE = Path(__file__).with_name("sample.csv")
LIVE_S = 1  # between two looks at a job that runs
OTHERS_S = 5  # at one that does not, but may be resumed in another browser
LISTED = 5  # jobs at first, and so many more at each click
ENDINGS = ["csv", "tsv", "txt", "jsonl", "ndjson", "parquet", "xlsx", "gz"]
KIND_NAMES = {"csv": "CSV", "jsonl": "JSON Lines", "parquet": "Parquet", "excel": "Excel"}
ENCODINGS = ["utf-8", "cp1252", "latin-1", "iso-8859-15", "utf-16", "mac-roman"]
DELIMITER_NAMES = {",": "Comma", ";": "Semicolon", "\t": "Tab", "|": "Vertical bar", "": "Nothing: one column"}
HEADER_NAMES = {True: "Holds the column names", False: "Is a row like the others"}
# What the user may overrule, and in a file of which kind.
CORRECTIONS: dict[str, tuple[str, dict[Any, str]]] = {
    "encoding": ("Encoding", dict(zip(ENCODINGS, ENCODINGS, strict=True))),
    "delimiter": ("Columns separated by", DELIMITER_NAMES),
    "has_header": ("First row", HEADER_NAMES),
}
CORRECTABLE = {"csv": ["encoding", "delimiter", "has_header"], "excel": ["has_header"]}
FORMAT_NAMES = dict(zip(FORMATS, ("CSV", "JSON Lines", "Parquet", "Excel"), strict=True))
SHAPE_NAMES = dict(zip(SHAPES, ("One row per text", "One row per name"), strict=True))
UNSURE_BELOW = 0.9
# Per parameter, for random weights in bloomz-560m's shape and a short text; only until a job has measured the model.
SECONDS_PER_PARAMETER = 2e-10
# What the embedded model takes on two cores (benchmarks/RESULTS.md); no model is faster.
LEAST_SECONDS = 0.022


def open_job(job_id: str | None) -> None:
    """Show this job, or the upload: the URL carries it over a refresh, the session over a visit to another page."""
    st.session_state.job = job_id
    st.query_params.from_dict({"job": job_id} if job_id else {})


def attempt(action: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What ``action`` gives; what goes wrong in it is shown at the top of the page."""
    try:
        return action(*args, **options)
    except ChainError as error:
        st.session_state.problem = error


# A file → a job


def take_file(key: str) -> None:
    """Called when a file has come into the uploader, and again when it has left its memory for the disk."""
    uploaded = st.session_state[key]
    if isinstance(uploaded, UploadedFile) and (path := attempt(ui.keep_upload, uploaded)):
        st.session_state.file = (path, uploaded.name)
        # The browser would show the next uploader of the same key with this file in it.
        st.session_state.pop("uploader", None)


def drop_file() -> None:
    path, _ = st.session_state.pop("file", (None, None))
    if path:
        path.unlink(missing_ok=True)


def start(table: Table, column: str, name: str) -> None:
    """Begin a job and open it."""
    tasks = attempt(ui.picked_tasks)
    if not tasks:
        st.rerun()
    with st.spinner("Storing the file…", show_time=True):
        submit = ui.get_jobs().submit
        job_id = attempt(submit, table, column, ui.picked_name(), ui.picked_shots(), tasks=tasks, name=name, owner="")
    if job_id:
        drop_file()
        open_job(job_id)
    st.rerun()


def estimate_seconds(rows: int) -> int | None:
    """How long the picked model needs: by the last job it ran, else by its size; ``None`` if that is unknown."""
    name = ui.picked_name()
    jobs = ui.get_jobs().list(owner="")
    if measured := next((job.rows_per_second for job in jobs if job.model == name and job.done), 0.0):
        return math.ceil(rows / measured)
    if name not in MODELS:
        return None
    return math.ceil(rows * max(LEAST_SECONDS, MODELS[name].parameters * SECONDS_PER_PARAMETER))


def show_upload() -> None:
    if "file" not in st.session_state:
        key = st.session_state.setdefault("uploader", f"upload {secrets.token_hex(4)}")
        st.file_uploader("A file with one text per row", type=ENDINGS, key=key, on_change=take_file, args=(key,))
        st.caption("Only this dashboard reads it. A .gz file may hold CSV or JSON Lines. No file at hand?")
        if st.button("Try with sample data", key="sample"):
            start(scan(SAMPLE), "text", "Sample data")
        return
    path, name = st.session_state.file
    if not path.exists():
        drop_file()
        st.rerun()
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader(ui.escape_markdown(name), anchor=False, width="stretch")
        st.button("Another file", key="another", on_click=drop_file, icon=":material/close:")
    keys = {name: f"{name} of {path.name}" for name in CORRECTIONS}
    choices = {name: st.session_state.get(key) for name, key in keys.items()}
    try:
        table, first_rows, guess = ui.read_upload(path, name, **choices)
    except ChainError as error:
        ui.show_error(error)
        show_corrections("csv", keys)  # another way to read it may help
        return
    st.caption(describe(table))
    if table.unreadable:
        st.warning(
            f"{table.unreadable:,} of {ui.count_rows(table.total)} cannot be read; each gets an error in the results. "
            f"{'The first' if table.unreadable > len(table.problems) else 'These are'}:\n"
            + "".join(f"\n- {ui.escape_markdown(problem)}" for problem in table.problems)
        )
    show_corrections(table.layout.kind, keys)
    st.dataframe(first_rows, hide_index=True)
    # Another layout has other columns.
    key = f"column of {path.name} {table.layout.delimiter} {table.layout.has_header} {table.layout.encoding}"
    index = table.columns.index(guess)
    column = st.selectbox("Column with the texts", table.columns, index=index, key=key, persist_state="session")
    about = ui.format_seconds(estimate_seconds(table.total))
    st.markdown(f"**{ui.count_rows(table.total)}**, about {about} with {ui.escape_markdown(ui.picked_name())}")
    if st.button("Start", key="start", type="primary"):
        start(table, column, name)


def describe(table: Table) -> str:
    """How the file was read, in words."""
    layout = table.layout
    words = [("gzipped " if layout.is_gzip else "") + KIND_NAMES[layout.kind]]
    if layout.encoding:
        words.append(layout.encoding)
    if layout.kind == "csv" and layout.delimiter:
        words.append(f"separated by {DELIMITER_NAMES[layout.delimiter].lower()}")
    elif layout.kind == "csv":
        words.append("one column")
    if layout.kind in {"csv", "excel"}:
        words.append(f"first row {HEADER_NAMES[layout.has_header].lower()}")
    return ui.escape_markdown(f"Read as {', '.join(words)}.")


def show_corrections(kind: str, keys: dict[str, str]) -> None:
    """Let the user overrule what was detected, as far as a file of this kind leaves it open."""
    names = CORRECTABLE.get(kind, [])
    for name, place in zip(names, st.columns(len(names)) if names else (), strict=True):
        label, options = CORRECTIONS[name]
        place.selectbox(
            label,
            [None, *options],
            format_func=lambda option, options=options: options.get(option, "Detect"),
            key=keys[name],
            persist_state="session",
        )


# A job → its rows


def show_progress(job_id: str, drawn: str) -> None:
    """How far the job is, again and again; when its rows have changed since ``drawn``, the page runs anew."""
    jobs = ui.get_jobs()
    try:
        job = jobs.status(job_id)
    except ChainError as error:
        ui.show_error(error)
        return
    if ui.table_version(job) != drawn:
        st.rerun()
    place = job.done if job.retried is None else job.retried
    st.progress(place / job.total, f"{place:,} of {ui.count_rows(job.total)} · {describe_state(job)}")
    if jobs.problem:
        words = ui.escape_markdown(jobs.problem)
        st.warning(f"Nothing can be stored at the moment; the job goes on by itself once that works again. {words}")
    if job.failed:
        st.warning(f"{job.failed:,} of {ui.count_rows(job.done)} could not be read; the column “error” says why.")
    if job.error:
        st.error(ui.escape_markdown(job.error))
    with st.container(horizontal=True):
        if job.is_live:
            st.button("Stop", key="stop", on_click=attempt, args=(jobs.stop, job.id), icon=":material/stop:")
        elif job.state != "done":
            st.button(
                "Resume", key="resume", on_click=attempt, args=(jobs.resume, job.id), icon=":material/play_arrow:"
            )
        elif job.failed:
            again = "row that failed" if job.failed == 1 else f"{job.failed:,} rows that failed"
            words = f"Try the {again} again"
            st.button(words, key="retry", on_click=attempt, args=(jobs.retry, job.id), icon=":material/replay:")


def describe_state(job: Job) -> str:
    """What the job is doing, in words."""
    if job.state == "waiting":
        return "waiting for its turn"
    if job.state == "done":
        return f"done in {ui.format_seconds(job.seconds)}"
    if job.state != "running":
        return job.state
    if job.retried is not None:
        return "trying again what failed"
    if not job.done:
        return f"loading {ui.escape_markdown(job.model)}…"
    return f"{job.rows_per_second:,.1f} rows per second · {ui.format_seconds(job.seconds_left)} left"


# By itself, so that a filter draws only the rows again.
@st.fragment
def show_results(job: Job) -> None:
    try:
        frame = ui.get_results(job)
        rows = show_filtered(job, frame)
        ui.show_limit(job, frame)
        show_download(job, {index + 1 for index in rows.index} if len(rows) < len(frame) else None)
    except ChainError as error:
        ui.show_error(error)


def show_filtered(job: Job, frame: plots.Counts) -> plots.Counts:
    """Show the rows that the user wants to see; returns them."""
    languages = plots.count_languages(plots.read_results(frame))["language"]
    first, second, third = st.columns(3)
    chosen = first.multiselect(
        "Languages", languages, format_func=plots.label_language, key=f"languages {job.id}", placeholder="All"
    )
    types = second.multiselect(
        "Rows that name",
        ui.types_of(job),
        format_func=lambda name: plots.style_of(name).many,
        key=f"types {job.id}",
        placeholder="Anything",
    )
    search = third.text_input("Text contains", key=f"search {job.id}")
    with st.container(horizontal=True):
        is_unsure = st.toggle(f"Only languages less than {UNSURE_BELOW:.0%} probable", key=f"unsure {job.id}")
        only_errors = bool(job.failed) and st.toggle("Only rows with an error", key=f"errors {job.id}")
    rows = plots.filter_rows(
        frame,
        languages=chosen,
        types=types,
        search=search,
        column=job.text_column,
        only_errors=only_errors,
        below=UNSURE_BELOW if is_unsure else None,
    )
    ui.show_rows(rows, job.text_column)
    return rows


def show_download(job: Job, matching: Collection[int] | None) -> None:
    """Let the user take the job's rows home; ``matching`` are the numbers of those that a filter lets through.

    Raises ``ChainError`` if they cannot be read or written.
    """
    with st.container(border=True):
        first, second, third = st.columns(3)
        format = first.selectbox("File format", FORMATS, format_func=FORMAT_NAMES.get, key=f"format {job.id}")
        shape = second.selectbox("Shape", SHAPES, format_func=SHAPE_NAMES.get, key=f"shape {job.id}")
        is_whole = matching is None or third.selectbox(
            "Rows",
            [True, False],
            format_func={True: "All that are done", False: f"Only the {len(matching):,} that match"}.get,
            key=f"range {job.id}",
        )
        neutralise = format == "csv" and st.toggle(
            "Protect spreadsheets from formulas",
            value=True,
            key=f"neutralise {job.id}",
            help="Puts ' before a cell that begins as a formula does. Without it, cells come back as they were.",
        )
        if format == "xlsx":
            st.caption(
                "Excel holds 1,048,575 rows of cells with up to 32,767 characters; for more, take another format."
            )
        wanted = (job.id, format, shape, neutralise, None if is_whole else matching)
        with st.container(horizontal=True):
            if st.button("Prepare download", key="prepare", icon=":material/draft:"):
                with st.spinner("Writing the file…", show_time=True):
                    made = write_file(*wanted)
                drop_made()
                st.session_state.made = wanted, *made
            made_for, lines, path = st.session_state.get("made", (None, 0, None))
            if made_for == wanted and path.exists():
                st.download_button(
                    f"Download {ui.count_rows(lines)} ({ui.format_bytes(path.stat().st_size)})",
                    path.read_bytes(),
                    f"{Path(job.name).stem}-{'results' if shape == 'wide' else 'names'}.{format}",
                    MEDIA_TYPES[format],
                    key="download",
                    type="primary",
                    on_click="ignore",
                    icon=":material/download:",
                )
            else:
                drop_made()


# Not at the click on the download itself: what Streamlit makes then, it drops again after two runs of any session's
# pages, and each job that is watched runs a page every second.
def write_file(
    job_id: str, format: str, shape: str, neutralise: bool, numbers: Collection[int] | None
) -> tuple[int, Path]:
    """The number of lines in a new file, and its path: of the rows that are done by now, or of these only ``numbers``.

    Raises ``ChainError`` if it cannot be written.
    """
    jobs = ui.get_jobs()
    layout = layout_of(jobs.status(job_id))
    results = jobs.results(job_id, end=None if numbers is None else max(numbers, default=0))
    if numbers is not None:
        results = (result for result in results if result[0].number in numbers)
    with ui.new_file("downloads") as file:
        lines = write_results(file, layout, results, format=format, shape=shape, neutralise=neutralise)
    return lines, Path(file.name)


def drop_made() -> None:
    _, _, path = st.session_state.pop("made", (None, 0, None))
    if path:
        path.unlink(missing_ok=True)


def show_job(job: Job) -> None:
    shots = "" if job.shots is None else f" · {job.shots} shots"
    shots += "".join(f" · {identity}" for identity in tasks_of(job).identities.values()) if job.tasks else ""
    st.subheader(ui.escape_markdown(job.name), anchor=False)
    st.caption(ui.escape_markdown(f"{job.version or job.model}{shots} · texts in column “{job.text_column}”"))
    with st.container(horizontal=True):
        st.button("New file", key="new", on_click=open_job, args=(None,), icon=":material/add:")
        if job.done and st.button("Charts", key="to_charts", icon=":material/bar_chart:"):
            st.switch_page("pages/charts.py")
        with st.popover("Link", icon=":material/link:"):
            st.write("Opens this job for everybody who can open this dashboard.")
            st.code(f"{st.context.url or ''}?job={job.id}", language=None, wrap_lines=True)
        show_changes(job)
    seconds = LIVE_S if job.is_live else OTHERS_S
    st.fragment(show_progress, run_every=seconds)(job.id, ui.table_version(job))
    if job.done:
        show_results(job)
    elif job.is_live:
        st.caption("The rows appear here as they are done.")


# All jobs


def show_changes(job: Job) -> None:
    """Let the user rename or delete the job."""
    key = f"name {job.id}"
    with st.popover("Change", icon=":material/edit:"):
        with st.form(f"rename {job.id}", border=False):
            st.text_input("Name", job.name, key=key)
            st.form_submit_button("Rename", on_click=rename_job, args=(job.id, key))
        st.write("Deleting takes the job and its results away for good.")
        st.button("Delete for good", key=f"delete {job.id}", on_click=delete_job, args=(job.id,))


def rename_job(job_id: str, key: str) -> None:
    attempt(ui.get_jobs().rename, job_id, st.session_state[key])


def delete_job(job_id: str) -> None:
    attempt(ui.get_jobs().delete, job_id)
    if st.session_state.get("job") == job_id:
        open_job(None)


def show_jobs(jobs: list[Job]) -> None:
    st.subheader("Other jobs" if st.session_state.get("job") else "All jobs", anchor=False)
    listed = st.session_state.get("listed", LISTED)
    for job in jobs[:listed]:
        with st.container(horizontal=True, vertical_alignment="center", border=True):
            rows = ui.count_rows(job.total) if job.done == job.total else f"{job.done:,} of {ui.count_rows(job.total)}"
            words = [ui.format_time(job.created), rows, job.state] + [f"{job.failed:,} failed"] * bool(job.failed)
            st.markdown(f"**{ui.escape_markdown(job.name)}** · {' · '.join(words)}", width="stretch")
            st.button("Open", key=f"open {job.id}", on_click=open_job, args=(job.id,))
            show_changes(job)
    if len(jobs) > listed:
        more = listed + LISTED
        st.button("Show more", key="more", on_click=st.session_state.update, kwargs={"listed": more})


ui.require_entrypoint()
st.title("Many texts at once")
if problem := st.session_state.pop("problem", None):
    ui.show_error(problem)
if "job" not in st.query_params and st.session_state.get("job"):
    open_job(st.session_state.job)
st.session_state.job = job_id = st.query_params.get("job")
try:
    others = [job for job in ui.get_jobs().list(owner="") if job.id != job_id]
    if job_id:
        show_job(ui.get_jobs().status(job_id, owner=""))
    else:
        show_upload()
    if others:
        show_jobs(others)
except ChainError as error:
    ui.show_error(error)
    st.button("New file", key="new", on_click=open_job, args=(None,))
