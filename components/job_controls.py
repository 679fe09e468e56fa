"""What pages that start and watch jobs share: their progress, what they may be told to do, how long they will take."""

import math
from collections.abc import Callable
from typing import Any

import streamlit as st

import accounts
import ui
from chains.errors import ChainError
from chains.registry import MODELS
from chains.store import Job

__all__ = ["attempt", "estimate_seconds", "show_changes", "show_problem", "watch"]

LIVE_S = 1  # between two looks at a job that runs
OTHERS_S = 5  # at one that does not, but may be resumed in another browser
# Per parameter, for random weights in bloomz-560m's shape and a short text; only until a job has measured the model.
SECONDS_PER_PARAMETER = 2e-10
# What the embedded model takes on two cores (benchmarks/RESULTS.md); no model is faster.
LEAST_SECONDS = 0.022


def attempt(action: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What ``action`` gives; what goes wrong in it is shown at the top of the page."""
    try:
        return action(*args, **options)
    except ChainError as error:
        st.session_state.problem = error


def show_problem() -> None:
    """Show what went wrong in ``attempt``, once."""
    if problem := st.session_state.pop("problem", None):
        ui.show_error(problem)


def estimate_seconds(rows: int) -> int | None:
    """How long the picked model needs: by the last job it ran, else by its size; ``None`` if that is unknown."""
    name = ui.picked_name()
    jobs = ui.get_jobs().list(owner=accounts.owner())
    if measured := next((job.rows_per_second for job in jobs if job.model == name and job.done), 0.0):
        return math.ceil(rows / measured)
    if name not in MODELS:
        return None
    return math.ceil(rows * max(LEAST_SECONDS, MODELS[name].parameters * SECONDS_PER_PARAMETER))


def watch(job: Job) -> None:
    """Show how far the job is, again and again, with what it may be told to do."""
    seconds = LIVE_S if job.is_live else OTHERS_S
    st.fragment(show_progress, run_every=seconds)(job.id, ui.table_version(job))


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
            _show_button("Stop", "stop", jobs.stop, job)
        elif job.state != "done":
            _show_button("Resume", "play_arrow", jobs.resume, job)
        elif job.failed:
            again = "row that failed" if job.failed == 1 else f"{job.failed:,} rows that failed"
            _show_button(f"Try the {again} again", "replay", jobs.retry, job)


def _show_button(label: str, icon: str, action: Callable[[str], None], job: Job) -> None:
    # A page may watch several jobs.
    st.button(label, key=f"{icon} {job.id}", on_click=attempt, args=(action, job.id), icon=f":material/{icon}:")


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


def show_changes(job: Job, delete: Callable[[str], None]) -> None:
    """Let the user rename or delete the job, the latter by ``delete``."""
    key = f"name {job.id}"
    with st.popover("Change", icon=":material/edit:"):
        with st.form(f"rename {job.id}", border=False):
            st.text_input("Name", job.name, key=key)
            st.form_submit_button("Rename", on_click=rename_job, args=(job.id, key))
        st.write("Deleting takes the job and its results away for good.")
        st.button("Delete for good", key=f"delete {job.id}", on_click=delete, args=(job.id,))


def rename_job(job_id: str, key: str) -> None:
    attempt(ui.get_jobs().rename, job_id, st.session_state[key])
