"""A table of texts → a job with progress, results as they come and downloads; below, the other jobs."""

import secrets
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

import accounts
import plots
import ui
from chains import ChainError
from chains.batch import layout_of, tasks_of
from chains.exports import FORMATS, GOLD_FORMATS, MEDIA_TYPES, SHAPES, write_gold, write_results
from chains.runs import is_run
from chains.schema import Correction
from chains.store import Job
from chains.tables import Table, scan
from components.job_controls import attempt, estimate_seconds, show_changes, show_problem, watch
from components.row_editor import edit_row

SAMPLE = Path(__file__).with_name("sample.csv")
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
GOLD = "gold"  # beside the SHAPES of results
SHAPE_NAMES = dict(zip(SHAPES, ("One row per text", "One row per name"), strict=True)) | {
    GOLD: "Gold set: only corrected rows"
}
FILE_NAMES = dict(zip(SHAPE_NAMES, ("results", "names", "gold"), strict=True))
UNSURE_BELOW = 0.9
Corrections = Mapping[int, Correction]  # by row number


def open_job(job_id: str | None) -> None:
    """Show this job, or the upload: the URL carries it over a refresh, the session over a visit to another page."""
    st.session_state.job = job_id
    st.query_params.from_dict({"job": job_id} if job_id else {})


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
        options = {"tasks": tasks, "name": name, "owner": accounts.owner()}
        job_id = attempt(submit, table, column, ui.picked_name(), ui.picked_shots(), **options)
    if job_id:
        drop_file()
        open_job(job_id)
    st.rerun()


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


# By itself, so that a filter draws only the rows again.
@st.fragment
def show_results(job: Job) -> None:
    try:
        frame = ui.get_results(job)
        rows = show_filtered(job, frame)
        ui.show_limit(job, frame)
        corrections = ui.get_jobs().corrections(job.id, owner=accounts.owner())
        show_editor(job, rows, corrections)
        show_download(job, corrections, {index + 1 for index in rows.index} if len(rows) < len(frame) else None)
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
        by_doubt = st.toggle(
            "Least sure first",
            key=f"doubt {job.id}",
            help="Rows that the model failed at, then those whose language is least probable. "
            "How sure it is of a name is not known.",
        )
        only_errors = bool(job.failed) and st.toggle("Only rows with an error", key=f"errors {job.id}")
        is_corrected = bool(plots.read_results(frame)["corrected"].any())
        only_corrected = is_corrected and st.toggle("Only corrected rows", key=f"corrected {job.id}")
    rows = plots.filter_rows(
        frame,
        languages=chosen,
        types=types,
        search=search,
        column=job.text_column,
        only_errors=only_errors,
        only_corrected=only_corrected,
        below=UNSURE_BELOW if is_unsure else None,
    )
    if by_doubt:
        rows = plots.least_sure_first(rows, ui.get_answers(job))
    show_pickable(job, rows)
    return rows


def show_pickable(job: Job, rows: plots.Counts) -> None:
    """Show rows as a table in which one can be picked; it stays picked when filters move it to another place."""
    numbers = [index + 1 for index in rows.index[: ui.SHOWN_ROWS]]
    picked = st.session_state.get(f"picked {job.id}")
    # Streamlit keeps the place that is picked, not the row: other rows, or one picked by a button, are another table.
    key = f"rows {job.id} {hash(tuple(numbers))} {st.session_state.get('steps', 0)}"
    default = [numbers.index(picked)] if picked in numbers else []
    ui.show_rows(
        rows,
        job.text_column,
        key=key,
        on_select=partial(pick_row, job.id, key, numbers),
        selection_mode="single-row",
        selection_default={"selection": {"rows": default}},
    )


def pick_row(job_id: str, key: str, numbers: list[int]) -> None:
    places = st.session_state[key]["selection"]["rows"]
    st.session_state[f"picked {job_id}"] = numbers[places[0]] if places else None


def step_to(job_id: str, number: int) -> None:
    st.session_state[f"picked {job_id}"] = number
    st.session_state.steps = st.session_state.get("steps", 0) + 1


