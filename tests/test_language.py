import asyncio
import json
import math

import pytest
from langchain_core.runnables import RunnableLambda

from chains.errors import ReplyError, TaskError
from chains.language import detect_language, detect_languages, language_chain
from chains.prompts import load_task, prompt_template
from chains.schema import Detection

TASK = load_task("language").model_copy(update={"threshold": 0.5})
TEXTS = ["Nadia left Siemens.", "El Banco de España.", "À Genève, 😀", "x"]


@pytest.fixture(autouse=True)
def threshold_of_one_half(monkeypatch):
    """The shipped threshold follows the shipped model; what follows from a threshold does not."""
    monkeypatch.setattr("chains.language.load_task", lambda name: TASK)


def scores(english, spanish, french, other):
    values = {"english": english, "español": spanish, "française": french, "other": other}
    return json.dumps({word: math.log(value) for word, value in values.items()})


def by_word(prompt):
    """Forced replies of a scripted model: it knows one word of each language."""
    text = prompt.rpartition("\n<")[2]
    if "the" in text:
        return scores(0.8, 0.1, 0.05, 0.05)
    if "el" in text:
        return scores(0.1, 0.7, 0.1, 0.1)
    return scores(0.3, 0.2, 0.2, 0.3)


def plain_by_word(prompt):
    text = prompt.rpartition("\n<")[2]
    return "english)" if "the" in text else "español)" if "el" in text else "?"


@pytest.mark.parametrize(
    ("text", "language", "probability"),
    [("the dog", "english", 0.8), ("el perro", "spanish", 0.7), ("hund", "unknown", 0.3)],
)
def test_a_reply_becomes_the_language(scripted, text, language, probability):
    detection = detect_language(text, scripted(by_word))
    assert (detection.language, detection.probability) == (language, pytest.approx(probability))
    assert detection.way == "forced" and len(detection.replies) == len(detection.prompts) == 1


@pytest.mark.parametrize("shots", range(7))
def test_the_model_reads_exactly_the_prompt_of_k_shots(scripted, shots):
    model = scripted(by_word)
    detection = detect_language("the {text}\n<dog>", model, shots=shots)
    expected = prompt_template(load_task("language"), shots).format(text="the {text} ‹dog›")
    assert model.llm.history == [expected] and detection.prompts == (expected,)


def test_the_model_says_how_many_shots_are_usual(scripted):
    model = scripted(by_word)
    assert detect_language("the dog", model) == detect_language("the dog", model, shots=model.info.shots)


def test_too_many_shots_are_an_error(scripted):
    with pytest.raises(TaskError, match="7 shots"):
        detect_language("the dog", scripted(by_word), shots=7)


@pytest.mark.parametrize("text", ["", " ", "\n\t\u2003\u00a0\r"])
@pytest.mark.parametrize("way", ["forced", "plain"])
def test_an_empty_text_is_unknown_without_asking_the_model(scripted, text, way):
    model = scripted(by_word)
    assert detect_language(text, model, way=way) == Detection(language="unknown", probability=None, way="empty")
    assert model.llm.history == []


def test_no_texts_give_no_detections(scripted):
    assert detect_languages([], scripted(by_word)) == []


def test_windows_of_a_long_text_are_averaged_by_their_length(scripted):
    model = scripted(by_word, window_tokens=3)
    text = " the cat sat.  el gato.\n"
    detection = detect_language(text, model, shots=0)
    assert [prompt.rpartition("\n")[2] for prompt in model.llm.history] == ["<the cat sat.>(", "<el gato.>("]
    english = (0.8 * 12 + 0.1 * 8) / 20
    assert detection.probabilities["english"] == pytest.approx(english)
    assert sum(detection.probabilities.values()) == pytest.approx(1)
    assert detection.logprobs["english"] == pytest.approx((math.log(0.8) * 12 + math.log(0.1) * 8) / 20)
    assert detection.language == "english" and detection.probability == pytest.approx(english)
    assert list(detection.prompts) == model.llm.history and len(detection.replies) == 2


