"""What pages share and needs streamlit: models, uploads, jobs and their rows, the model picker, the highlighter."""

import html
import math
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pandas as pd
import streamlit as st
from streamlit.navigation.page import StreamlitPage
from streamlit.runtime.scriptrunner import get_script_run_ctx
from streamlit.runtime.uploaded_file_manager import UploadedFile

from chains import registry
from chains.batch import Jobs, layout_of, tasks_of
from chains.config import load_settings
from chains.errors import ChainError, ModelError, StoreError, TaskError
from chains.exports import RESULT_COLUMNS, to_frame
from chains.prompts import KINDS, MAX_SHOTS, Kind, Tasks
from chains.registry import EMBEDDED, MODELS, Model
from chains.remote import PREFIX
from chains.schema import Entity
from chains.store import Job, Store
from chains.tables import Row, Table, cell_text, guess_text_column, scan
from chains.versions import SHIPPED, Versions
from plots import TypeStyle, correct_mentions, correct_results, label_language, list_names, read_mentions, style_of

__all__ = [
    "choose_task", "count_rows", "entity_html", "escape_markdown", "format_bytes", "format_seconds", "format_time",
    "get_answers", "get_jobs", "get_mentions", "get_model", "get_results", "get_versions", "keep_upload", "navigate",
    "new_file", "pick_model", "picked_name", "picked_shots", "picked_tasks", "picked_version", "read_upload",
    "require_entrypoint", "show_error", "show_limit", "show_model_status", "show_rows", "table_version",
    "tokens_html", "type_colours", "types_of",
]  # fmt: skip

FOLDER = "A folder on this machine…"
SHOWN_ROWS = 1000
# Of a job's rows, filters and charts look at the first so many, which bounds the memory of a page.
MAX_ROWS = 100_000
MAX_CHARACTERS = 50_000_000
PREVIEW_ROWS = 5
PREVIEW_CHARACTERS = 1000
SESSION_FOLDERS = ("uploads", "downloads")  # in the data folder: files that sessions remove, if they can
SESSION_FILE_AGE_S = 24 * 3600
# Two models at once may need more memory than each alone was promised.
LOADING = threading.Lock()


@st.cache_resource(max_entries=2, show_spinner=False)
def load_model(name: str) -> Model:
    """The model, loaded once for all sessions and jobs of this process."""
    with LOADING:
        return registry.load(name)


def _end_jobs(jobs: Jobs) -> None:
    jobs.close()
    jobs.store.close()


# Whoever clears Streamlit's caches ends these jobs' threads, so that there is never a second worker.
@st.cache_resource(show_spinner=False, on_release=_end_jobs)
def get_jobs() -> Jobs:
    """The jobs of the database, which this process now runs; they go on when every browser is closed."""
    settings = load_settings()
    _remove_old_files()
    limits = {"max_jobs": settings.max_jobs, "max_rows": settings.max_rows}
    jobs = Jobs(Store(settings.database_url), settings.data_folder, load_model, **limits)
    jobs.start()
    return jobs


def _remove_old_files() -> None:
    """Remove what sessions that ended have left."""
    for name in SESSION_FOLDERS:
        for file in (load_settings().data_folder / name).glob("*"):
            with suppress(FileNotFoundError):  # its session was faster
                if time.time() - file.stat().st_mtime > SESSION_FILE_AGE_S:
                    file.unlink()


@contextmanager
def new_file(folder: str) -> Iterator[BinaryIO]:
    """A new file in one of ``SESSION_FOLDERS`` to write into; its ``name`` is its path. On an error it is gone.

    Raises:
        StoreError: it cannot be written.
    """
    path = load_settings().data_folder / folder / secrets.token_hex(16)
    try:
        _remove_old_files()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w+b") as file:
            try:
                yield file
            except BaseException:
                path.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise StoreError(
            f"Cannot write a file in {str(path.parent)!r}: {error.strerror}. Make room there, or let BLOOM_LENS_DATA "
            "name another folder."
        ) from error


def keep_upload(uploaded: UploadedFile) -> Path:
    """The path of a new file with what was uploaded, which then leaves the memory; to be called in a callback.

    Raises ``StoreError`` if it cannot be written.
    """
    with new_file("uploads") as file:
        shutil.copyfileobj(uploaded, file)
    # Streamlit itself would hold the bytes until the session ends.
    context = get_script_run_ctx()
    context.uploaded_file_mgr.remove_file(context.session_id, uploaded.file_id)
    return Path(file.name)


