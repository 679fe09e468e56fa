"""New labels by a task file alone: Catalan, a fourth entity type, and a task whose labels are no languages."""

from pathlib import Path

import pytest
import yaml

from chains.analysis import analyse
from chains.entities import find_entities
from chains.evaluation import evaluate, read_gold
from chains.language import detect_language
from chains.parsers import MentionParser
from chains.prompts import TASKS_FOLDER, Tasks, load_task, make_task, prompt_template, read_task
from chains.schema import UNKNOWN

ROOT = Path(__file__).parent.parent
CATALAN = {"text": "La meva germana toca el violí a l'orquestra.", "reply": "català"}
PRODUCT = {"text": "Ana drove her Corolla to Lima for Acme.", "reply": "<Ana>(person) <Corolla>(product)"}
TEXT = "Nadia left Siemens for Porto."


def fields(kind):
    return yaml.safe_load((TASKS_FOLDER / f"{kind}.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def catalan():
    values = fields("language")
    labels = values["labels"] | {"catalan": "català"}
    return make_task(
        values | {"version": 2, "labels": labels, "threshold": 0.0, "shots": [*values["shots"][:3], CATALAN]}
    )


@pytest.fixture
def products():
    values = fields("entities")
    labels = values["labels"] | {"product": "product"}
    return make_task(values | {"version": 2, "labels": labels, "shots": [*values["shots"][:3], PRODUCT]})


@pytest.fixture
def sentiment():
    return make_task(
        {
            "name": "sentiment",
            "kind": "language",
            "version": 1,
            "instruction": "Is the customer happy?",
            "shot": "Review: {text}\nMood: {reply}",
            "query": "Review: {text}\nMood:",
            "labels": {"positive": "good", "negative": "bad", "neutral": "neither"},
            "threshold": 0,
            "shots": [
                {"text": "Lovely soup.", "reply": "good"},
                {"text": "It broke.", "reply": "bad"},
                {"text": "It is a spoon.", "reply": "neither"},
            ],
        }
    )


@pytest.mark.parametrize("shots", [0, 4])
def test_catalan_is_scored_beside_the_shipped_languages(tiny_model, catalan, shots):
    detection = detect_language("Bon dia a tothom.", tiny_model, task=catalan, shots=shots)
    assert list(detection.probabilities) == ["english", "spanish", "french", "catalan", UNKNOWN]
    assert sum(detection.probabilities.values()) == pytest.approx(1)
    assert detection.language in detection.probabilities and set(detection.logprobs) == set(detection.probabilities)
    assert prompt_template(catalan, shots).format(text="Bon dia a tothom.") == detection.prompts[0]


def test_catalan_is_an_answer(scripted, catalan):
    reply = '{"english": -9, "español": -2, "française": -9, "català": -0.1, "other": -9}'
    detection = detect_language("Bon dia.", scripted(lambda prompt: reply), task=catalan)
    assert detection.language == "catalan" and detection.probability > 0.8


def test_moods_go_the_way_of_languages(tiny_model, scripted, sentiment):
    detection = detect_language("Never again.", tiny_model, task=sentiment, shots=3)
    assert list(detection.probabilities) == ["positive", "negative", "neutral", UNKNOWN]
    assert detection.language in sentiment.labels and detection.way == "forced"
    plain = detect_language("Never again.", scripted(lambda prompt: " bad"), task=sentiment, way="plain")
    assert plain.language == "negative"
    assert detect_language("  ", tiny_model, task=sentiment).language == UNKNOWN


def test_a_fourth_type_can_be_written_and_read(tiny_model, products):
    types = set()
    for text in (TEXT, "Ana bought a Corolla.", "Acme sells Rex to Lima.", "Siemens and Nokia"):
        recognition = find_entities(text, tiny_model, task=products, shots=4)
        types |= {entity.type for entity in recognition.entities}
        assert recognition.ungrounded == ()
        for reply in recognition.replies:
            MentionParser(task=products).parse(reply)
    assert types <= set(products.labels)
    (mention,) = MentionParser(task=products).parse("<Corolla>(product)").mentions
    assert mention.type == "product"


def test_both_together_say_which_task_answered(tiny_model, catalan, products):
    tasks = Tasks(language=catalan, entities=products)
    (analysis,) = analyse([TEXT], tiny_model, shots=2, tasks=tasks)
    assert analysis.error is None
    assert analysis.tasks == {"language": catalan.identity, "entities": products.identity}
    (shipped,) = analyse([TEXT], tiny_model, shots=2)
    assert shipped.tasks == Tasks().identities != analysis.tasks


def test_an_own_task_is_evaluated_by_its_own_labels(tiny_model, sentiment, products, tmp_path):
    moods, named = tmp_path / "moods.csv", tmp_path / "named.jsonl"
    moods.write_text("text,language\nLovely.,positive\nIt broke.,negative\n")
    named.write_text('{"text": "A Corolla.", "entities": [{"start": 2, "end": 9, "type": "product"}]}\n')
    report = evaluate(moods, "language", tiny_model, file=sentiment, shots=1)
    assert set(report["per_class"]) <= {*sentiment.labels, UNKNOWN} and report["task_identity"] == sentiment.identity
    report = evaluate(named, "entities", tiny_model, file=products, shots=1)
    assert report["per_type"]["product"]["support"] == 1


@pytest.mark.parametrize("kind", ["language", "entities"])
def test_the_sample_of_the_prompts_page_fits_the_shipped_tasks(kind):
    gold = read_gold(ROOT / "pages" / "gold.jsonl", kind)
    assert len(gold) == 45
    if kind == "language":
        assert {language for _, language in gold} == set(load_task("language").labels)
    else:
        assert {entity.type for _, entities in gold for entity in entities} == set(load_task("entities").labels)


def test_tokens_are_the_bytes_of_the_prompt_as_the_model_reads_them(tiny_model, sentiment):
    prompt = prompt_template(sentiment, 2).format(text="naïve 😀 {x}\u00a0‹b›")
    tokens = tiny_model.cut(prompt, sentiment.query)
    assert b"".join(tokens).decode() == prompt
    assert len(tokens) > 10 and all(tokens)
    assert tiny_model.context_tokens == 2048


def test_the_task_file_in_the_readme_is_one():
    content = (ROOT / "README.md").read_text(encoding="utf-8").partition("```yaml\n")[2].partition("```")[0]
    task = read_task(content)
    assert task.name == "sentiment" and len(task.shots) == 3