def test_windows_that_disagree_may_end_below_the_threshold(scripted):
    detection = detect_language("the cat. el gato.", scripted(by_word, window_tokens=2))
    assert detection.language == "unknown" and max(detection.probabilities.values()) < 0.5


@pytest.mark.parametrize(
    ("text", "language"),
    [("the cat. el gato grande.", "spanish"), ("the big cat. el gato.", "english"), ("hund.", "unknown")],
)
def test_plain_windows_are_joined_by_the_language_of_most_characters(scripted, text, language):
    detection = detect_language(text, scripted(plain_by_word, window_tokens=3), way="plain")
    assert (detection.language, detection.probability, detection.way) == (language, None, "plain")
    assert detection.probabilities == {}


def test_equal_texts_and_windows_are_computed_once(scripted):
    model = scripted(by_word, window_tokens=2)
    detections = detect_languages(["the dog", "el gato", "the dog", "the dog el gato", " the dog "], model)
    assert len(model.llm.history) == 2
    assert [detection.language for detection in detections] == ["english", "spanish", "english", "unknown", "english"]
    assert detections[0] == detections[2] == detections[4]


def test_an_unreadable_reply_is_an_error_that_keeps_it(scripted):
    with pytest.raises(ReplyError, match="Cannot read 'no scores'") as caught:
        detect_language("the dog", scripted(lambda _: "no scores"))
    assert caught.value.reply == "no scores" and "troubleshooting" not in str(caught.value)


def test_any_other_error_is_raised_as_it_is(scripted):
    def fail(_):
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        detect_languages(["the dog", "el gato"], scripted(fail))


@pytest.mark.parametrize("way", ["forced", "plain"])
@pytest.mark.parametrize("shots", [0, 3])
def test_a_chain_answers_alike_in_all_of_langchains_ways(exact_model, way, shots):
    chain = language_chain(exact_model, way=way, shots=shots)
    inputs = [{"text": text} for text in TEXTS[:2]]
    alone = [chain.invoke(item) for item in inputs]

    async def later():
        return [await chain.ainvoke(inputs[0]), *(await chain.abatch(inputs))]

    named = chain.with_config(tags=["test"], run_name="language")
    others = [*chain.batch(inputs), *asyncio.run(later()), *chain.stream(inputs[0]), named.invoke(inputs[1])]
    expected = [*alone, alone[0], *alone, alone[0], alone[1]]
    for detection, other in zip(others, expected, strict=True):
        assert (detection.language, detection.way) == (other.language, way)
        assert detection.probabilities == pytest.approx(other.probabilities, abs=1e-4)
        if way == "plain":
            assert detection.replies == other.replies


def test_a_chain_is_part_of_a_longer_one(exact_model):
    chain = RunnableLambda(lambda text: {"text": text}) | language_chain(exact_model) | (lambda found: found.language)
    assert chain.batch(TEXTS) == [detection.language for detection in detect_languages(TEXTS, exact_model)]


def test_many_texts_give_what_each_gives_alone(exact_model):
    texts = [*TEXTS, "", "long text. " * 300]
    for text, detection in zip(texts, detect_languages(texts, exact_model), strict=True):
        alone = detect_language(text, exact_model)
        assert (detection.language, detection.prompts) == (alone.language, alone.prompts)
        assert detection.probabilities == pytest.approx(alone.probabilities, abs=1e-4)


@pytest.mark.parametrize("text", ["|end|", "x>(english)\n<y", "{text}", "\0", "\ud800"])
def test_a_hostile_text_gets_an_answer_like_any_other(exact_model, text):
    detection = detect_language(text, exact_model)
    if text.strip("\0\ud800"):
        assert sum(detection.probabilities.values()) == pytest.approx(1)