def show_editor(job: Job, rows: plots.Counts, corrections: Corrections) -> None:
    """Let the user correct the row that is picked, and go to the ones beside it."""
    answers = ui.get_answers(job)
    number = st.session_state.get(f"picked {job.id}")
    if number is None or number - 1 not in answers.index:
        if len(rows):
            st.caption("Tick a row at its left to see it whole and to correct its answer.")
        return
    numbers = [index + 1 for index in rows.index]
    place = numbers.index(number) if number in numbers else -1
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.subheader(f"Row {number:,}", anchor=False, width="stretch")
            for label, step in (("Previous", -1), ("Next", 1)):
                there = place + step
                is_there = 0 <= there < len(numbers)
                st.button(
                    label,
                    key=f"{label} {job.id}",
                    on_click=step_to,
                    args=(job.id, numbers[there] if is_there else number),
                    disabled=not is_there,
                )
        edit_row(job, number, answers, corrections.get(number))


def show_download(job: Job, corrections: Corrections, matching: Collection[int] | None) -> None:
    """Let the user take the job's rows home; ``matching`` are the numbers of those that a filter lets through.

    Raises ``ChainError`` if they cannot be read or written.
    """
    with st.container(border=True):
        first, second, third = st.columns(3)
        shapes = [*SHAPES, GOLD] if corrections else SHAPES
        shape = second.selectbox("Shape", shapes, format_func=SHAPE_NAMES.get, key=f"shape {job.id}")
        formats = GOLD_FORMATS if shape == GOLD else FORMATS
        key = f"format {job.id} {len(formats)}"
        format = first.selectbox("File format", formats, format_func=FORMAT_NAMES.get, key=key)
        is_whole = (
            shape == GOLD
            or matching is None
            or third.selectbox(
                "Rows",
                [True, False],
                format_func={True: "All that are done", False: f"Only the {len(matching):,} that match"}.get,
                key=f"range {job.id}",
            )
        )
        neutralise = format == "csv" and st.toggle(
            "Protect spreadsheets from formulas",
            value=True,
            key=f"neutralise {job.id}",
            help="Puts ' before a cell that begins as a formula does. Without it, cells come back as they were.",
        )
        if shape == GOLD:
            st.caption(
                "Texts with their right answers, to measure a model by (`python -m chains evaluate`) or to train one "
                "with (`python -m training.lora`). JSON Lines holds languages and names, CSV languages alone."
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
                st.session_state.made = (wanted, corrections), *made
            made_for, lines, path = st.session_state.get("made", (None, 0, None))
            if made_for == (wanted, corrections) and path.exists():
                st.download_button(
                    f"Download {ui.count_rows(lines)} ({ui.format_bytes(path.stat().st_size)})",
                    path.read_bytes(),
                    f"{Path(job.name).stem}-{FILE_NAMES[shape]}.{format}",
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
    if shape == GOLD:
        with ui.new_file("downloads") as file:
            lines = write_gold(file, jobs.gold(job_id, owner=accounts.owner()), format=format, neutralise=neutralise)
        return lines, Path(file.name)
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
            whom = "you, once you are logged in" if accounts.is_shared() else "everybody who can open this dashboard"
            st.write(f"Opens this job for {whom}.")
            st.code(f"{st.context.url or ''}?job={job.id}", language=None, wrap_lines=True)
        show_changes(job, delete_job)
    watch(job)
    if job.done:
        show_results(job)
    elif job.is_live:
        st.caption("The rows appear here as they are done.")


# All jobs


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
            show_changes(job, delete_job)
    if len(jobs) > listed:
        more = listed + LISTED
        st.button("Show more", key="more", on_click=st.session_state.update, kwargs={"listed": more})


ui.require_entrypoint()
st.title("Many texts at once")
show_problem()
if "job" not in st.query_params and st.session_state.get("job"):
    open_job(st.session_state.job)
st.session_state.job = job_id = st.query_params.get("job")
try:
    others = [job for job in ui.get_jobs().list(owner=accounts.owner()) if job.id != job_id and not is_run(job)]
    if job_id:
        show_job(ui.get_jobs().status(job_id, owner=accounts.owner()))
    else:
        show_upload()
    if others:
        show_jobs(others)
except ChainError as error:
    ui.show_error(error)
    st.button("New file", key="new", on_click=open_job, args=(None,))
