"""The task files, edited and saved as versions → the prompt, its tokens, a try-out, and what shots cost and bring.

What stands in the fields is a draft: the prompt and the try-out follow it at once, the other pages when it is saved.
"""

import secrets
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

import plots
import ui
from chains import ChainError, Detection, Recognition, detect_language, find_entities
from chains.errors import TableError, TaskError
from chains.prompts import (
    KINDS,
    MAX_SHOTS,
    Kind,
    Shot,
    Task,
    load_task,
    make_task,
    prompt_template,
    read_task,
    read_yaml,
    to_prompt_text,
    write_task,
)
from chains.registry import EMBEDDED
from chains.schema import UNKNOWN
from chains.sweep import SCORES, Sweep
from chains.versions import SHIPPED

SAMPLE = Path(__file__).with_name("gold.jsonl")
MAX_GOLD = 5_000  # texts
MAX_GOLD_MB = 20
ENDINGS = ["csv", "tsv", "jsonl", "gz"]
SHOWN_TOKENS = 3_000
LIVE_S = 1  # between two looks at a sweep that runs
KIND_NAMES = {"language": "One label per text", "entities": "Names in the text"}
EXAMPLE = "Camille Roussel a quitté Lyon pour ouvrir le bureau d'Airbus à Hambourg."
SHOT_EXAMPLES = {
    "language": '- text: "Quin dia més bonic!"\n  reply: "català"',
    "entities": '- text: "Ana flew to Lima."\n  reply: "<Ana>(person) <Lima>(location)"',
}
Slots = dict[str, DeltaGenerator]  # where the message to each key of a task file is shown


@dataclass(frozen=True)
class Trial:
    """A try-out as it stays on the page."""

    result: Detection | Recognition
    task: Task
    text: str
    shots: int
    model: str
    seconds: float


# Versions


def pick_version(kind: Kind) -> None:
    """Let the user choose which version answers."""
    saved = {version.number: version for version in ui.get_versions().list(kind)}
    words = {SHIPPED: f"Shipped (version {load_task(kind).version})"}
    words |= {number: f"Version {number} · {ui.format_time(version.created)}" for number, version in saved.items()}
    picked = ui.picked_version(kind)
    words.setdefault(picked, f"Version {picked}, which is not there")
    key = f"pick {kind}"
    st.session_state[key] = picked
    st.selectbox(
        "Version that answers, on every page",
        words,
        format_func=words.get,
        key=key,
        on_change=lambda: ui.choose_task(kind, st.session_state[key]),
        help="Everybody who uses this dashboard can choose a saved version; yours changes nothing for the others.",
    )


def save(task: Task) -> None:
    """Save the draft as a new version, which answers from now on."""
    try:
        new = ui.get_versions().save(task)
    except TaskError as error:
        st.session_state.problem = error
        return
    discard()
    ui.choose_task(task.kind, new.version)
    st.session_state.saved = f"Saved as version {new.version}, which now answers on every page."


# The draft


def draft_of(base: Task) -> dict[str, Any]:
    """The state of a draft, which begins as the version that answers: a new one for each version and each discard."""
    drafts = st.session_state.setdefault("drafts", {})
    key = f"{base.kind} {ui.picked_version(base.kind)} {base.fingerprint}"
    if key not in drafts:
        drafts[key] = {"key": secrets.token_hex(4), "shots": {secrets.token_hex(4): shot for shot in base.shots}}
    return drafts[key]


def discard() -> None:
    st.session_state.drafts = {}


def reset(kind: Kind) -> None:
    discard()
    ui.choose_task(kind, SHIPPED)


