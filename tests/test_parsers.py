import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.exceptions import OutputParserException

from chains.parsers import LabelParser, MentionParser, ScoreParser
from chains.prompts import load_task, to_prompt_text, write_reply

# The shipped threshold follows the shipped model; what follows from a threshold does not.
LANGUAGE = load_task("language").model_copy(update={"threshold": 0.5})
ENTITIES = load_task("entities")
words = [*LANGUAGE.labels.values(), LANGUAGE.out_of_scope]


def scores(english, spanish, french, other):
    return json.dumps(dict(zip(words, map(math.log, (english, spanish, french, other)), strict=True)))


@pytest.mark.parametrize(
    ("probabilities", "language", "probability"),
    [
        ((0.7, 0.1, 0.1, 0.1), "english", 0.7),
        ((0.1, 0.7, 0.1, 0.1), "spanish", 0.7),
        ((0.1, 0.1, 0.7, 0.1), "french", 0.7),
        ((0.1, 0.1, 0.1, 0.7), "unknown", 0.7),
        ((0.5, 0.25, 0.15, 0.1), "english", 0.5),  # exactly at the threshold
        ((0.49, 0.26, 0.15, 0.1), "unknown", 0.1),
        ((0.5, 1e-9, 1e-9, 0.5), "unknown", 0.5),  # a label must beat unknown
        ((0.4, 0.3, 0.2, 0.1), "unknown", 0.1),
    ],
)
def test_the_likeliest_label_wins_at_the_threshold_or_above(probabilities, language, probability):
    detection = ScoreParser(task=LANGUAGE).parse(scores(*probabilities))
    assert detection.language == language
    assert detection.probability == pytest.approx(probability, abs=1e-6)
    assert list(detection.probabilities) == ["english", "spanish", "french", "unknown"]
    assert list(detection.probabilities.values()) == pytest.approx(probabilities, abs=1e-6)
    assert detection.way == "forced" and detection.threshold == 0.5


def test_logprobs_are_kept_as_they_came_under_the_names_of_results():
    detection = ScoreParser(task=LANGUAGE).parse('{"english": -1.5, "español": -2.0, "française": -3.0, "other": -4.0}')
    assert detection.logprobs == {"english": -1.5, "spanish": -2.0, "french": -3.0, "unknown": -4.0}


@given(st.lists(st.floats(-1e4, 0), min_size=4, max_size=4))
def test_probabilities_sum_to_one_whatever_the_scores(values):
    detection = ScoreParser(task=LANGUAGE).parse(json.dumps(dict(zip(words, values, strict=True))))
    assert sum(detection.probabilities.values()) == pytest.approx(1)
    assert detection.probability == detection.probabilities[detection.language]


@pytest.mark.parametrize(
    "reply",
    [
        *("", "english", "[]", "null", "{}", '{"english": "high"}', '{"english": null}', '{"english', "[" * 100_000),
        *('{"english": NaN}', '{"english": Infinity}', '{"english": -Infinity}', '{"english": 0.0, "other": NaN}'),
    ],
    ids=lambda reply: reply[:40],
)
def test_a_reply_that_is_no_scores_is_an_error_that_keeps_it(reply):
    with pytest.raises(OutputParserException) as caught:
        ScoreParser(task=LANGUAGE).parse(reply)
    assert caught.value.llm_output == reply
    assert repr(reply[:200]) in str(caught.value.args[0])


@pytest.mark.parametrize(
    ("reply", "language"),
    [
        ("english)", "english"),
        (" español)\n<Hello>(english)", "spanish"),
        ("French: FRANÇAISE", "french"),
        ("anglais ou française?", "french"),
        ("the englishman", "unknown"),
        ("nonenglish español", "spanish"),
        ("other)", "unknown"),
        ("", "unknown"),
        ("deutsch", "unknown"),
    ],
)
def test_a_generated_reply_means_its_first_whole_label_word(reply, language):
    detection = LabelParser(task=LANGUAGE).parse(reply)
    assert (detection.language, detection.probability, detection.way) == (language, None, "plain")
    assert detection.probabilities == {} and detection.replies == (reply,)


@pytest.mark.parametrize(
    ("reply", "mentions"),
    [
        ("none", []),
        ("  none\n", []),
        (" <Marie Curie>(person) <Paris>(location)\n", [("Marie Curie", "person"), ("Paris", "location")]),
        ("<A>(person)<A>(person) <A>(location)", [("A", "person"), ("A", "person"), ("A", "location")]),
        ("<A>(person)\nText: x\nEntities: <B>(person)", [("A", "person")]),
        ("none\nText: x\nEntities: <B>(person)", []),
        ("<A>(person) <B>(per", [("A", "person")]),
        ("<A>(person) <B", [("A", "person")]),
        ("< A >( person )", [("A", "person")]),
        ("<f(x) {y}>(organization)", [("f(x) {y}", "organization")]),
        ("<none>(person)", [("none", "person")]),
    ],
)
def test_an_entity_reply_is_read_as_its_mentions_in_order(reply, mentions):
    parsed = MentionParser(task=ENTITIES).parse(reply)
    assert [(mention.text, mention.type) for mention in parsed.mentions] == mentions
    assert parsed.raw == reply


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "\n\n",
        "nothing",
        "None",
        "Marie Curie (person)",
        "<Rex>(dog)",
        "<A>(person) <Rex>(dog)",
        "<>(person)",
        "< >(person)",
        "<A>()",
    ],
)
def test_an_entity_reply_that_cannot_be_read_is_an_error_and_not_an_empty_list(reply):
    with pytest.raises(OutputParserException) as caught:
        MentionParser(task=ENTITIES).parse(reply)
    assert caught.value.llm_output == reply
    assert "location, person, organization" in str(caught.value.args[0])


surfaces = st.text(min_size=1, max_size=12).map(to_prompt_text).filter(lambda text: text == text.strip() and text)


@given(st.lists(st.tuples(surfaces, st.sampled_from(list(ENTITIES.labels.values()))), max_size=6))
def test_a_written_reply_reads_back(mentions):
    parsed = MentionParser(task=ENTITIES).parse(" " + write_reply(mentions, str(ENTITIES.empty)) + "\n")
    assert [(mention.text, ENTITIES.labels[mention.type]) for mention in parsed.mentions] == mentions


@given(st.text(st.sampled_from("<>()abperson location\n")))
def test_any_reply_gives_mentions_or_the_parser_error(reply):
    try:
        parsed = MentionParser(task=ENTITIES).parse(reply)
    except OutputParserException:
        return
    assert all(mention.type in ENTITIES.labels and mention.text.strip() for mention in parsed.mentions)
