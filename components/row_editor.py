"""One row of a job: its text with what is named in it, its language, and how a person corrects both."""

import json
from collections.abc import Callable, Iterable
from functools import partial

import pandas as pd
import streamlit as st

import accounts
import ui
from chains.batch import tasks_of
from chains.corrections import as_shot, mark, write_shot
from chains.errors import ChainError
from chains.prompts import Tasks
from chains.schema import UNKNOWN, Correction, Entity, Gold
from chains.spans import list_words
from chains.store import Job
from components.marking import NONE, mark_names
from plots import label_language, list_names, read_results, style_of

__all__ = ["edit_row"]

# Of a text, so much can be marked: a browser draws it at every step.
MAX_CHARACTERS = 20_000
TASKS = {"language": "Language", "entities": "Names"}


def edit_row(job: Job, number: int, answers: pd.DataFrame, correction: Correction | None) -> None:
    """Show row ``number`` of a job, of whose model ``answers`` is the table, and let the user correct it.

    Must run inside a fragment or a page that draws the table anew after each change.
    """
    row = answers.loc[number - 1]
    own = read_results(answers.loc[[number - 1]]).iloc[0]
    text = row[job.text_column]
    model_answer = Correction(
        language=own["language"] or UNKNOWN,
        entities=[Entity(**entity) for entity in json.loads(own["entities"] or "[]")],
    )
    answer = correction or model_answer
    key, tasks = f"{job.id} {number}", tasks_of(job)
    change = partial(_change, job, number, model_answer)

    if problem := st.session_state.pop("row_problem", None):
        ui.show_error(problem)
    shown = text[:MAX_CHARACTERS]
    mark_names(
        shown,
        [entity for entity in answer.entities if entity.end <= len(shown)],
        tasks.entities.labels,
        key=f"mark {key}",
        on_mark=lambda start, end, type_: change(lambda now: {"entities": mark(text, now.entities, start, end, type_)}),
    )
    if len(shown) < len(text):
        st.caption(f"The first {len(shown):,} of {len(text):,} characters; those after them keep the answer they have.")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        language_key = f"row language {key}"
        st.session_state[language_key] = answer.language  # as it is now, also after an undo
        st.selectbox(
            "Language of this row",
            dict.fromkeys([*tasks.language.labels, UNKNOWN, answer.language]),
            format_func=label_language,
            key=language_key,
            on_change=lambda: change(lambda now: {"language": st.session_state[language_key]}),
            width=220,
        )
        if correction is None:
            st.button(
                "Right as it is",
                key=f"confirm {key}",
                on_click=change,
                args=(lambda now: {},),
                icon=":material/check:",
                help="Counts the row among the corrected ones, with the model's own answer.",
            )
        else:
            st.button("Undo", key=f"undo {key}", on_click=_undo, args=(job, number), icon=":material/undo:")
            with st.popover("As a shot", icon=":material/content_copy:"):
                _show_shots(tasks, Gold(text=text, **answer.model_dump()))
    if correction is not None:
        st.caption(ui.escape_markdown(f"Corrected. The model's own answer: {_describe(own)}"))
    with st.expander("Choose words from a list instead of selecting them"):
        _choose_words(shown, key, tasks.entities.labels, change)


def _change(job: Job, number: int, model_answer: Correction, change: Callable[[Correction], dict[str, object]]) -> None:
    """Store the row's answer with what ``change`` makes of it as it is by now: another browser may have been faster."""
    jobs = ui.get_jobs()
    try:
        now = jobs.corrections(job.id, owner=accounts.owner()).get(number, model_answer)
        jobs.correct(job.id, number, now.model_copy(update=change(now)), owner=accounts.owner())
    except ChainError as error:
        st.session_state.row_problem = error


def _undo(job: Job, number: int) -> None:
    try:
        ui.get_jobs().undo(job.id, number, owner=accounts.owner())
    except ChainError as error:
        st.session_state.row_problem = error


def _describe(own: pd.Series) -> str:
    """A model's answer in words."""
    if own["error"]:
        return f"none. {own['error']}"
    probability = own["language_probability"]
    sure = "" if pd.isna(probability) else f" ({probability:.1%})"
    return f"{label_language(own['language'])}{sure}; {list_names(own['entities']) or 'no names'}."


def _choose_words(text: str, key: str, types: Iterable[str], change: Callable[..., None]) -> None:
    """What marking does, by lists that a keyboard or a screen reader can use."""
    words = list(list_words(text))
    if not words:
        st.caption("This text has no words.")
        return
    labels = [f"{number}: {text[start:end]}" for number, (start, end) in enumerate(words, 1)]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        first = st.selectbox("From word", range(len(words)), format_func=labels.__getitem__, key=f"from {key}")
        last = st.selectbox(
            "To word",
            range(first, len(words)),
            format_func=labels.__getitem__,
            key=f"to {key}",
        )
        type_ = st.selectbox(
            "Is a",
            [*types, None],
            format_func=lambda name: style_of(name).one if name else NONE,
            key=f"as {key}",
        )
        start, end = words[first][0], words[last][1]
        st.button(
            "Apply",
            key=f"apply {key}",
            on_click=change,
            args=(lambda now: {"entities": mark(text, now.entities, start, end, type_)},),
        )


def _show_shots(tasks: Tasks, gold: Gold) -> None:
    st.write("This row as an example for the model, as it stands under `shots:` in a task file.")
    for name, label in TASKS.items():
        try:
            lines = write_shot(as_shot(getattr(tasks, name), gold))
        except ChainError as error:
            st.caption(f"{label}: {ui.escape_markdown(str(error))}")
        else:
            st.caption(f"{label}: `chains/tasks/{name}.yaml`")
            st.code(lines, language="yaml", wrap_lines=True)