def add_shots(draft: dict[str, Any], key: str) -> None:
    """Add what was pasted, in the form of a task file, to the shots."""
    try:
        values = read_yaml(st.session_state[key], "What you pasted")
        values = values.get("shots", [values]) if isinstance(values, dict) else values
        shots = [Shot.model_validate(value) for value in values]
    except (ChainError, ValueError, TypeError) as error:
        reason = str(error) if isinstance(error, ChainError) else "What you pasted is not a shot."
        st.session_state.problem = TaskError(
            f"{reason} Expected one or more with 'text' and 'reply', as in the example."
        )
        return
    if len(draft["shots"]) + len(shots) > MAX_SHOTS:
        st.session_state.problem = TaskError(
            f"A task has at most {MAX_SHOTS} shots, and these would be {len(draft['shots']) + len(shots)}. "
            "Remove some first."
        )
        return
    draft["shots"] |= {secrets.token_hex(4): shot for shot in shots}
    st.session_state[key] = ""


def edit_task(base: Task, draft: dict[str, Any], slots: Slots) -> dict[str, Any]:
    """Fields for all of a task file; returns the values in them, and puts the places for messages into ``slots``.

    Raises:
        TaskError: the labels have another form.
    """
    kind, values = base.kind, base.model_dump(mode="json")

    def field(make: Callable[..., Any], label: str, name: str, value: Any, **options: Any) -> Any:
        given = make(label, value=value, key=f"{name} {draft['key']}", persist_state="session", **options)
        slots[name] = st.container()
        return given

    values["instruction"] = field(st.text_area, "Instruction", "instruction", base.instruction, height=80)
    labels = "\n".join(write_pair(name, word) for name, word in base.labels.items())
    help = "One per line: the name in results, a colon, and the word that the model reads and writes."
    labels = field(st.text_area, "Labels", "labels", labels, height=140, help=help)
    if kind == "language":
        left, right = st.columns(2)
        with left:
            help = "The word for anything else; its probability counts as “Not sure”. May be empty."
            other = field(st.text_input, "Word for none of them", "out_of_scope", base.out_of_scope or "", help=help)
            values["out_of_scope"] = other.strip() or None
        with right:
            help = "Below this probability the answer is “Not sure”."
            values["threshold"] = field(
                st.number_input, "Least probability", "threshold", base.threshold, min_value=0.0, max_value=1.0,
                step=0.05, help=help,
            )  # fmt: skip
    else:
        values["empty"] = field(st.text_input, "Reply to a text that names nothing", "empty", base.empty)
    st.markdown("**Shots**: solved examples, of which the first so many are read")
    slots["shots"] = st.container()
    values["shots"] = []
    for number, (id, shot) in enumerate(draft["shots"].items()):
        with st.container(border=True, gap="small"):
            with st.container(horizontal=True, vertical_alignment="bottom"):
                text = st.text_area(
                    f"Text {number + 1}",
                    shot.text,
                    key=f"text {id}",
                    persist_state="session",
                    height=70,
                    width="stretch",
                )
                st.button(
                    "", icon=":material/delete:", key=f"drop {id}", help=f"Remove shot {number + 1}",
                    on_click=draft["shots"].pop, args=(id,),
                )  # fmt: skip
            slots[f"shots.{number}.text"] = st.container()
            if kind == "language":
                reply = st.text_input(f"Reply {number + 1}", shot.reply, key=f"reply {id}", persist_state="session")
            else:
                reply = st.text_area(
                    f"Reply {number + 1}", shot.reply, key=f"reply {id}", persist_state="session", height=70
                )
            slots[f"shots.{number}.reply"] = st.container()
            values["shots"].append({"text": text, "reply": reply})
    key = f"paste {draft['key']}"
    with st.popover("Add shots", icon=":material/add:", disabled=len(draft["shots"]) >= MAX_SHOTS):
        st.text_area("Paste them as they stand in a task file", key=key, placeholder=SHOT_EXAMPLES[kind], height=120)
        st.button("Add", key="add_shots", on_click=add_shots, args=(draft, key))
    with st.expander("Name and templates"):
        values["name"] = field(st.text_input, "Name", "name", base.name, help="Stands beside results.")
        help = "How a shot is written, with {text} and {reply}."
        values["shot"] = field(st.text_area, "Shot", "shot", base.shot, height=80, help=help)
        help = "The beginning of a shot, up to where the reply starts."
        values["query"] = field(st.text_area, "Question", "query", base.query, height=80, help=help)
    slots[""] = st.container()
    values["labels"] = read_labels(labels)
    return values


