import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chains.schema import Entity, Mention
from chains.spans import align, list_mentions, list_words

FAMILY = "👩\u200d👩\u200d👧"
PIECES = [
    "Paris", "New", "York", "New York", "a", "b", " ", " ", ".", "l'", "é", "e\u0301", "e",
    "\u0301", "\u0958", "\u1eb9", "e\u0323\u0306", "\u1112\u1161\u11ab", "\ud55c", "東京", "都", "👩",
    "\u200d", "👧", "👍", "🏽", "\ufe0f", "❤", "ß", "İ", "مصر", "\u200f", "_", "7", "\u0915", "\u093c", "x\u0327\u0301",
]  # fmt: skip
texts = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
surfaces = st.lists(st.sampled_from(PIECES), min_size=1, max_size=3).map("".join)


def mentions(*pairs):
    return [Mention(text=text, type=type_) for text, type_ in pairs]


def found(text, *pairs):
    entities, ungrounded = align(text, mentions(*pairs))
    return [(e.start, e.end, e.type) for e in entities], [(m.text, m.type) for m in ungrounded]


@pytest.mark.parametrize(
    ("text", "pairs", "expected"),
    [
        # Rule 1: verbatim, else in normal form C; offsets refer to the source.
        ("Ana is in Lima.", [("Lima", "L"), ("Ana", "P")], [(0, 3, "P"), (10, 14, "L")]),
        ("lima Lima", [("Lima", "L")], [(5, 9, "L")]),
        ("Bogota\u0301!", [("Bogotá", "L")], [(0, 7, "L")]),
        ("Bogotá!", [("Bogota\u0301", "L")], [(0, 6, "L")]),
        ("Bogota\u0301, Bogotá", [("Bogotá", "L")], [(9, 15, "L")]),
        ("한국, \u1112\u1161\u11ab", [("\u1112\u1161\u11ab\uad6d", "L")], [(0, 2, "L")]),
        ("\u1112\u1161\u11ab\u1100\u116e\u11a8 x", [("한국", "L")], [(0, 6, "L")]),
        ("\u0958 x", [("\u0915\u093c", "P")], [(0, 1, "P")]),
        # Rule 2: whole words, combined characters and emoji sequences.
        ("Iran and Iranian", [("Iran", "L")], [(0, 4, "L")]),
        ("Iranian and Iran", [("Iran", "L")], [(12, 16, "L")]),
        ("Iranian", [("Iran", "L")], [(0, 4, "L")]),
        ("A1 A", [("A", "P")], [(3, 4, "P")]),
        ("l'Iran, l’Iran", [("Iran", "L")], [(2, 6, "L"), (10, 14, "L")]),
        ("cafe\u0301 cafe", [("cafe", "O")], [(6, 10, "O")]),
        (f"{FAMILY} 👩", [("👩", "P")], [(6, 7, "P")]),
        (f"{FAMILY} 👧", [("👧", "P")], [(6, 7, "P")]),
        ("👍🏽 👍", [("👍", "O")], [(3, 4, "O")]),
        ("❤\ufe0f ❤", [("❤", "O")], [(3, 4, "O")]),
        (f"x {FAMILY}!", [(FAMILY, "P")], [(2, 7, "P")]),
        ("😀Ana😀", [("Ana", "P")], [(1, 4, "P")]),
        # Scripts without spaces, and from right to left.
        ("東京都に東京", [("東京", "L")], [(0, 2, "L")]),
        ("東京に 東京。", [("東京", "L")], [(4, 6, "L")]),
        ("زار أحمد مصر", [("مصر", "L"), ("أحمد", "P")], [(4, 8, "P"), (9, 12, "L")]),
        ("\u200fמשה\u200f גר", [("משה", "P")], [(1, 4, "P")]),
        # Rule 3: longest first, no overlap; of equally long ones the earlier mention wins.
        ("New York Times", [("New York", "L"), ("New York Times", "O")], [(0, 14, "O")]),
        ("York, New York", [("York", "P"), ("New York", "L")], [(0, 4, "P"), (6, 14, "L")]),
        ("ab cd ef", [("ab cd", "P"), ("cd ef", "L")], [(0, 5, "P")]),
        ("ab cd ef", [("cd ef", "L"), ("ab cd", "P")], [(3, 8, "L")]),
        ("A B A B A", [("A B A", "P")], [(0, 5, "P")]),
        # Rule 4: every occurrence; several types are taken in order, the last one holds for the rest.
        ("Ana, Ana and Ana", [("Ana", "P")], [(0, 3, "P"), (5, 8, "P"), (13, 16, "P")]),
        ("Ana, Ana and Ana", [("Ana", "P"), ("Ana", "L")], [(0, 3, "P"), (5, 8, "L"), (13, 16, "L")]),
        ("Ana", [("Ana", "P"), ("Ana", "L")], [(0, 3, "P")]),
        ("Ana Bo, Ana", [("Ana", "P"), ("Ana", "L"), ("Ana Bo", "O")], [(0, 6, "O"), (8, 11, "P")]),
        ("", [], []),
    ],
)
def test_mentions_are_placed_by_the_rules(text, pairs, expected):
    assert found(text, *pairs) == (expected, [])