# By the path, which no two uploads share: reading 200 MB takes seconds, and the page runs at every click.
@st.cache_data(max_entries=32, show_spinner="Reading the file…", show_time=True)
def read_upload(
    path: Path, name: str, encoding: str | None, delimiter: str | None, has_header: bool | None
) -> tuple[Table, list[dict[str, str]], str]:
    """The table of an uploaded file, its first rows as text, and the column that likely holds the texts.

    Raises ``TableError`` as ``tables.scan`` does.
    """
    table = scan(path, name=name, encoding=encoding, delimiter=delimiter, has_header=has_header)
    # A cell may be as long as a book, and one of JSON may hold half a character.
    first = [
        [cell_text(cell)[:PREVIEW_CHARACTERS].encode(errors="replace").decode() for cell in row.cells]
        for row in islice(table.rows(), PREVIEW_ROWS)
    ]
    return table, [dict(zip(table.columns, cells, strict=True)) for cells in first], guess_text_column(table)


# Shared by all sessions and not copied: whoever reads these tables must not change them. 100,000 rows of 130 characters
# take 100 MB with their mentions, and 4 seconds to read.
@st.cache_resource(max_entries=2, ttl=3600, show_spinner="Reading the rows…")
def _read_answers(job_id: str, version: str) -> pd.DataFrame:
    jobs = get_jobs()
    results = jobs.results(job_id, 0, MAX_ROWS, corrected=False)
    return to_frame(layout_of(jobs.status(job_id)), _within_memory(results))


def _within_memory(results: Iterable[tuple[Row, dict[str, Any]]]) -> Iterator[tuple[Row, dict[str, Any]]]:
    size = 0
    for row, record in results:
        size += sum(len(cell) for cell in row.cells if isinstance(cell, str))
        if size > MAX_CHARACTERS:
            return
        yield row, record


@st.cache_resource(max_entries=2, ttl=3600, show_spinner=False)
def _read_mentions(job_id: str, version: str) -> pd.DataFrame:
    return read_mentions(_read_answers(job_id, version))


def get_answers(job: Job) -> pd.DataFrame:
    """The first finished rows of a job with the model's own answers, by number less one: at most ``MAX_ROWS``, and of a
    running job less the last.

    Raises ``ChainError`` if they cannot be read.
    """
    return _read_answers(job.id, table_version(job))


def get_results(job: Job) -> pd.DataFrame:
    """The rows of ``get_answers``; those that were corrected have the correction."""
    return correct_results(get_answers(job), get_jobs().corrections(job.id))


def get_mentions(job: Job) -> pd.DataFrame:
    """The entities of the rows of ``get_results``, one per row."""
    return correct_mentions(_read_mentions(job.id, table_version(job)), get_results(job))


def table_version(job: Job) -> str:
    """What changes when the rows of ``get_results`` are read again: of a running job, with a leading digit of done."""
    if job.is_live:
        return f"running {min(job.done, MAX_ROWS):.0e} {job.retried or 0:.0e}"
    return f"{job.done} {job.seconds}"


def show_limit(job: Job, frame: pd.DataFrame) -> None:
    """Say so if ``frame`` has not all finished rows of the job."""
    if len(frame) < job.done:
        st.caption(
            f"This looks at the first {len(frame):,} of {job.done:,} finished rows; a download on the page Batch has "
            "them all."
        )


def navigate(position: Literal["sidebar", "hidden"] = "sidebar") -> StreamlitPage:
    """Show the way between the pages; returns the one to run."""
    return st.navigation(
        [
            st.Page("pages/single_text.py", title="Single text", icon=":material/short_text:", default=True),
            st.Page("pages/batch.py", title="Batch", icon=":material/table_rows:"),
            st.Page("pages/charts.py", title="Charts", icon=":material/bar_chart:"),
            st.Page("pages/evaluation.py", title="Evaluation", icon=":material/rule:"),
            st.Page("pages/prompts.py", title="Prompts", icon=":material/edit_note:"),
        ],
        position=position,
    )