def write_pair(name: str, word: str) -> str:
    """A label as a line of YAML: quoted where it has to be."""
    return ": ".join(write_scalar(part) for part in (name, word))


def write_scalar(text: str) -> str:
    try:
        is_plain = read_yaml(text, "A label") == text and ": " not in text
    except TaskError:
        is_plain = False
    return text if is_plain else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def read_labels(text: str) -> Any:
    """The labels of their field; raises ``TaskError`` with the key ``labels`` if it has another form."""
    expected = "expected a line 'name: word' for each label, with quotes around words such as \"no\""
    try:
        labels = read_yaml(text, "The labels")
    except TaskError as error:
        raise TaskError(str(error), {"labels": f"{error} {expected}"}) from error
    if not isinstance(labels, dict):
        raise TaskError(expected, {"labels": expected})
    return labels


def show_problems(problems: Mapping[str, str], slots: Slots) -> None:
    """Each message at the field that it is about."""
    for key, message in problems.items():
        place = key
        while place not in slots:
            place = place.rpartition(".")[0]
        words = message if place else f"{key}: {message}" if key else message
        slots[place].error(ui.escape_markdown(words[:1].upper() + words[1:]))


def show_editor(base: Task) -> Task | None:
    """The fields and what can be done with them; returns the draft's task, or ``None`` if it breaks a rule."""
    draft = draft_of(base)
    task, slots = None, {}
    try:
        task = make_task(edit_task(base, draft, slots))
    except TaskError as error:
        show_problems(error.problems, slots)
    is_changed = task is None or task.fingerprint != base.fingerprint
    with st.container(horizontal=True):
        is_ready = task is not None and is_changed
        st.button("Save as new version", key="save", type="primary", disabled=not is_ready, on_click=save, args=(task,))
        st.button("Discard", key="discard", disabled=not is_changed, on_click=discard)
        is_shipped = ui.picked_version(base.kind) == SHIPPED
        st.button(
            "Reset to shipped", key="reset", disabled=is_shipped,
            on_click=reset, args=(base.kind,),
        )  # fmt: skip
    if is_changed:
        st.caption("Not saved yet: other pages still answer with the version above.")
    return task


def show_file(base: Task) -> None:
    """The version as a file to take home, and a place for one from elsewhere."""
    with st.expander("The whole file"):
        content = write_task(base)
        st.code(content, language="yaml", wrap_lines=True)
        name = f"{base.kind}-{base.version}.yaml"
        st.download_button("Download", content, name, "application/yaml", key="file", on_click="ignore")
        st.caption(f"On the command line: python -m chains batch in.csv out.csv --task {name}")
        with st.form("whole", border=False):
            pasted = st.text_area("Or paste a task file", key=f"whole {base.kind}", height=120)
            is_sent = st.form_submit_button("Check it and save it as a new version", key="save_file")
        if is_sent:
            try:
                task = read_task(pasted, "The task file")
                if task.kind != base.kind:
                    raise TaskError(f"It is of kind {task.kind!r}: choose that above, where it now says {base.kind!r}.")
            except TaskError as error:
                ui.show_error(error)
            else:
                save(task)
                st.rerun()


# The prompt


