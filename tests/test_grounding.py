import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers.convert_slow_tokenizer import bytes_to_unicode

from chains.grounding import MAX_NAME_TOKENS, Markup, reply_graph, word_starts
from chains.parsers import MentionParser
from chains.prompts import load_task, to_prompt_text
from chains.schema import Mention
from chains.spans import align

TASK = load_task("entities")
FAMILY = "👩\u200d👩\u200d👧"
PIECES = [
    "Nadia", "Okafor", "Porto", "Siemens", "l’Iran", "Élise", "Zürich", "naïve", "café", "cafe\u0301",
    "1998", "A17", "x" * 90, "😀", "👍🏽", FAMILY, "🇫🇷", "❤\ufe0f", "東京都に", "漢" * 14, "مصر", "हिन्दी",
    "\u0301", "(", ")", "(person)", "<Rex>(dog)", "none", "\n", "\u00a0", "-", "'", ".", "<|end|>", "|end|",
    "\ufffd", "ﬁ", "ß",
]  # fmt: skip
texts = st.lists(
    st.one_of(st.sampled_from(PIECES), st.sampled_from([" "]), st.text(max_size=4)), min_size=1, max_size=9
).map(lambda pieces: to_prompt_text("".join(pieces)))
BYTES = {char: byte for byte, char in bytes_to_unicode().items()}


@pytest.fixture(scope="module")
def markup(tiny_model):
    return Markup(
        tiny_model.llm.pipeline.tokenizer,
        separator=TASK.reply_separator,
        empty=TASK.empty,
        words=list(TASK.labels.values()),
        end=TASK.reply_end,
    )


def walk(text, markup, seed, patience=60):
    """The tokens of one random reply; after ``patience`` tokens it closes names and ends as soon as it may."""
    rng = random.Random(seed)
    node = reply_graph(text, markup)
    tokens = []
    ends = {end[0] for end in markup.ends}
    while not node.is_end:
        assert node.next, f"a dead end after {tokens}"
        leaving = [token for token in node.next if token in ends or token == markup.close[0]]
        late = len(tokens) > patience and leaving
        token = rng.choice(leaving) if late else rng.choice(list(node.next))
        tokens.append(token)
        node = node.next[token]
    return tokens


@given(text=texts, seed=st.integers(0, 10**6))
def test_every_reply_of_the_graph_reads_back_with_all_names_in_the_text(markup, text, seed):
    tokens = walk(text, markup, seed)
    reply = markup.tokenizer.decode(tokens, skip_special_tokens=True)
    mentions = MentionParser(task=TASK).parse(reply).mentions
    assert len(mentions) == reply.count(">(")
    starts, ends = word_starts(text)
    for mention in mentions:
        places = [place for place in range(len(text)) if text.startswith(mention.text, place)]
        assert any(place in starts and place + len(mention.text) in ends for place in places), "it cuts a word"
        assert len(markup.cut("<" + mention.text)) <= MAX_NAME_TOKENS + 8
    assert align(text, mentions)[1] == (), "it is not in the text"


@given(text=texts, seed=st.integers(0, 10**6))
def test_no_name_takes_more_than_the_most_tokens(markup, text, seed):
    inside, longest = 0, 0
    node = reply_graph(text, markup)
    rng = random.Random(seed)
    for _ in range(200):
        if node.is_end:
            break
        token = rng.choice(list(node.next))
        node = node.next[token]
        inside = inside + 1 if type(node).__name__ == "NameNode" else 0
        longest = max(longest, inside)
    # The first NameNode stands right after the opening bracket.
    assert longest <= MAX_NAME_TOKENS + 1


def can_spell(text, name, markup):
    """Whether some path of the graph writes exactly ``<name>(`` as its first item."""
    goal = name.encode()
    node = reply_graph(text, markup)
    for token in markup.open_first:
        node = node.next.get(token)
        if node is None:
            return False

    def spell(node, rest):
        if not rest and markup.close[0] in node.next and type(node.next[markup.close[0]]).__name__ == "Node":
            return True
        for token, following in node.next.items():
            piece = bytes(BYTES[char] for char in markup.tokenizer.convert_ids_to_tokens(token) if char in BYTES)
            if (
                piece
                and type(following).__name__ == "NameNode"
                and rest.startswith(piece)
                and spell(following, rest[len(piece) :])
            ):
                return True
        return False

    return spell(node, goal)


words = st.one_of(
    st.sampled_from([piece for piece in PIECES if not any("\u3040" <= char <= "\u9fff" for char in piece)]),
    st.text(st.characters(categories=["Lu", "Ll", "Nd", "Mn", "So", "Po"]), min_size=1, max_size=5),
)