def require_entrypoint() -> None:
    """Run the page inside streamlit_app.py: every page begins with this.

    If the first thing that a new process is asked for is a page (a link with ``?job=``), Streamlit runs the file in
    pages/ bare, in its older way; any call of ``st.navigation`` ends that for the whole process.
    """
    if not st.session_state.pop("is_in_entrypoint", False):
        navigate()
        st.rerun()


def pick_model() -> None:
    """Let the user choose the model and the number of shots; nothing is loaded yet."""
    st.session_state.is_in_entrypoint = True
    _keep_versions()
    with st.sidebar:
        st.selectbox(
            "Model",
            _offered_models(),
            format_func=_model_label,
            key="model",
            help="All run on this machine. Bigger models are slower; the first use of a bloomz model downloads it.",
        )
        if st.session_state.model == FOLDER:
            st.text_input(
                "Path of a BLOOM checkpoint",
                key="model_folder",
                placeholder="/models/my-bloom",
                help="Or a model and the folder of a LoRA adapter, as in `bloomz-560m+runs/mine/adapter`.",
            )
            if _is_server(st.session_state.model_folder):
                st.error(
                    "A model server cannot be chosen here, where any visitor could send texts to any address. "
                    f"Use it on the command line: {escape_markdown('python -m chains batch --model openai:…')}"
                )
        _show_tasks()
        name, most = picked_name(), _max_shots()
        if most:
            st.slider(
                "Shots",
                0,
                most,
                value=_default_shots(name, most),
                key=_shots_key(name, most),
                help="How many solved examples the model reads before your text. More can help, and take longer.",
            )


def _keep_versions() -> None:
    """Carry the chosen task versions in the URL: over a refresh, and to whoever gets the link."""
    for kind in KINDS:
        key, asked = f"version of {kind}", st.query_params.get(kind, "")
        if key not in st.session_state:
            st.session_state[key] = int(asked) if re.fullmatch("[0-9]{1,6}", asked) else SHIPPED
        number = st.session_state[key]
        if number != SHIPPED and asked != str(number):
            st.query_params[kind] = str(number)
        elif number == SHIPPED and asked:
            del st.query_params[kind]


def _show_tasks() -> None:
    """Say which tasks are not the shipped ones, or why they cannot be read."""
    try:
        tasks = picked_tasks()
    except TaskError as error:
        show_error(error)
        st.button("Use the shipped tasks", key="shipped_tasks", on_click=_choose_shipped)
        return
    own = [tasks.identities[kind] for kind in KINDS if picked_version(kind) != SHIPPED]
    if own:
        st.caption(f":material/edit_note: Your own: {escape_markdown(', '.join(own))}")


def _choose_shipped() -> None:
    for kind in KINDS:
        choose_task(kind, SHIPPED)


def get_versions() -> Versions:
    """The saved versions of task files."""
    return Versions(load_settings().data_folder / "tasks")


def picked_version(kind: Kind) -> int:
    """The number of the version of a task that answers in this session."""
    return int(st.session_state.get(f"version of {kind}", SHIPPED))


def choose_task(kind: Kind, number: int) -> None:
    """Let that version of a task answer in this session from now on."""
    st.session_state[f"version of {kind}"] = number


def picked_tasks() -> Tasks:
    """The tasks that answer in this session; raises ``TaskError`` if one cannot be read."""
    versions = get_versions()
    return Tasks(**{kind: versions.load(kind, picked_version(kind)) for kind in KINDS})


def types_of(job: Job) -> list[str]:
    """The entity types that a job's task asks for; raises ``ChainError`` if it cannot be read."""
    return list(tasks_of(job).entities.labels)


def _max_shots() -> int:
    try:
        return picked_tasks().max_shots
    except TaskError:
        return MAX_SHOTS


def _shots_key(name: str, most: int) -> str:
    """The slider's, by its range: Streamlit takes no value from outside of it."""
    return f"shots of {name}, up to {most}"


def _offered_models() -> list[str]:
    # On a shared deployment whoever runs it chooses, what is loaded into memory and from where.
    settings = load_settings()
    return [settings.model] if settings.is_shared else [*MODELS, FOLDER]


def _model_label(name: str) -> str:
    return f"{name} · {format_bytes(MODELS[name].memory_bytes)}" if name in MODELS else name