def show_prompt(task: Task, text: str, shots: int) -> None:
    """The prompt as it is sent, cut into tokens, and how much of the model's context it takes."""
    st.subheader("What the model reads", anchor=False)
    model = ui.get_model()
    prompt = prompt_template(task, shots).format(text=to_prompt_text(text))
    tokens = model.cut(prompt, task.query)
    share = len(tokens) / model.context_tokens
    with st.container(horizontal=True, gap="medium"):
        st.metric("Tokens", f"{len(tokens):,}", width="content")
        st.metric(f"Of the context of {model.context_tokens:,}", f"{share:.1%}", width="content")
        st.metric("Shots", f"{shots} of {len(task.shots)}", width="content")
    st.progress(min(1.0, share))
    if share > 1:
        st.warning("The prompt is longer than any that this model was trained on. Use fewer or shorter shots.")
    with st.container(border=True):
        st.html(ui.tokens_html(tokens[:SHOWN_TOKENS]))
    more = f" The first {SHOWN_TOKENS:,} are shown." if len(tokens) > SHOWN_TOKENS else ""
    st.caption(
        f"A box is a token, as the tokenizer of {ui.escape_markdown(model.version)} cuts it; · is a space, ↵ a line's "
        f"end, [F0 9F] bytes of a character that several tokens share.{more}"
    )


# Trying it


def try_text(task: Task, text: str, shots: int) -> Trial:
    """The answer to one text by the draft."""
    model = ui.get_model()
    start = time.perf_counter()
    ask = detect_language if task.kind == "language" else find_entities
    result = ask(text, model, task=task, shots=shots)
    return Trial(result, task, text, shots, model.version, time.perf_counter() - start)


def show_trial(trial: Trial) -> None:
    st.markdown("**Reply**")
    st.code("\n".join(trial.result.replies) or "(the model was not asked)", language=None, wrap_lines=True)
    st.markdown("**Read as**")
    if isinstance(trial.result, Detection):
        label, probability = plots.label_language(trial.result.language), trial.result.probability
        sure = f"{probability:.1%} probable" if probability is not None else None
        if trial.result.language == UNKNOWN:
            label = f"{label} (unknown)"
        st.metric(
            "Label", ui.escape_markdown(label), sure, delta_color="off", delta_arrow="off", label_visibility="collapsed"
        )
        if trial.result.probabilities:
            st.altair_chart(
                plots.draw_probabilities(trial.result.probabilities, trial.result.threshold), key="try_chart"
            )
    else:
        with st.container(border=True):
            st.html(ui.entity_html(trial.text, trial.result.entities))
        if trial.result.ungrounded:
            names = ", ".join(f"{mention.text} ({mention.type})" for mention in trial.result.ungrounded)
            st.info(f"Not in the text, and not counted: {ui.escape_markdown(names)}")
    words = f"{trial.model} · {trial.task.name} {trial.task.fingerprint} · {trial.shots} shots"
    st.caption(ui.escape_markdown(f"{words} · {ui.format_seconds(trial.seconds)}"))


def show_try_out(task: Task, text: str, shots: int) -> None:
    key = f"trial {task.kind}"
    if st.button("Try it", key="try", type="primary", disabled=not text.strip()):
        try:
            with st.spinner("Reading the text…", show_time=True):
                st.session_state[key] = try_text(task, text, shots)
        except ChainError as error:
            st.session_state.pop(key, None)
            ui.show_error(error)
    trial = st.session_state.get(key)
    if trial and (trial.task.fingerprint, trial.text, trial.shots) == (task.fingerprint, text, shots):
        show_trial(trial)
    elif trial:
        st.caption("Something has changed since the last answer: try it again.")


# What shots cost and bring


def start_sweep(task: Task, key: str) -> None:
    """Answer the gold set with every number of shots."""
    uploaded = st.session_state.get(f"gold {task.kind}")
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = SAMPLE
            if uploaded:
                file = Path(folder, Path(uploaded.name).name)
                file.write_bytes(uploaded.getvalue())
            sweep = Sweep.of_file(ui.get_model(), task, file)
        if len(sweep.gold) > MAX_GOLD:
            raise TableError(
                f"The gold set has {len(sweep.gold):,} texts: expected at most {MAX_GOLD:,}. A sample says as much."
            )
    except ChainError as error:
        st.session_state.sweep_problem = error
        return
    if former := st.session_state.get(key):
        former.stop()
    sweep.start()
    st.session_state[key] = sweep


