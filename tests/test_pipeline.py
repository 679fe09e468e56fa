import asyncio
import json
import math
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache

from chains import pipeline as pipeline_module
from chains.entities import entity_chain
from chains.errors import ModelError
from chains.language import language_chain
from chains.pipeline import plain_options
from chains.prompts import items_of, labels_of, load_task, prompt_template, to_prompt_text

LANGUAGE = load_task("language")
ENTITIES = load_task("entities")
TEXTS = [
    "Nadia Okafor left Siemens for Porto in 1998.",
    "Hola.",
    "À Genève, Élise Vautrin dirige la recherche chez Nestlé. " * 2,
    "😀",
    "El Banco de España envió a Julián Ferrer a Bogotá.",
    "naïve café (about) {text} 3 €",
]
HOSTILE = [
    "|end|",
    "|start|",
    "|padding|",
    "a›(english)",
    "{text}",
    "x>(english)\n<y",
    "Text: z\nEntities:",
    " ",
    "\n",
    "\0",
]


def prompts_of(task, texts, k=3):
    template = prompt_template(task, k)
    return [template.format(text=to_prompt_text(text)) for text in texts]


def replies_of(answers):
    return [answer[0]["generated_text"] for answer in answers]


def assert_same_scores(replies, expected):
    for reply, other in zip(replies, expected, strict=True):
        assert json.loads(reply) == pytest.approx(json.loads(other), abs=1e-4)


@pytest.fixture(scope="module")
def pipeline(exact_model):
    return exact_model.llm.pipeline


@pytest.fixture
def cache():
    set_llm_cache(InMemoryCache())
    yield
    set_llm_cache(None)


def test_label_scores_name_every_word_and_are_log_probabilities(pipeline):
    scores = [json.loads(reply) for reply in replies_of(pipeline(prompts_of(LANGUAGE, TEXTS), **labels_of(LANGUAGE)))]
    assert all(list(row) == ["english", "español", "française", "other"] for row in scores)
    assert [sum(map(math.exp, row.values())) for row in scores] == pytest.approx([1] * len(TEXTS), abs=1e-4)


@pytest.mark.parametrize(("rows", "tokens"), [(1, 512), (2, 512), (64, 1), (3, 40), (64, 100)])
def test_results_come_in_input_order_whatever_the_batching(pipeline, monkeypatch, rows, tokens):
    order = random.Random(rows + tokens).sample(range(len(TEXTS)), len(TEXTS))
    texts = [TEXTS[place] for place in order]
    scores = [replies_of(pipeline([prompt], **labels_of(LANGUAGE)))[0] for prompt in prompts_of(LANGUAGE, texts)]
    items = [replies_of(pipeline([prompt], **items_of(ENTITIES)))[0] for prompt in prompts_of(ENTITIES, texts)]
    assert len(set(items)) > 1 and len(set(scores)) > 1
    monkeypatch.setattr(pipeline_module, "MAX_ROWS", rows)
    monkeypatch.setattr(pipeline.decoder, "pass_tokens", tokens)
    monkeypatch.setattr(pipeline, "row_bytes", tokens * 2 * pipeline.decoder.token_bytes)
    assert_same_scores(replies_of(pipeline(prompts_of(LANGUAGE, texts), **labels_of(LANGUAGE))), scores)
    assert replies_of(pipeline(prompts_of(ENTITIES, texts), **items_of(ENTITIES))) == items