def _default_shots(name: str, most: int) -> int:
    try:
        return min(most, registry.find_model(name).shots)
    except ModelError:
        return min(most, 3)


def picked_name() -> str:
    """The name of the chosen model; without a folder's path, the model in use."""
    name = st.session_state.get("model", _offered_models()[0])
    if name == FOLDER:
        path = st.session_state.get("model_folder", "").strip()
        name = "" if _is_server(path) else path
    return str(name or st.session_state.get("model_in_use", EMBEDDED))


def _is_server(path: str) -> bool:
    return path.strip().startswith(PREFIX)


def picked_shots() -> int:
    """The number of shots chosen for the picked model and tasks."""
    name, most = picked_name(), _max_shots()
    return int(st.session_state.get(_shots_key(name, most), _default_shots(name, most)))


def get_model() -> Model:
    """The picked model; if it cannot be loaded, the one before, and the sidebar says why.

    Raises:
        ModelError: the picked model cannot be loaded and there was none before.
    """
    state = st.session_state
    name = picked_name()
    if name != state.get("model_in_use") and name not in state.get("model_problem", {}):
        try:
            with st.spinner(_loading_words(name)):
                load_model(name)
            state.model_in_use = name
            state.model_problem = {}
        except ChainError as error:
            state.model_problem = {name: str(error)}
    if "model_in_use" not in state:
        raise ModelError(state.model_problem[name])
    return load_model(state.model_in_use)


def _loading_words(name: str) -> str:
    size = MODELS[name].download_bytes if name in MODELS and name != EMBEDDED else 0
    once = f" The first time it downloads {format_bytes(size)}." if size else ""
    return f"Loading {escape_markdown(name)}…{once}"


def show_model_status() -> None:
    """Load the picked model if need be and say in one line what is ready; a failure stays until another is picked."""
    with st.sidebar:
        try:
            model = get_model()
        except ChainError:
            model = None
        problem = st.session_state.get("model_problem", {}).get(picked_name())
        if problem:
            st.error(escape_markdown(problem))
            st.button("Try again", key="try_again", on_click=st.session_state.pop, args=("model_problem",))
        if model is not None:
            ready = f"going on with {model.version}" if problem else f"{model.version} is ready"
            free = format_bytes(registry.free_memory_bytes())
            st.caption(f":material/check_circle: {escape_markdown(ready)}, {free} of memory free")


def show_rows(frame: pd.DataFrame, text_column: str, **selection: Any) -> None:
    """The first rows of a job's table as a table to read: languages and entities in words, the text first.

    ``selection`` are the options of ``st.dataframe`` by which rows can be picked.
    """
    if frame.empty:
        st.caption("No row matches.")
        return
    language, probability, entities, *counts, corrected, error = results = frame.columns[-len(RESULT_COLUMNS) :]
    shown = frame.head(SHOWN_ROWS).copy()
    shown[language] = shown[language].map(label_language)
    shown[probability] = shown[probability] * 100
    shown[entities] = shown[entities].map(list_names)
    mark = [corrected] if shown[corrected].any() else []
    shown[corrected] = shown[corrected].map({True: "corrected", False: ""})
    others = [column for column in frame.columns if column not in {text_column, *results}]
    st.dataframe(
        shown,
        hide_index=True,
        column_order=[text_column, language, probability, *mark, entities, *counts, error, *others],
        column_config={
            text_column: st.column_config.TextColumn(width="medium"),
            probability: st.column_config.NumberColumn("probability", format="%.1f%%"),
            entities: st.column_config.TextColumn(width="medium"),
        },
        placeholder="",
        **selection,
    )
    if len(frame) > SHOWN_ROWS:
        st.caption(f"The first {SHOWN_ROWS:,} of {len(frame):,} rows.")


def count_rows(number: int) -> str:
    """``1 row``, ``12,402 rows``."""
    return f"{number:,} row" if number == 1 else f"{number:,} rows"


def show_error(error: ChainError) -> None:
    """The error's message as it is, not as Markdown."""
    st.error(escape_markdown(str(error)))