@given(pieces=st.lists(words, min_size=1, max_size=6), data=st.data())
def test_every_name_of_whole_words_can_be_spelled(markup, pieces, data):
    text = to_prompt_text(" ".join(pieces))
    starts, ends = word_starts(text)
    pairs = [(a, b) for a in starts for b in ends if a < b and len(text[a:b].encode()) <= MAX_NAME_TOKENS]
    assume(pairs)
    a, b = data.draw(st.sampled_from(pairs))
    assert can_spell(text, text[a:b], markup)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Nadia Okafor left Siemens.", "Nadia Okafor"),
        ("À Genève, Élise Vautrin", "Élise Vautrin"),
        ("l’Iran aussi", "Iran"),
        ("Zürich 😀 x", "😀"),
        (f"so {FAMILY}!", FAMILY),
        ("in 東京都", "東京都"),
        ("زار أحمد مصر", "أحمد"),
        ("cafe\u0301 x", "cafe\u0301"),
        ("(Porto)", "Porto"),
        ("“Porto”:", "Porto"),
        ("Porto/Lima", "Lima"),
        ("漢" * 20, "漢" * 13),
    ],
)
def test_these_names_can_be_spelled(markup, text, name):
    assert can_spell(text, name, markup)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Iranian", "Iran"),
        ("A17", "A"),
        ("cafe\u0301", "cafe"),
        (FAMILY, "👩"),
        ("👍🏽", "👍"),
        ("Porto", "Lima"),
        ("Nadia Okafor", "Okafor Nadia"),
        ("Porto ", "Porto "),
        (" ", " "),
        ("漢" * 20, "漢" * 14),  # 42 byte tokens
    ],
)
def test_these_names_cannot_be_spelled(markup, text, name):
    assert not can_spell(text, name, markup)


@pytest.mark.parametrize("text", ["", " ", "x" * 500, "👩" + "\u200d👩" * 80])
def test_a_text_without_a_name_to_write_leaves_only_the_empty_word(markup, text):
    node = reply_graph(text, markup)
    for token in markup.empty:
        assert list(node.next) == [token]
        node = node.next[token]
    assert set(node.next) == {end[0] for end in markup.ends}


def guessed(text, markup):
    """The reply that the graph's own guesses write, ``location`` wherever a type is to be chosen."""
    node, tokens = reply_graph(text, markup), []
    while not node.is_end:
        guess = next(iter(node.next)) if node.likely is None else node.likely
        tokens.append(guess)
        node = node.next[guess]
    return markup.tokenizer.decode(tokens, skip_special_tokens=True).strip()


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("She met Nadia Okafor in Porto.", "<Nadia Okafor>(location) <Porto>(location)"),
        ("El Banco de España envió a Julián Ferrer.", "<El Banco de España>(location) <Julián Ferrer>(location)"),
        ("Today it rains.", "none"),
        ("Yesterday in Genève, Genève itself.", "<Genève>(location) <Genève>(location)"),
        ("nothing here", "none"),
        ("…", "none"),
        ("in Saint-Denis, l’Iran", "<Saint-Denis>(location) <Iran>(location)"),
    ],
)
def test_guesses_copy_runs_of_capitalised_words_in_order(markup, text, reply):
    assert guessed(text, markup) == reply


@given(text=texts)
def test_a_guess_is_always_allowed(markup, text):
    nodes, seen = [reply_graph(text, markup)], 0
    while nodes and seen < 60:
        node = nodes.pop()
        seen += 1
        assert node.likely is None or node.likely in node.next
        nodes += node.next.values()


@pytest.mark.parametrize(
    ("text", "starts", "ends"),
    [
        ("", [], set()),
        ("  ", [], set()),
        ("Ana", [0], {3}),
        (" Ana Bo ", [1, 5], {4, 7}),
        ("l'Iran.", [0, 1, 2, 6], {1, 2, 6, 7}),
        ("A17", [0], {3}),
        ("e\u0301x y", [0, 4], {3, 5}),
        ("東京", [0, 1], {1, 2}),
        ("👍🏽x", [0, 2], {2, 3}),
        (FAMILY, [0], {5}),
    ],
)
def test_names_begin_and_end_at_the_edges_of_words(text, starts, ends):
    assert word_starts(text) == (starts, ends)


def test_a_name_shared_by_two_occurrences_is_one_path(markup):
    node = reply_graph("Porto, Porto Alegre", markup)
    for token in [*markup.open_first, *markup.cut("<Porto")[1:]]:
        node = node.next[token]
    assert markup.close[0] in node.next and len(node.next) > 1


def test_align_finds_what_the_graph_may_write():
    entities, ungrounded = align("Porto, Porto Alegre", [Mention(text="Porto", type="location")])
    assert [entity.start for entity in entities] == [0, 7] and ungrounded == ()