def show_sweep(task: Task) -> None:
    """One button, one chart."""
    st.subheader("What do more shots bring, and what do they cost?", anchor=False)
    st.caption(
        f"Answers a gold set with 0 to {len(task.shots)} shots of the draft above, and compares. Without a file of "
        "yours, a sample of 45 short texts in three languages, made for this."
    )
    ending = "a table with text and language, or JSON Lines" if task.kind == "language" else "JSON Lines with entities"
    st.file_uploader(f"Gold set: {ending}", type=ENDINGS, key=f"gold {task.kind}", max_upload_size=MAX_GOLD_MB)
    key = f"sweep {task.kind}"
    st.button("Measure", key="measure", type="primary", on_click=start_sweep, args=(task, key))
    if problem := st.session_state.pop("sweep_problem", None):
        ui.show_error(problem)
    if sweep := st.session_state.get(key):
        st.fragment(show_scores, run_every=LIVE_S if sweep.is_live else None)(sweep, sweep.is_live)


def show_scores(sweep: Sweep, was_live: bool) -> None:
    """The scores so far; looked at again and again while they come."""
    if was_live and not sweep.is_live:
        st.rerun()
    if sweep.is_live:
        words = f"{sweep.done:,} of {sweep.total:,} answers"
        st.progress(sweep.done / sweep.total, "stopping…" if sweep.is_stopped else words)
        st.button("Stop", key="stop_sweep", on_click=sweep.stop, icon=":material/stop:")
    elif sweep.is_stopped:
        st.caption("Stopped; what was measured by then is shown.")
    if sweep.error:
        st.error(ui.escape_markdown(sweep.error))
    if not sweep.scores:
        return
    table, words = plots.list_shots(sweep.scores), SCORES[sweep.task.kind][1]
    st.altair_chart(plots.draw_shots(table, words), key="sweep_chart")
    st.dataframe(
        table.assign(f1=table["f1"] * 100),
        hide_index=True,
        column_config={
            "shots": "Shots",
            "f1": st.column_config.NumberColumn(words, format="%.1f%%"),
            "seconds": st.column_config.NumberColumn("Seconds per text", format="%.4f"),
            "tokens": "Tokens around the text",
        },
    )
    st.download_button("CSV", plots.to_csv(table), "shots.csv", "text/csv", key="sweep_csv", on_click="ignore")
    words = f"{sweep.model.version} · {sweep.task.name} {sweep.task.fingerprint} · {len(sweep.gold):,} texts"
    st.caption(ui.escape_markdown(words))


ui.require_entrypoint()
st.title("What is the model asked?")
kind = st.segmented_control(
    "Task", KINDS, format_func=KIND_NAMES.get, default=KINDS[0], key="kind", required=True, persist_state="session"
)
if problem := st.session_state.pop("problem", None):
    ui.show_error(problem)
if saved := st.session_state.pop("saved", None):
    st.success(saved)
pick_version(kind)
try:
    base = ui.get_versions().load(kind, ui.picked_version(kind))
    left, right = st.columns(2, gap="large")
    with left:
        task = show_editor(base)
        show_file(base)
    with right:
        text = st.text_area("A text to try", EXAMPLE, key="try_text", height=80, persist_state="session")
        if task is None:
            st.info("Mend what is marked, and the prompt appears here.")
        else:
            if ui.picked_name() == EMBEDDED and task.fingerprint != load_task(kind).fingerprint:
                st.info(
                    "The embedded model has learned the shipped tasks only, and is of little use for others. Choose a "
                    "bloomz model in the sidebar to try a task of your own."
                )
            shots = min(ui.picked_shots(), len(task.shots))
            show_try_out(task, text, shots)
            show_prompt(task, text, shots)
    if task is not None:
        show_sweep(task)
except ChainError as error:
    ui.show_error(error)