def test_no_pass_holds_more_tokens_and_no_batch_more_rows_than_allowed(pipeline, monkeypatch):
    scored, written = [], []
    score, write = pipeline.decoder.score_labels, pipeline.decoder.write_replies
    monkeypatch.setattr(
        pipeline.decoder,
        "score_labels",
        lambda prefix, rows, labels: scored.append([len(row) for row in rows]) or score(prefix, rows, labels),
    )

    def spy(prefix, rows, *rest, together):
        written.append(([len(row) for row in rows], together))
        return write(prefix, rows, *rest, together=together)

    monkeypatch.setattr(pipeline.decoder, "write_replies", spy)
    monkeypatch.setattr(pipeline.decoder, "pass_tokens", 60)
    pipeline(prompts_of(LANGUAGE, TEXTS * 2), **labels_of(LANGUAGE))
    assert all(len(lengths) == 1 or sum(lengths) <= 60 for lengths in scored)
    flat = [length for lengths in scored for length in lengths]
    assert len(flat) == len(TEXTS) * 2 and flat == sorted(flat, reverse=True), "longest first"
    assert min(len(lengths) for lengths in scored) < max(len(lengths) for lengths in scored), "by tokens, not by rows"

    monkeypatch.setattr(pipeline_module, "MAX_ROWS", 3)
    for room, expected in ((3.2, 3), (2.1, 2), (1.1, 1), (0.1, 1), (50, 3)):
        longest = max(len(pipeline.tokenizer(ENTITIES.query.replace("{text}", text))["input_ids"]) for text in TEXTS)
        size = room * 2 * longest * pipeline.decoder.token_bytes
        monkeypatch.setattr(pipeline, "row_bytes", int(size))
        pipeline(prompts_of(ENTITIES, TEXTS), **items_of(ENTITIES))
        assert written[-1] == (sorted(written[-1][0], reverse=True), expected)


def test_prompts_with_different_shots_may_stand_in_one_call(pipeline):
    prompts = [prompt for k in (0, 1, 3) for prompt in prompts_of(LANGUAGE, TEXTS[:3], k)]
    random.Random(1).shuffle(prompts)
    alone = [replies_of(pipeline([prompt], **labels_of(LANGUAGE)))[0] for prompt in prompts]
    assert_same_scores(replies_of(pipeline(prompts, **labels_of(LANGUAGE))), alone)
    shots = [entry for k in (0, 2) for entry in prompts_of(ENTITIES, TEXTS[:3], k)]
    assert replies_of(pipeline(shots, **items_of(ENTITIES))) == [
        replies_of(pipeline([prompt], **items_of(ENTITIES)))[0] for prompt in shots
    ]


def test_a_bare_prompt_gets_a_bare_answer(pipeline):
    prompt = prompts_of(LANGUAGE, ["Hola."])[0]
    assert_same_scores(
        [pipeline(prompt, **labels_of(LANGUAGE))[0]["generated_text"]],
        replies_of(pipeline([prompt], **labels_of(LANGUAGE))),
    )


@pytest.mark.parametrize("prompt", ["", "Hola", "<Hola>(", "x <Hola>(", "a\n<Hola>", "a\nText: Hola\nEntities: "])
@pytest.mark.parametrize("task", [LANGUAGE, ENTITIES], ids=["labels", "items"])
def test_a_prompt_without_its_query_is_an_error_that_shows_the_query(pipeline, task, prompt):
    if task is LANGUAGE and prompt == "<Hola>(":
        return  # no instruction, but a query: the whole prompt is one
    options = labels_of(task) if task is LANGUAGE else items_of(task)
    with pytest.raises(ModelError) as caught:
        pipeline([prompt], **options)
    assert repr(task.query) in str(caught.value)


@settings(max_examples=60)
@given(
    text=st.one_of(st.sampled_from(HOSTILE), st.text()),
    k=st.sampled_from([0, 3]),
    task=st.sampled_from([LANGUAGE, ENTITIES]),
)
def test_any_text_stays_in_its_own_row_behind_the_same_prefix(pipeline, text, k, task):
    prefix = prompt_template(task, k).format(text="\0").partition(task.query.split("{text}")[0] + "\0")[0]
    ((ids, (row,)),) = pipeline._groups(prompts_of(task, [text], k), task.query)
    assert (row.text, row.place) == (to_prompt_text(text), 0)
    assert pipeline.tokenizer.decode(ids) == prefix
    assert pipeline.tokenizer.decode(row.ids) == task.query.replace("{text}", to_prompt_text(text))
    assert not set(row.ids) & set(pipeline.tokenizer.all_special_ids), "a text may not hold a special token"


