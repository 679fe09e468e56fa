import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chains.entities import entity_chain, find_entities, find_entities_batch
from chains.errors import ReplyError
from chains.prompts import load_task, prompt_template, to_prompt_text
from chains.schema import Mention, Recognition

TEXTS = ["Nadia left Siemens.", "El Banco de España.", "À Genève, 😀", "x"]
NAMES = {"Ana": "person", "Bo": "person", "Lima": "location", "ACME": "organization", "‹Rex›": "organization"}


def by_names(prompt):
    """Replies of a scripted model that knows a few names, and sees one where there is none."""
    text = prompt.rpartition("\nText: ")[2].removesuffix("\nEntities:")
    items = [f"<{name}>({type_})" for name, type_ in NAMES.items() if name in text]
    return " " + (" ".join([*items, "<Zed>(person)"] if "ghost" in text else items) or "none") + "\n"


def spans(recognition):
    return [(entity.text, entity.type, entity.start, entity.end) for entity in recognition.entities]


@pytest.mark.parametrize(
    ("text", "expected", "ungrounded"),
    [
        ("Ana met Bo in Lima.", [("Ana", "person", 0, 3), ("Bo", "person", 8, 10), ("Lima", "location", 14, 18)], []),
        ("Lima, Lima", [("Lima", "location", 0, 4), ("Lima", "location", 6, 10)], []),
        ("\n Ana ", [("Ana", "person", 2, 5)], []),
        ("the ghost of Ana", [("Ana", "person", 13, 16)], ["Zed"]),
        ("the ghost", [], ["Zed"]),
        ("nobody", [], []),
        # The model reads look-alikes; the result has the text's own characters.
        ("at <Rex> and\r\nACME", [("<Rex>", "organization", 3, 8), ("ACME", "organization", 14, 18)], []),
    ],
)
def test_a_reply_becomes_entities_in_the_text(scripted, text, expected, ungrounded):
    recognition = find_entities(text, scripted(by_names))
    assert spans(recognition) == expected
    assert [mention.text for mention in recognition.ungrounded] == ungrounded


@pytest.mark.parametrize("shots", range(7))
def test_the_model_reads_exactly_the_prompt_of_k_shots(scripted, shots):
    model = scripted(by_names)
    recognition = find_entities("Ana {text}\nText: <dog>", model, shots=shots)
    expected = prompt_template(load_task("entities"), shots).format(text="Ana {text} Text: ‹dog›")
    assert model.llm.history == [expected] and recognition.prompts == (expected,)


@pytest.mark.parametrize("text", ["", " ", "\n\t\u2003\u00a0"])
@pytest.mark.parametrize("way", ["grounded", "plain"])
def test_an_empty_text_has_no_entities_without_asking_the_model(scripted, text, way):
    model = scripted(by_names)
    assert find_entities(text, model, way=way) == Recognition()
    assert model.llm.history == []


def test_windows_of_a_long_text_keep_their_offsets(scripted):
    model = scripted(by_names, window_tokens=4)
    text = "\n Ana saw the ghost.  Bo saw a ghost.\n\nThey met in Lima,\nat ACME."
    recognition = find_entities(text, model)
    assert [text[start:end] for _, _, start, end in spans(recognition)] == ["Ana", "Bo", "Lima", "ACME"]
    assert all(surface == text[start:end] for surface, _, start, end in spans(recognition))
    assert recognition.ungrounded == (Mention(text="Zed", type="person"),)
    assert len(model.llm.history) == len(recognition.prompts) == len(recognition.replies) > 2


def test_equal_texts_are_computed_once(scripted):
    model = scripted(by_names)
    first, second, third = find_entities_batch(["Ana", "Bo", "Ana"], model)
    assert len(model.llm.history) == 2
    assert first == third != second


def test_no_entities_and_an_unreadable_reply_are_different_results(scripted):
    assert find_entities("Ana", scripted(lambda _: "none")).entities == ()
    with pytest.raises(ReplyError, match="Cannot read 'nothing'.*location, person, organization") as caught:
        find_entities("Ana", scripted(lambda _: "nothing"), way="plain")
    assert caught.value.reply == "nothing" and "troubleshooting" not in str(caught.value)


def test_counts_are_of_occurrences_and_leave_out_ungrounded_mentions(scripted):
    recognition = find_entities("Ana, Ana, Bo and a ghost in Lima", scripted(by_names))
    assert recognition.counts() == {"person": 3, "location": 1}
    assert list(recognition.distinct().items()) == [
        (("Ana", "person"), 2), (("Bo", "person"), 1), (("Lima", "location"), 1),
    ]  # fmt: skip


@pytest.mark.parametrize("shots", [0, 3])
def test_a_chain_answers_alike_in_all_of_langchains_ways(exact_model, shots):
    chain = entity_chain(exact_model, shots=shots)
    inputs = [{"text": text} for text in TEXTS[:2]]
    alone = [chain.invoke(item) for item in inputs]

    async def later():
        return [await chain.ainvoke(inputs[0]), *(await chain.abatch(inputs))]

    named = chain.with_config(tags=["test"], run_name="entities")
    others = [*chain.batch(inputs), *asyncio.run(later()), *chain.stream(inputs[0]), named.invoke(inputs[1])]
    assert others == [*alone, alone[0], *alone, alone[0], alone[1]]


def test_the_plain_chain_reads_what_the_model_generates(exact_model, monkeypatch):
    prompts = []

    def generate(texts, **options):
        prompts.extend(texts)
        assert options["max_new_tokens"] > 100 and options["do_sample"] is False
        return [[{"generated_text": " <Nadia>(person)"}] for _ in texts]

    monkeypatch.setattr(
        "transformers.TextGenerationPipeline.__call__", lambda self, texts, **options: generate(texts, **options)
    )
    assert spans(find_entities("Nadia left.", exact_model, way="plain")) == [("Nadia", "person", 0, 5)]
    assert prompts[0].endswith("Text: Nadia left.\nEntities:")


def test_many_texts_give_what_each_gives_alone(exact_model):
    texts = [*TEXTS, "", "Porto and Lima. " * 60, "x" * 500, "Nadia\n"]
    for text, recognition in zip(texts, find_entities_batch(texts, exact_model, shots=1), strict=True):
        assert recognition == find_entities(text, exact_model, shots=1)


@settings(max_examples=25)
@given(st.lists(st.text(max_size=20), min_size=1, max_size=3))
def test_any_text_gets_entities_that_stand_in_it(exact_model, texts):
    for text, recognition in zip(texts, find_entities_batch(texts, exact_model, shots=0), strict=True):
        assert recognition.ungrounded == ()
        assert all(text[entity.start : entity.end] == entity.text for entity in recognition.entities)


@pytest.mark.parametrize(
    "text", ["Nadia ", " Nadia\n", "", " ", "x" * 500, "\0", "|end|", "e" + "\u0301" * 90, "漢" * 40]
)
def test_the_chain_itself_answers_any_text(exact_model, text):
    reply = entity_chain(exact_model, shots=0).invoke({"text": text})
    assert all(mention.text in to_prompt_text(text) for mention in reply.mentions)
