"""One text → its language with probabilities, its entities marked in place, counts, and how the model answered."""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass

import streamlit as st

import accounts
import plots
import ui
from chains import Analysis, ChainError, Detection, Recognition, analysis
from chains.prompts import Tasks
from chains.schema import UNKNOWN

EXAMPLES = {
    "French": "Camille Roussel a quitté Lyon pour ouvrir le bureau d'Airbus à Hambourg, où l'attendait Karim Benali.",
    "Spanish": "Lucía Ferrer presentó en Valencia el acuerdo entre Iberdrola y la Universidad de Salamanca.",
    "English": "Priya Raman, who was born in Helsinki, worked for Nokia in Leeds and now advises the World Bank.",
    "German": "Im Herbst zog Annika Vogel von Dresden nach Oslo, weil Siemens dort ein neues Labor plante.",
    "A longer, mixed text": (
        "The night train from Vienna was two hours late. Tomasz Zielinski, who repairs violins for the Vienna "
        "Philharmonic, shared his compartment with a botanist from Kew Gardens and a boy who wanted to see Venice.\n\n"
        "«Yo solo quería llegar a Trieste», contó después Marina Quiroga, de la Universidad de Buenos Aires. En la "
        "estación la esperaba su colega Andrés Villalba con dos bicicletas y un mapa de Eslovenia.\n\n"
        "À Ljubljana, la mairie avait prêté une salle à Médecins Sans Frontières. Hélène Aubry y parla d'un hiver "
        "passé à Tombouctou, puis Tomasz Zielinski joua un air que personne ne connaissait."
    ),
}


@dataclass(frozen=True)
class Answer:
    """A result as it stays on the page: with what it took, whatever is chosen in the sidebar later."""

    analysis: Analysis
    model_name: str
    shots: int
    tasks: Tasks
    seconds: float
    prompt_tokens: dict[str, int]


def use_example(name: str) -> None:
    st.session_state.text = EXAMPLES[name]
    st.session_state.is_asked = True


def answer(text: str) -> Answer:
    accounts.check_length(text)
    model, shots, tasks = ui.get_model(), ui.picked_shots(), ui.picked_tasks()
    start = time.perf_counter()
    [result] = analysis.analyse([text], model, shots=shots, tasks=tasks)
    seconds = time.perf_counter() - start
    prompts = [*result.detection.prompts, *result.recognition.prompts] if not result.error else []
    return Answer(result, model.name, shots, tasks, seconds, {prompt: model.count_tokens(prompt) for prompt in prompts})


def show_language(name: str, detection: Detection) -> None:
    """``name`` is the task's: its labels may be other things than languages."""
    left, right = st.columns([1, 2], gap="medium", vertical_alignment="center")
    label = plots.label_language(detection.language)
    sure = f"{detection.probability:.1%} probable" if detection.probability is not None else None
    if detection.language == UNKNOWN:
        other = "Another language, or too" if name == "language" else "Too"
        label, sure = f"{label} (unknown)", f"{other} little to tell"
    left.metric(ui.escape_markdown(name[:1].upper() + name[1:]), label, sure, delta_color="off", delta_arrow="off")
    if detection.probabilities:
        right.altair_chart(plots.draw_probabilities(detection.probabilities, detection.threshold), key="probabilities")
        if detection.threshold is not None:
            right.caption(f"Dashed line: below {detection.threshold:.0%} no {ui.escape_markdown(name)} is named.")