@pytest.mark.parametrize(
    ("text", "pairs", "ungrounded"),
    [
        ("Ana", [("Rex", "P")], [("Rex", "P")]),
        ("", [("Rex", "P")], [("Rex", "P")]),
        ("Ana", [("Rex", "P"), ("Bo", "L"), ("Rex", "P"), ("Rex", "O")], [("Rex", "P"), ("Rex", "O"), ("Bo", "L")]),
        ("Ana", [("ana", "P"), (" ", "P"), ("", "P")], [("ana", "P"), (" ", "P"), ("", "P")]),
        # Half of a combined character is not in the text.
        ("\u0958 x", [("\u0915", "P")], [("\u0915", "P")]),
        ("e\u0323\u0306 x", [("\u1eb9", "P")], [("\u1eb9", "P")]),
    ],
)
def test_a_mention_that_is_not_in_the_text_is_ungrounded_once_per_type(text, pairs, ungrounded):
    assert found(text, *pairs) == ([], ungrounded)


def test_ungrounded_mentions_are_kept_apart_from_entities():
    assert found("Ana left.", ("Rex", "P"), ("Ana", "P")) == ([(0, 3, "P")], [("Rex", "P")])


@given(text=texts, pairs=st.lists(st.tuples(surfaces, st.sampled_from("PLO")), max_size=6))
def test_every_entity_is_its_place_in_the_text_and_none_overlap(text, pairs):
    entities, ungrounded = align(text, mentions(*pairs))
    wanted = {unicodedata.normalize("NFC", surface) for surface, _ in pairs}
    end = 0
    for entity in entities:
        assert end <= entity.start < entity.end <= len(text)
        assert text[entity.start : entity.end] == entity.text
        assert unicodedata.normalize("NFC", entity.text) in wanted
        end = entity.end
    missing = {mention.text for mention in ungrounded}
    assert not any(surface in text for surface in missing if surface.strip())
    assert missing <= {surface for surface, _ in pairs}


@given(text=texts, pairs=st.lists(st.tuples(surfaces, st.sampled_from("PLO")), max_size=6))
def test_no_mention_is_lost_without_trace(text, pairs):
    entities, ungrounded = align(text, mentions(*pairs))
    covered = {place for entity in entities for place in range(entity.start, entity.end)}
    for surface, _ in pairs:
        place = text.find(surface)
        assert any(mention.text == surface for mention in ungrounded) == (place < 0 and not _in_nfc(text, surface)) or (
            not surface.strip()
        )
        if place >= 0 and text.count(surface) == 1 and surface.strip():
            # Its one occurrence is an entity, or part of one.
            assert covered & set(range(place, place + len(surface)))


def _in_nfc(text, surface):
    """Whether some stretch of the text equals the surface in normal form C."""
    target = unicodedata.normalize("NFC", surface)
    ends = range(len(text) + 1)
    stretches = ((a, b) for a in ends for b in ends if a < b)
    return any(
        unicodedata.normalize("NFC", text[a:b]) == target and not _cuts_character(text, a, b) for a, b in stretches
    )


def _cuts_character(text, a, b):
    parts = (text[:a], text[a:b], text[b:])
    return "".join(unicodedata.normalize("NFC", part) for part in parts) != unicodedata.normalize("NFC", text) or (
        any(0 < place < len(text) and unicodedata.combining(text[place]) for place in (a, b))
    )


# The same few characters, each written in several ways.
variants = st.lists(
    st.sampled_from(["é", "e\u0301", "e", "\u0301", "\u0958", "\u0915", "\u093c", "\u1eb9", "e\u0323\u0306", "\u0306"]),
    min_size=1,
    max_size=5,
).map("".join)


@settings(max_examples=400)
@given(text=variants, surface=variants)
def test_characters_written_in_several_ways_are_found_whole_or_not_at_all(text, surface):
    entities, ungrounded = align(text, mentions((surface, "P")))
    for entity in entities:
        assert entity.start < entity.end and text[entity.start : entity.end] == entity.text
        assert unicodedata.normalize("NFC", entity.text) == unicodedata.normalize("NFC", surface)
    assert bool(entities) == (not ungrounded) == (surface in text or _in_nfc(text, surface))


NAMES = ["Ana", "Ana Vidal", "Ana Vidal Foundation", "Bo", "l'Iran", "Genève", "Zürich 😀", "O'Neil", "ACME-7"]


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from("PLO")), max_size=8))
def test_listed_mentions_are_aligned_to_the_same_entities(named):
    text, entities = "", []
    for name, type_ in named:
        text += ", "
        entities.append(Entity(text=name, type=type_, start=len(text), end=len(text) + len(name)))
        text += name
    listed = list_mentions(entities)
    assert align(text, listed) == (tuple(entities), ())
    assert len(listed) <= len(entities)


def test_a_surface_of_one_type_is_listed_once_in_order_of_appearance():
    entities, _ = align("Bo met Ana. Ana met Bo.", mentions(("Ana", "P"), ("Bo", "P")))
    assert list_mentions(entities) == mentions(("Bo", "P"), ("Ana", "P"))


def test_a_surface_of_two_types_is_listed_at_every_occurrence():
    entities, _ = align("Bo, Ana, Ana, Ana", mentions(("Ana", "P"), ("Ana", "L"), ("Bo", "P")))
    assert list_mentions(entities) == mentions(("Bo", "P"), ("Ana", "P"), ("Ana", "L"), ("Ana", "L"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" \n", []),
        ("Ana, Lyon.", ["Ana", ",", "Lyon", "."]),
        ("l’Iran d'Or", ["l", "’", "Iran", "d", "'", "Or"]),
        ("cafe\u0301s 3€", ["cafe\u0301s", "3", "€"]),
        (f"{FAMILY} 👍🏽a", [FAMILY, "👍🏽", "a"]),
    ],
)
def test_words_are_listed_with_every_other_sign(text, words):
    assert [text[start:end] for start, end in list_words(text)] == words
