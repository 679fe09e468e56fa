"""A job's results → what is named, who is named most, in which languages; a click on a bar shows its rows."""

import streamlit as st

import accounts
import plots
import ui
from chains import ChainError
from chains.runs import is_run
from chains.store import Job
from components.charts import show_chart


def show_charts(job: Job) -> None:
    frame, mentions = ui.get_results(job), ui.get_mentions(job)
    ui.show_limit(job, frame)
    all_types = plots.sort_types([*ui.types_of(job), *mentions["type"]])
    first, second = st.columns(2)
    languages = first.multiselect(
        "Languages",
        plots.count_languages(plots.read_results(frame))["language"],
        format_func=plots.label_language,
        key="chart_languages",
        placeholder="All",
        persist_state="session",
    )
    types = second.multiselect(
        "Kinds of names",
        all_types,
        format_func=lambda name: plots.style_of(name).many,
        key=f"chart_types {' '.join(all_types)}",
        placeholder="All",
        persist_state="session",
    )
    frame = plots.filter_rows(frame, languages=languages, types=types)
    mentions = mentions[mentions["row"].isin(frame.index) & mentions["type"].isin(types or all_types)]

    left, right = st.columns(2)
    with left.container(border=True):
        st.subheader("What kinds of names are there?")
        picked = show_chart(plots.count_types(mentions, types or all_types), plots.draw_types, "types")
    with right.container(border=True):
        st.subheader("Which languages are here?")
        picked += show_chart(plots.count_languages(plots.read_results(frame)), plots.draw_languages, "languages")
    with left.container(border=True):
        st.subheader("Which names in which language?")
        picked += show_chart(plots.count_types_by_language(mentions), plots.draw_types_by_language, "names_by_language")
    with right.container(border=True):
        st.subheader("Who is named most?")
        options = types or all_types
        type_ = st.radio(
            "Kind", options, format_func=lambda name: plots.style_of(name).many, key="top_type", horizontal=True
        )
        search = st.text_input("Name contains", key="top_search", persist_state="session")
        picked += show_chart(plots.count_names(mentions, type_, search=search), plots.draw_names, "names")

    rows = plots.pick_rows(frame, mentions, picked)
    words = ", ".join(describe(item) for item in picked) or "Click a bar to see only its rows."
    st.subheader(f"Rows: {len(rows):,}")
    st.caption(ui.escape_markdown(words))
    ui.show_rows(rows, job.text_column)


def describe(item: dict[str, str]) -> str:
    """A picked bar in words."""
    kind = plots.style_of(item["type"]).many if "type" in item else ""
    language = plots.label_language(item["language"]) if "language" in item else ""
    return " · ".join(filter(None, [item.get("name"), kind, language]))


def pick_job(jobs: dict[str, Job]) -> Job:
    """The job that the user chooses, at first the one last looked at."""
    ids = list(jobs)
    last = st.session_state.get("job")
    words = {
        id_: f"{job.name} · {ui.count_rows(job.done)} · {ui.format_time(job.created)}" for id_, job in jobs.items()
    }
    index = ids.index(last) if last in ids else 0
    return jobs[st.selectbox("Job", ids, index=index, format_func=lambda id_: words[id_])]


ui.require_entrypoint()
st.title("Charts")
try:
    jobs = {job.id: job for job in ui.get_jobs().list(owner=accounts.owner()) if job.done and not is_run(job)}
    if jobs:
        show_charts(pick_job(jobs))
    else:
        st.info("Charts are drawn from a batch of texts, and there is none yet. Run one with a file or sample data.")
        if st.button("Go to Batch", key="to_batch", type="primary"):
            st.switch_page("pages/batch.py")
except ChainError as error:
    ui.show_error(error)