def show_entities(text: str, recognition: Recognition, types: Iterable[str]) -> None:
    with st.container(border=True):
        st.html(ui.entity_html(text, recognition.entities))
    counts = recognition.counts()
    with st.container(horizontal=True, gap="medium"):
        for name in types:
            style = plots.style_of(name)
            label = f"{ui.escape_markdown(style.many)} ({ui.escape_markdown(style.tag)})"
            st.metric(label, counts.get(name, 0), width="content")
    if not recognition.entities:
        words = ", ".join(plots.style_of(name).many.lower() for name in types)
        st.caption(f"The model found nothing to name in this text: it looked for {ui.escape_markdown(words)}.")
    else:
        first = {(entity.text, entity.type): entity.start for entity in reversed(recognition.entities)}
        rows = [
            {
                "Entity": name,
                "Type": plots.style_of(type_).one,
                "Times": times,
                "First position": first[name, type_] + 1,
            }
            for (name, type_), times in recognition.distinct().items()
        ]
        st.dataframe(rows, hide_index=True, height="content" if len(rows) <= 20 else "auto")
    if recognition.ungrounded:
        missing = recognition.ungrounded
        names = ", ".join(f"{mention.text} ({plots.style_of(mention.type).one.lower()})" for mention in missing)
        st.info(f"The model also named what does not stand in the text; it is not counted: {ui.escape_markdown(names)}")


def show_working(shown: Answer) -> None:
    detection, recognition = shown.analysis.detection, shown.analysis.recognition
    with st.expander("How was this answered?"):
        st.caption(
            "The model continues a prompt: an instruction, solved examples (shots), your text. Long texts take several."
        )
        for title, part in (("Language", detection), ("Entities", recognition)):
            for number, (prompt, reply) in enumerate(zip(part.prompts, part.replies, strict=True), 1):
                of = f" {number} of {len(part.prompts)}" if len(part.prompts) > 1 else ""
                st.markdown(f"**{title}: prompt{of}** · {shown.prompt_tokens[prompt]:,} tokens")
                st.code(prompt, language=None, wrap_lines=True)
                st.markdown(f"**{title}: reply{of}**")
                st.code(reply, language=None, wrap_lines=True)
        if detection.logprobs:
            st.markdown("**Log-probability of each label** in nats; the closer to 0, the likelier the label as a reply")
            rows = [{"Label": label, "Log-probability": value} for label, value in detection.logprobs.items()]
            st.dataframe(
                rows, hide_index=True, column_config={"Log-probability": st.column_config.NumberColumn(format="%.3f")}
            )
    with st.expander("Use this in Python, or download it"):
        record = shown.analysis.model_dump() | {"shots": shown.shots, "seconds": round(shown.seconds, 3)}
        data = json.dumps(record, ensure_ascii=False, indent=2)
        st.download_button("Download JSON", data, "analysis.json", "application/json", key="json", on_click="ignore")
        st.code(
            "from chains import analyse, load\n\n"
            f"model = load({shown.model_name!r})\n"
            f"[analysis] = analyse([{shown.analysis.text!r}], model, shots={shown.shots})\n"
            "print(analysis.detection.language, analysis.recognition.counts())\n",
            wrap_lines=True,
        )


ui.require_entrypoint()
st.title("Which language is it, and who is named?")
with st.container(horizontal=True):
    for example in EXAMPLES:
        st.button(example, key=f"example {example}", on_click=use_example, args=(example,))
with st.form("detect", border=False):
    st.text_area(
        "Text", key="text", height=140, placeholder="Paste a text, or take an example above.", persist_state="session"
    )
    is_asked = st.form_submit_button(
        "Detect", key="submit", type="primary", help="Ctrl+Enter in the text does the same"
    )
is_asked = st.session_state.pop("is_asked", False) or is_asked

text = st.session_state.text
if is_asked and not text.strip():
    st.session_state.pop("answer", None)
    st.info("There is no text yet: write or paste one above, or take an example.")
elif is_asked:
    try:
        with st.spinner("Reading the text…", show_time=True):
            st.session_state.answer = answer(text)
    except ChainError as error:
        ui.show_error(error)
shown = st.session_state.get("answer")
if shown is not None and shown.analysis.error:
    st.error(ui.escape_markdown(shown.analysis.error))
elif shown is not None:
    show_language(shown.tasks.language.name, shown.analysis.detection)
    show_entities(shown.analysis.text, shown.analysis.recognition, shown.tasks.entities.labels)
    words = [shown.analysis.model, *shown.tasks.identities.values(), f"{shown.shots} shots"]
    st.caption(ui.escape_markdown(" · ".join([*words, ui.format_seconds(shown.seconds)])))
    show_working(shown)
