"""A gold set → how right the answers are, and where they are wrong; two or more runs on it → what differs."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

import accounts
import plots
import ui
from chains import ChainError, Entity
from chains.evaluation import GoldRow, read_gold_set
from chains.reports import (
    HEADLINES,
    Answers,
    Comparison,
    TaskName,
    answer_rows,
    compare_runs,
    differing_rows,
    error_rows,
    report_scores,
)
from chains.runs import describe_tasks, is_run, list_runs, read_answers, repeat_run, start_run, tasks_of_run
from chains.statistics import LEVEL
from chains.store import Job
from components.charts import show_chart
from components.job_controls import attempt, estimate_seconds, show_changes, show_problem, watch
from plots import ERROR_WORDS

SAMPLE = Path(__file__).with_name("sample_gold.jsonl")
ENDINGS = ["csv", "tsv", "jsonl", "ndjson", "parquet", "xlsx", "gz"]
PREVIEW_ROWS = 5
PREVIEW_CHARACTERS = 1000
LISTED = 10  # texts or runs at first, and so many more at each click
MAX_SOURCES = 50  # jobs that are looked through for corrections
CONTEXT = 200  # characters that are shown before and after an error
TASK_WORDS: dict[TaskName, str] = {"language": "Languages", "entities": "Names"}
SCORE_WORDS = {"accuracy": "Accuracy", "micro_f1": "Micro-F1", "macro_f1": "Macro-F1", "weighted_f1": "Weighted F1"}
SCORE_HELP = {
    "accuracy": "The share of texts whose language is right.",
    "micro_f1": "All classes counted together. Of languages the same as accuracy, if every text got an answer.",
    "macro_f1": "The mean F1 of the classes: a rare one counts as much as a frequent one.",
    "weighted_f1": "The mean F1 of the classes, each weighted by how often it is right in the gold set.",
}
UPLOAD, SAMPLES, CORRECTED, FORMER = "upload", "sample", "corrected", "former"
Source = tuple[str, str]  # one of these, and a job's id


def open_runs(ids: Iterable[str]) -> None:
    """Show these runs, the first in full: the URL carries them over a refresh, the session to other pages."""
    chosen = ",".join(ids)
    st.session_state.runs = chosen
    st.query_params.from_dict({"run": chosen} if chosen else {})


# A gold set → a run


def take_gold(key: str) -> None:
    """Called when a file has come into the uploader, and again when it has left its memory for the disk."""
    uploaded = st.session_state[key]
    if isinstance(uploaded, UploadedFile) and (path := attempt(ui.keep_upload, uploaded)):
        try:
            if rows := attempt(lambda: read_gold_set(path, uploaded.name, ui.picked_tasks())):
                st.session_state.gold = (uploaded.name, rows)
        finally:
            path.unlink(missing_ok=True)
        st.session_state.uploads = st.session_state.get("uploads", 0) + 1  # the next uploader is an empty one


def drop_gold() -> None:
    st.session_state.pop("gold", None)


def list_sources(runs: Sequence[Job]) -> dict[Source, str]:
    """Where a gold set may come from, each in words."""
    jobs = ui.get_jobs()
    sources = {(SAMPLES, ""): "Sample: 70 texts", (UPLOAD, ""): "A file with the right answers…"}
    for job in [job for job in jobs.list(owner=accounts.owner()) if job.done and not is_run(job)][:MAX_SOURCES]:
        if corrections := jobs.corrections(job.id, owner=accounts.owner()):
            sources[CORRECTED, job.id] = f"{ui.count_rows(len(corrections))} corrected in {job.name}"
    newest = {run.source: run for run in reversed(runs)}
    for run in newest.values():
        sources[FORMER, run.id] = f"Again: {run.name} ({ui.count_rows(run.total)})"
    return sources


def show_start(runs: Sequence[Job]) -> None:
    sources = list_sources(runs)
    source = st.selectbox(
        "Gold set", list(sources), format_func=lambda one: sources.get(one, ""), key="source", persist_state="session"
    )
    kind, job_id = source
    jobs = ui.get_jobs()
    if kind == FORMER:
        run = jobs.status(job_id, owner=accounts.owner())
        show_button(run.total, lambda: repeat(run))
        return
    if kind == UPLOAD:
        if "gold" not in st.session_state:
            key = f"gold {st.session_state.get('uploads', 0)}"
            st.file_uploader(
                "A file with texts and their right answers", type=ENDINGS, key=key, on_change=take_gold, args=(key,)
            )
            show_formats()
            return
        name, rows = st.session_state.gold
        with st.container(horizontal=True, vertical_alignment="center"):
            st.subheader(ui.escape_markdown(name), anchor=False, width="stretch")
            st.button("Another file", key="another", on_click=drop_gold, icon=":material/close:")
    elif kind == SAMPLES:
        name, rows = "Sample", read_gold_set(SAMPLE)
    else:
        job = jobs.status(job_id, owner=accounts.owner())
        name = job.name
        rows = [GoldRow(one.text, one.language, one.entities) for one in jobs.gold(job_id, owner=accounts.owner())]
    languages, names = (sum(getattr(row, part) is not None for row in rows) for part in ("language", "entities"))
    st.caption(f"{languages:,} texts with their language, {names:,} with their names")
    st.dataframe(
        [
            {
                "text": row.text[:PREVIEW_CHARACTERS],
                "language": "" if row.language is None else plots.label_language(row.language),
                "names": write_answer([entity.model_dump() for entity in row.entities or ()]),
            }
            for row in rows[:PREVIEW_ROWS]
        ],
        hide_index=True,
    )
    show_button(len(rows), lambda: begin(name, rows))


def show_formats() -> None:
    st.caption("Only this dashboard reads it. Languages: a table with the columns `text` and `language`, such as")
    st.code("text,language\nLe train part à midi.,french\nGuten Morgen!,unknown", language=None)
    st.caption(
        "Names: JSON Lines, whose offsets count characters from 0, the end exclusive; `language` may stand there too."
    )
    line = {"text": "Ana left Lyon.", "entities": [{"start": 0, "end": 3, "type": "person"}]}
    st.code(json.dumps(line), language=None, wrap_lines=True)


def show_button(texts: int, action: Callable[[], str]) -> None:
    about = ui.format_seconds(estimate_seconds(texts))
    model = ui.escape_markdown(ui.picked_name())
    st.markdown(f"**{ui.count_rows(texts)}**, about {about} with {model} and {count_shots(ui.picked_shots())}")
    if st.button("Start", key="start", type="primary"):
        with st.spinner("Storing the texts…"):
            run_id = attempt(action)
        if run_id:
            drop_gold()
            open_runs([run_id])
        st.rerun()


def begin(name: str, rows: Sequence[GoldRow]) -> str:
    """The id of a new run of the picked model; raises ``ChainError`` if it cannot be stored."""
    with ui.new_file("uploads") as file:
        path = Path(file.name)
    try:
        options = {"name": name, "owner": accounts.owner(), "tasks": ui.picked_tasks()}
        return start_run(ui.get_jobs(), rows, path, ui.picked_name(), ui.picked_shots(), **options)
    finally:
        path.unlink(missing_ok=True)


def repeat(run: Job) -> str:
    """The id of a run of the picked model on the gold set of another; raises ``ChainError`` as ``begin`` does."""
    with ui.new_file("uploads") as file:
        path = Path(file.name)
    try:
        options = {"owner": accounts.owner(), "tasks": ui.picked_tasks()}
        return repeat_run(ui.get_jobs(), run, path, ui.picked_name(), ui.picked_shots(), **options)
    finally:
        path.unlink(missing_ok=True)


def count_shots(shots: int | None) -> str:
    return "its own shots" if shots is None else "1 shot" if shots == 1 else f"{shots} shots"


# A run → its scores


@st.cache_resource(max_entries=8, ttl=3600, show_spinner="Comparing the answers…")
def get_answers(run_id: str, version: str, task: TaskName) -> Answers:
    jobs = ui.get_jobs()
    return read_answers(jobs, jobs.status(run_id, owner=accounts.owner()), task)


@st.cache_data(max_entries=32, ttl=3600, show_spinner="Computing the scores…")
def get_report(run_id: str, version: str, task: TaskName) -> dict[str, Any]:
    return report_scores(get_answers(run_id, version, task))


@st.cache_data(max_entries=8, ttl=3600, show_spinner="Comparing the runs…")
def get_comparisons(ids: tuple[str, ...], versions: tuple[str, ...], task: TaskName) -> list[Comparison]:
    first, *others = [get_answers(*both, task) for both in zip(ids, versions, strict=True)]
    return compare_runs(first, others)


def name_run(run: Job) -> str:
    """What tells a run from others on the same gold set."""
    words = [run.version or run.model, count_shots(run.shots), describe_tasks(run)]
    return " · ".join(filter(None, words))


def name_apart(runs: Sequence[Job]) -> list[str]:
    """A name for each run, with its time where two would be the same."""
    names = [name_run(run) for run in runs]
    return [
        f"{name} · {run.created[:19].replace('T', ' ')}" if names.count(name) > 1 else name
        for name, run in zip(names, runs, strict=True)
    ]


def show_run(run: Job, others: Sequence[Job], runs: Sequence[Job]) -> None:
    st.subheader(ui.escape_markdown(run.name), anchor=False)
    st.caption(ui.escape_markdown(f"{name_run(run)} · {ui.format_time(run.created)}"))
    with st.container(horizontal=True):
        st.button("New evaluation", key="new", on_click=open_runs, args=([],), icon=":material/add:")
        again = f"Run with {ui.picked_name()}, {count_shots(ui.picked_shots())}"
        if st.button(ui.escape_markdown(again), key="again", icon=":material/replay:", help="On the same gold set"):
            if run_id := attempt(repeat, run):
                open_runs([run.id, *(other.id for other in others), run_id])
            st.rerun()
        with st.popover("Link", icon=":material/link:"):
            st.write("Opens this evaluation for everybody who can open this dashboard.")
            st.code(f"{st.context.url or ''}?run={','.join(one.id for one in (run, *others))}", language=None)
        show_changes(run, delete_run)
    for one in (run, *others):
        if one is run or one.state != "done":
            watch(one)
    show_choice(run, others, runs)
    if not run.done:
        st.caption("The scores appear here when the first texts are done.")
        return
    if run.done < run.total:
        st.info(f"These are scores of the first {run.done:,} of {run.total:,} texts.")
    tasks = tasks_of_run(run)
    task = tasks[0]
    if len(tasks) > 1:
        task = st.radio("What is measured", tasks, format_func=TASK_WORDS.get, key=f"task {run.id}", horizontal=True)
    done = [other for other in others if other.done]
    if done:
        show_comparison([run, *done], task)
    show_scores(run, task)


def show_choice(run: Job, others: Sequence[Job], runs: Sequence[Job]) -> None:
    """Let the user put other runs on the same gold set beside this one."""
    fitting = [one for one in runs if one.source == run.source and one.id != run.id]
    if not fitting:
        st.caption("To compare: choose another model or number of shots at the left, and run it on the same gold set.")
        return
    names = dict(zip([one.id for one in fitting], name_apart(fitting), strict=True))
    key = f"beside {run.id} {' '.join(names)}"
    st.session_state[key] = [other.id for other in others if other.id in names]
    st.multiselect(
        "Compare with",
        list(names),
        format_func=names.get,
        key=key,
        placeholder="Other runs on this gold set",
        on_change=lambda: open_runs([run.id, *st.session_state[key]]),
    )


def delete_run(run_id: str) -> None:
    attempt(ui.get_jobs().delete, run_id)
    opened = [one for one in st.session_state.get("runs", "").split(",") if one != run_id]
    open_runs(opened)


def percent(value: float) -> str:
    return f"{value:.1%}"


def show_scores(run: Job, task: TaskName) -> None:
    version = ui.table_version(run)
    report, answers = get_report(run.id, version, task), get_answers(run.id, version, task)
    if not answers.texts:
        st.info("None of the texts that are done so far has a right answer for this.")
        return
    with st.container(horizontal=True, gap="medium"):
        for name in HEADLINES[task]:
            low, high = report["intervals"][name]
            between = f"{percent(low)} – {percent(high)}"
            st.metric(
                SCORE_WORDS[name], percent(report[name]), between, delta_color="off", delta_arrow="off",
                width="content", help=SCORE_HELP[name],
            )  # fmt: skip
    st.caption(describe_certainty(answers, report))
    if report["failed"]:
        st.warning(f"{ui.count_rows(report['failed'])} got no answer that could be read, which counts as wrong.")
    left, right = st.columns(2)
    with left.container(border=True):
        st.subheader("How right is each class?", anchor=False)
        show_classes(report, task)
    with right.container(border=True):
        if task == "language":
            st.subheader("What is taken for what?", anchor=False)
            cells = plots.count_confusions(report["confusion_matrix"])
            picked = show_chart(cells, plots.draw_confusions, f"confusions {run.id}")
        else:
            errors = error_rows(answers)
            st.subheader("What goes wrong with names?", anchor=False)
            picked = show_chart(plots.count_errors(errors), plots.draw_errors, f"errors {run.id}")
            st.caption("Wrong boundary: the right kind at a place that only overlaps.")
    if task == "language":
        with left.container(border=True):
            st.subheader("Do probabilities keep their word?", anchor=False)
            show_calibration(run, report)
        show_languages(answers, picked)
    else:
        show_errors(run, errors, picked)
    show_downloads(run, task, report, answers)


def describe_certainty(answers: Answers, report: dict[str, Any]) -> str:
    """What the intervals are, in words; and where they say nothing, what does."""
    texts = len(answers.texts)
    words = (
        f"Of {ui.count_rows(texts)}. Below each score its {LEVEL:.0%} interval: how far it moves when texts are drawn "
        "anew from these (bootstrap)."
    )
    if all(answers.is_right()):
        # Hanley and Lippman-Hand 1983, https://doi.org/10.1001/jama.1983.03330370053031
        most = min(1.0, 3 / texts)
        words += f" No text is wrong here, which a draw cannot change; of others, up to {percent(most)} may well be."
    return words


def show_classes(report: dict[str, Any], task: TaskName) -> None:
    if task == "language":
        rows = {plots.label_language(name): row for name, row in report["per_class"].items()}
    else:
        rows = {plots.style_of(name).many: row for name, row in report["per_type"].items()}
    if not rows:
        st.caption("There are none in these texts.")
        return
    columns = {"precision": "Precision", "recall": "Recall", "f1": "F1"}
    table = [
        {"Class": name} | {words: 100 * row[key] for key, words in columns.items()} | {"Support": row["support"]}
        for name, row in rows.items()
    ]
    config = {words: st.column_config.NumberColumn(format="%.1f%%") for words in columns.values()}
    st.dataframe(table, hide_index=True, column_config=config)
    st.caption("Precision: of what was answered, how much is right. Recall: of what is right, how much was answered.")


def show_calibration(run: Job, report: dict[str, Any]) -> None:
    if report["calibration"] is None:
        st.caption("This model gives no probabilities.")
        return
    bins = plots.list_bins(report["calibration"])
    show_chart(bins, plots.draw_calibration, f"calibration {run.id}", is_picked=False)
    error = percent(report["calibration"]["expected_error"])
    st.caption(
        f"Expected calibration error: {error}, by which probabilities are off on average. Below the dashed line the "
        "model is surer than it is right. A larger point is more texts."
    )


def show_languages(answers: Answers, picked: Sequence[dict[str, str]]) -> None:
    rows = [row for row in answer_rows(answers) if not row["right"]]
    words = "Texts with a wrong language"
    if picked:
        wanted = {(one["gold"], one["predicted"]) for one in picked}
        rows = [row for row in answer_rows(answers) if (row["gold"], row["predicted"]) in wanted]
        words = ", ".join(
            f"{plots.label_language(gold)} answered as {plots.label_language(predicted)}" for gold, predicted in wanted
        )
    st.subheader(f"{words}: {len(rows):,}", anchor=False)
    if not picked:
        st.caption("Click a cell of the matrix to see its texts.")
    if not rows:
        return
    table = [
        {
            "text": row["text"],
            "right": plots.label_language(row["gold"]),
            "answered": plots.label_language(row["predicted"]),
            "probability": None if row["probability"] is None else 100 * row["probability"],
            "row": row["row"],
            "error": row["problem"],
        }
        for row in rows[: ui.SHOWN_ROWS]
    ]
    config = {
        "text": st.column_config.TextColumn(width="large"),
        "probability": st.column_config.NumberColumn(format="%.1f%%"),
    }
    st.dataframe(table, hide_index=True, column_config=config)
    if len(rows) > ui.SHOWN_ROWS:
        st.caption(f"The first {ui.SHOWN_ROWS:,} of them.")


def show_errors(run: Job, errors: Sequence[dict[str, Any]], picked: Sequence[dict[str, str]]) -> None:
    """The texts of the errors, marked as they should be and as they are answered."""
    words = "Errors"
    if picked:
        wanted = {(one["kind"], one["type"]) for one in picked}
        errors = [error for error in errors if (error["kind"], error["type"]) in wanted]
        words = ", ".join(f"{ERROR_WORDS[kind]} · {plots.style_of(type_).many}" for kind, type_ in sorted(wanted))
    st.subheader(f"{words}: {len(errors):,}", anchor=False)
    if not picked:
        st.caption("Click a bar to see only its texts.")
    key = f"shown {run.id}"
    shown = st.session_state.get(key, LISTED)
    for error in errors[:shown]:
        with st.container(border=True):
            st.caption(f"{ERROR_WORDS[error['kind']]} · row {error['row']:,}")
            for label, side in (("Right", "gold"), ("Answered", "predicted")):
                text, entities = cut_around(error, side)
                marked = ui.entity_html(text, entities)
                name = f'<b style="min-width:5.5em;line-height:2">{label}</b>'
                st.html(f'<div style="display:flex;gap:.8em">{name}{marked}</div>')
    if len(errors) > shown:
        st.button("Show more", key="more errors", on_click=st.session_state.update, kwargs={key: shown + LISTED})


def cut_around(error: dict[str, Any], side: str) -> tuple[str, list[Entity]]:
    """The text around an error, and in it what stands on that side, if anything does."""
    text = error["text"]
    both = [one for one in (error["gold"], error["predicted"]) if one]
    start = max(0, min(one["start"] for one in both) - CONTEXT)
    end = min(len(text), max(one["end"] for one in both) + CONTEXT)
    before, after = "…" if start else "", "…" if end < len(text) else ""
    move = len(before) - start
    entities = [
        Entity(text=one["text"], type=one["type"], start=one["start"] + move, end=one["end"] + move)
        for one in [error[side]]
        if one
    ]
    return f"{before}{text[start:end]}{after}", entities


def describe_run(run: Job) -> dict[str, Any]:
    """What a program may want to know of a run, beside its scores."""
    about = {"run": run.id, "gold": run.name, "gold_sha256": run.source, "model": run.version, "shots": run.shots}
    about |= {"tasks": describe_tasks(run), "texts": run.done, "seconds": run.seconds, "created": run.created}
    return about


def show_downloads(run: Job, task: TaskName, report: dict[str, Any], answers: Answers) -> None:
    with st.container(horizontal=True):
        scores = describe_run(run) | {"task": task, "interval_level": LEVEL} | report
        download("Scores (JSON)", json.dumps(scores, ensure_ascii=False, indent=2), f"{task}-scores.json")
        download("All rows (CSV)", write_csv(answer_rows(answers)), f"{task}-rows.csv")
        if task == "entities":
            download("Errors (CSV)", write_csv(error_rows(answers)), "entities-errors.csv")


def download(label: str, data: str | bytes, file_name: str) -> None:
    mime = "application/json" if file_name.endswith("json") else "text/csv"
    st.download_button(label, data, file_name, mime, key=file_name, on_click="ignore", icon=":material/download:")


def write_csv(rows: Sequence[dict[str, Any]]) -> bytes:
    """The rows as CSV for spreadsheets; lists of entities as JSON."""

    def write(cell: Any) -> Any:
        return json.dumps(cell, ensure_ascii=False) if isinstance(cell, (list, dict)) else cell

    cells = [{key: write(cell) for key, cell in row.items()} for row in rows]
    return plots.to_csv(plots.Counts(cells))


# Runs side by side


def show_comparison(runs: Sequence[Job], task: TaskName) -> None:
    ids, versions = [run.id for run in runs], [ui.table_version(run) for run in runs]
    reports = [get_report(*both, task) for both in zip(ids, versions, strict=True)]
    comparisons = get_comparisons(tuple(ids), tuple(versions), task)
    answers = [get_answers(*both, task) for both in zip(ids, versions, strict=True)]
    names = name_apart(runs)
    with st.container(border=True):
        st.subheader("Which run is better?", anchor=False)
        score = st.radio("Score", HEADLINES[task], format_func=SCORE_WORDS.get, key=f"compared {task}", horizontal=True)
        table = list_scores(names, reports, comparisons, score)
        st.altair_chart(plots.draw_scores(plots.Counts(table)), key=f"scores {' '.join(ids)} {task}")
        show_table(table)
        st.caption(describe_test(comparisons, score))
        every = [row for name in HEADLINES[task] for row in list_scores(names, reports, comparisons, name)]
        differing = differing_rows(answers)
        st.subheader(f"Texts that they answer differently: {len(differing):,}", anchor=False)
        rows = [
            {"text": row["text"], "right": write_answer(row["gold"])}
            | {name: write_answer(answer) for name, answer in zip(names, row["answers"], strict=True)}
            | {"row": row["row"]}
            for row in differing
        ]
        if rows:
            st.dataframe(
                rows[: ui.SHOWN_ROWS],
                hide_index=True,
                column_config={"text": st.column_config.TextColumn(width="large")},
            )
        with st.container(horizontal=True):
            document = {
                "task": task,
                "runs": [describe_run(run) for run in runs],
                "comparisons": [asdict(one) for one in comparisons],
            }
            download("Comparison (JSON)", json.dumps(document, ensure_ascii=False, indent=2), "comparison.json")
            download("Scores (CSV)", write_csv(every), "comparison-scores.csv")
            if rows:
                download("Differing rows (CSV)", write_csv(rows), "comparison-rows.csv")


def list_scores(
    names: Sequence[str], reports: Sequence[dict[str, Any]], comparisons: Sequence[Comparison], score: str
) -> list[dict[str, Any]]:
    """A row per run with one score, its interval, and how it differs from the first run's."""
    rows = []
    for place, (name, report) in enumerate(zip(names, reports, strict=True)):
        low, high = report["intervals"][score]
        row = {"run": name, "score": score, "value": report[score], "low": low, "high": high}
        row |= dict.fromkeys(("difference", "difference_low", "difference_high", "p_value", "p_adjusted", "method"))
        if place:
            comparison = comparisons[place - 1]
            one = comparison.differences[score]
            row |= {"difference": one.value, "difference_low": one.low, "difference_high": one.high}
            row |= {"p_value": one.p_value, "p_adjusted": comparison.adjusted[score]}
            row["method"] = comparison.methods[score]
        rows.append(row)
    return rows