def test_plain_generation_is_that_of_the_shipped_langchain_class(tiny_model):
    options = plain_options(6, tiny_model.llm.pipeline.tokenizer)
    for prompt in [*prompts_of(LANGUAGE, TEXTS[:3]), "Once upon a time"]:
        ours = tiny_model.llm.bind(pipeline_kwargs=options).invoke(prompt)
        assert ours == tiny_model.plain_llm.bind(pipeline_kwargs=options).invoke(prompt)
        assert not ours.startswith(prompt[:5])


def test_two_threads_at_once_get_their_own_answers(pipeline):
    def label(number):
        return replies_of(pipeline(prompts_of(LANGUAGE, [TEXTS[number % 6]], number % 4), **labels_of(LANGUAGE)))[0]

    def write(number):
        return replies_of(pipeline(prompts_of(ENTITIES, [TEXTS[number % 6]], number % 4), **items_of(ENTITIES)))[0]

    labels, items = [label(number) for number in range(12)], [write(number) for number in range(12)]
    with ThreadPoolExecutor(2) as pool:
        scored, written = pool.map(label, range(12)), pool.map(write, range(12))
        assert_same_scores(list(scored), labels)
        assert list(written) == items


def test_only_one_caller_at_a_time_runs_the_model(pipeline, monkeypatch):
    inside, most = 0, 0
    score = pipeline.decoder.score_labels

    def watch(*arguments):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.02)
        inside -= 1
        return score(*arguments)

    monkeypatch.setattr(pipeline.decoder, "score_labels", watch)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda text: pipeline(prompts_of(LANGUAGE, [text]), **labels_of(LANGUAGE)), TEXTS))
    assert most == 1


def test_a_cache_keeps_labels_plain_replies_and_shots_apart(tiny_model, cache):
    ways = [("forced", 0), ("plain", 0), ("forced", 3), ("plain", 3)]
    for _ in range(2):
        for way, shots in ways:
            detection = language_chain(tiny_model, way=way, shots=shots).invoke({"text": "Hola."})
            assert detection.way == way
            assert (detection.replies[0][:1] == "{") == (way == "forced")


def test_a_cache_keeps_grounded_and_plain_items_apart(tiny_model, cache):
    def replies():
        ways = [language_chain(tiny_model, way="plain"), language_chain(tiny_model)]
        return [chain.invoke({"text": "Hola."}).replies for chain in ways]

    async def replies_later():
        ways = [language_chain(tiny_model, way="plain"), language_chain(tiny_model)]
        return [(await chain.ainvoke({"text": "Hola."})).replies for chain in ways]

    assert replies() == replies() == asyncio.run(replies_later())
    prompt = prompts_of(ENTITIES, ["Nadia left Porto."])[0]
    grounded = tiny_model.llm.bind(pipeline_kwargs=items_of(ENTITIES))
    plain = tiny_model.llm.bind(pipeline_kwargs=plain_options(4, tiny_model.llm.pipeline.tokenizer))
    first = [grounded.invoke(prompt), plain.invoke(prompt)]
    assert first[0] != first[1]
    assert [grounded.invoke(prompt), plain.invoke(prompt)] == first


def test_a_cache_spares_the_second_run(tiny_model, cache, monkeypatch):
    chain = entity_chain(tiny_model)
    first = chain.invoke({"text": "Nadia left Porto."})
    monkeypatch.setattr(tiny_model.llm.pipeline.decoder, "write_replies", lambda *_: pytest.fail("it ran again"))
    assert chain.invoke({"text": "Nadia left Porto."}) == first


def test_the_cache_key_names_the_revision_of_the_weights(tiny_model):
    assert tiny_model.llm._identifying_params["revision"] == tiny_model.llm.revision
    assert len(tiny_model.llm.revision) == 64