def escape_markdown(text: str) -> str:
    """``text`` such that Streamlit's Markdown shows it unchanged.

    What it takes for the name of an icon (``:material/home:``, ``:smile:``) it replaces in spite of any escape, so that
    gets an invisible character, a word joiner.
    """
    text = re.sub(r":(?=[\w/+-]+:)", ":\u2060", text)
    return re.sub(r"([\\`*_{}\[\]()<>#+\-.!|~$:&])", r"\\\1", text)


def entity_html(text: str, entities: Iterable[Entity]) -> str:
    """HTML of ``text``, everything escaped, each entity marked by tint, kind of underline and a short tag.

    Of entities that overlap, the first one is marked.
    """
    parts = []
    place = 0
    for entity in sorted(entities, key=lambda entity: entity.start):
        if entity.start < place:
            continue
        style = style_of(entity.type)
        one, tag = html.escape(style.one), html.escape(style.tag)
        ink, tint = type_colours(style).values()
        parts.append(
            f"{html.escape(text[place : entity.start])}"
            f'<mark style="color:inherit;background:{tint};border-bottom:3px {style.underline} {ink};'
            'border-radius:3px 3px 0 0;padding:1px 3px;box-decoration-break:clone;-webkit-box-decoration-break:clone">'
            f"{html.escape(text[entity.start : entity.end])}"
            f'<abbr title="{one}" style="color:{ink};font-size:.68em;font-weight:700;letter-spacing:.04em;'
            f'margin-left:.4em;text-decoration:none;user-select:none">{tag}</abbr></mark>'
        )
        place = entity.end
    parts.append(html.escape(text[place:]))
    return f'<div style="white-space:pre-wrap;overflow-wrap:anywhere;line-height:2">{"".join(parts)}</div>'


def type_colours(style: TypeStyle) -> dict[str, str]:
    """The CSS colours of a mark of that type in both themes: ``ink`` of its tag and line, and ``tint``."""
    return {
        "ink": f"light-dark({style.light_ink},{style.dark_ink})",
        "tint": f"light-dark({style.fill}1f,{style.fill}40)",
    }


def tokens_html(tokens: Iterable[bytes]) -> str:
    """HTML of tokens as boxes, everything escaped: a space is a dot, a line break an arrow, what is no whole character
    its bytes in hexadecimal, and a character that shows nothing its number."""
    parts = []
    for number, token in enumerate(tokens):
        tint = ("#0072B226", "#7A86993d")[number % 2]
        parts.append(
            f'<span style="background:{tint};border-radius:3px;padding:1px 0;margin-right:1px;'
            f'box-shadow:inset -1px 0 #7A8699">{_token_html(token)}</span>'
        )
        if token.endswith(b"\n"):
            parts.append("<br>")
    words = "".join(parts)
    return f'<div style="font-family:monospace;overflow-wrap:anywhere;line-height:1.9;font-size:.9em">{words}</div>'


def _token_html(token: bytes) -> str:
    def show(char: str) -> str:
        if char.isprintable() and char != " ":
            return html.escape(char)
        return mark({" ": "·", "\n": "↵"}.get(char, f"[U+{ord(char):04X}]"))

    def mark(sign: str) -> str:
        return f'<span style="opacity:.65">{sign}</span>'

    try:
        return "".join(map(show, token.decode()))
    except UnicodeDecodeError:
        return mark(f"[{token.hex(' ').upper()}]")


def format_bytes(size: int) -> str:
    """``1.7 GB``, ``34 MB`` below one tenth of a gigabyte, ``5 KB`` below one megabyte."""
    if size < 1e6:
        return f"{math.ceil(size / 1e3)} KB"
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def format_time(moment: str) -> str:
    """An ISO 8601 time in words, in this machine's time zone: ``05 Jan 2026, 14:30``."""
    return datetime.fromisoformat(moment).astimezone().strftime("%d %b %Y, %H:%M")


def format_seconds(seconds: float | None) -> str:
    """A duration in words: ``0.31 seconds``, ``12 seconds``, ``4 minutes``, ``2.5 hours``; unknown is ``a while``."""
    if seconds is None:
        return "a while"
    if seconds < 10:
        return f"{seconds:.2g} {'second' if f'{seconds:.2g}' == '1' else 'seconds'}"
    for limit, unit_s, unit in ((100, 1, "seconds"), (100 * 60, 60, "minutes")):
        if seconds < limit:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds / 3600:.1f} hours"