def show_table(scores: Sequence[dict[str, Any]]) -> None:
    shown = [
        {
            "Run": row["run"],
            "Score": percent(row["value"]),
            "Interval": f"{percent(row['low'])} – {percent(row['high'])}",
            "Against the first": "" if row["difference"] is None else f"{100 * row['difference']:+.1f} points",
            "Its interval": ""
            if row["difference"] is None
            else f"{100 * row['difference_low']:+.1f} to {100 * row['difference_high']:+.1f}",
            "p-value": "" if row["p_adjusted"] is None else f"{row['p_adjusted']:.4f}",
        }
        for row in scores
    ]
    st.dataframe(shown, hide_index=True)


def describe_test(comparisons: Sequence[Comparison], score: str) -> str:
    """What the p-values are, in words."""
    first = comparisons[0]
    words = (
        f"On the {ui.count_rows(first.texts)} that all have. The p-value ({first.methods[score]}) is how often a "
        "difference as large comes by chance, if both are equally good; below 0.05 is commonly called significant. "
        "Intervals of differences: paired bootstrap."
    )
    if len(comparisons) > 1:
        words += " P-values are adjusted for several comparisons at once (Holm)."
    return words


def write_answer(answer: Any) -> str:
    """An answer in words: a language, or names with their kinds."""
    return plots.label_language(answer) if isinstance(answer, str) else plots.list_names(json.dumps(answer)) or "–"


# All runs


def show_runs(runs: Sequence[Job], is_open: bool) -> None:
    st.subheader("Other evaluations" if is_open else "All evaluations", anchor=False)
    listed = st.session_state.get("listed runs", LISTED)
    for run in runs[:listed]:
        with st.container(horizontal=True, vertical_alignment="center", border=True):
            rows = ui.count_rows(run.total) if run.done == run.total else f"{run.done:,} of {ui.count_rows(run.total)}"
            words = ui.escape_markdown(f"{name_run(run)} · {ui.format_time(run.created)} · {rows} · {run.state}")
            st.markdown(f"**{ui.escape_markdown(run.name)}** · {words}", width="stretch")
            st.button("Open", key=f"open {run.id}", on_click=open_runs, args=([run.id],))
            show_changes(run, delete_run)
    if len(runs) > listed:
        more = {"listed runs": listed + LISTED}
        st.button("Show more", key="more", on_click=st.session_state.update, kwargs=more)


def find_runs(ids: Sequence[str]) -> list[Job]:
    """The runs of these ids; raises ``ChainError`` if one is not there, or no evaluation, or of another gold set."""
    runs = [ui.get_jobs().status(run_id, owner=accounts.owner()) for run_id in ids]
    for run in runs:
        if not is_run(run) or run.source != runs[0].source:
            raise ChainError(
                f"The job {run.id!r} is no evaluation, or one of another gold set than the first: choose one below."
            )
    return runs


ui.require_entrypoint()
st.title("How right are the answers?")
show_problem()
if "run" not in st.query_params and st.session_state.get("runs"):
    open_runs(st.session_state.runs.split(","))
st.session_state.runs = st.query_params.get("run", "")
chosen = list(dict.fromkeys(filter(None, st.session_state.runs.split(","))))
try:
    runs = list_runs(ui.get_jobs(), owner=accounts.owner())
    if chosen:
        opened = find_runs(chosen)
        show_run(opened[0], opened[1:], runs)
    else:
        show_start(runs)
    if others := [run for run in runs if run.id not in chosen]:
        show_runs(others, bool(chosen))
except ChainError as error:
    ui.show_error(error)
    st.button("New evaluation", key="new after error", on_click=open_runs, args=([],))
