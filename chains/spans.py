"""Mentions ↔ character offsets: where in a text the names of a reply stand.

Rules, in this order:

1. Verbatim: a mention's occurrences are the places where its text stands in the source. If there are none, both are
   compared in Unicode normal form C, so that ``é`` finds ``e`` + combining accent; offsets always refer to the source.
2. Whole words: an occurrence may not cut a word (a letter, digit or combining mark goes on) or an emoji sequence.
   If a mention occurs only inside words (as in scripts without spaces), its first such occurrence counts.
3. Longest first: an occurrence inside a longer mention's occurrence is part of that longer name; names never overlap.
   Of equally long ones the earlier mention wins.
4. Every occurrence is marked, however often the reply lists the name. If the reply lists one surface with several
   types, its occurrences take them in order and the last type holds for the rest.
5. A mention with no occurrence in the source at all is ungrounded.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from chains.schema import Entity, Mention

__all__ = ["align", "list_mentions", "list_words"]

JOINERS = {"\u200d", "\ufe0e", "\ufe0f", *(chr(code) for code in range(0x1F3FB, 0x1F400))}


def align(text: str, mentions: Iterable[Mention]) -> tuple[tuple[Entity, ...], tuple[Mention, ...]]:
    """The entities of ``text`` in reading order, and the ungrounded mentions in reply order (each once)."""
    types: dict[str, list[str]] = {}
    for mention in mentions:
        types.setdefault(mention.text, []).append(mention.type)
    taken = [False] * len(text)
    entities: list[Entity] = []
    ungrounded: list[Mention] = []
    for surface in sorted(types, key=len, reverse=True):
        found = find_occurrences(text, surface)
        if not found:
            ungrounded += [Mention(text=surface, type=type_) for type_ in dict.fromkeys(types[surface])]
        free = [(start, end) for start, end in found if not any(taken[start:end])]
        for number, (start, end) in enumerate(free):
            taken[start:end] = [True] * (end - start)
            type_ = types[surface][min(number, len(types[surface]) - 1)]
            entities.append(Entity(text=text[start:end], type=type_, start=start, end=end))
    order = {surface: place for place, surface in enumerate(types)}
    ungrounded.sort(key=lambda mention: order[mention.text])
    return tuple(sorted(entities, key=lambda entity: entity.start)), tuple(ungrounded)


def list_mentions(entities: Sequence[Entity]) -> list[Mention]:
    """The shortest reply that ``align`` turns back into ``entities``: each surface once, in order of appearance.

    A surface that occurs with different types is listed once per occurrence.
    """
    types: dict[str, set[str]] = {}
    for entity in entities:
        types.setdefault(entity.text, set()).add(entity.type)
    mentions, seen = [], set()
    for entity in sorted(entities, key=lambda entity: entity.start):
        if entity.text not in seen or len(types[entity.text]) > 1:
            mentions.append(Mention(text=entity.text, type=entity.type))
            seen.add(entity.text)
    return mentions


def find_occurrences(text: str, surface: str) -> list[tuple[int, int]]:
    """The (start, end) of every occurrence of ``surface`` in ``text`` under rules 1 and 2, not overlapping itself."""
    if not surface.strip():
        return []
    found = _search(text, surface)
    if not found:
        composed, offsets = _compose(text)
        found = [
            (offsets[start], offsets[end])
            for start, end in _search(composed, unicodedata.normalize("NFC", surface))
            # A character of the source may be several in form C: no edge inside one.
            if offsets[end - 1] < offsets[end] and offsets[start] not in offsets[:start]
        ]
    whole = [(start, end) for start, end in found if _is_whole(text, start, end)]
    return whole or found[:1]


def list_words(text: str) -> Iterator[tuple[int, int]]:
    """The (start, end) of every word of ``text``, and of every other character that is no white space, in order."""
    start = 0
    while start < len(text):
        end = start + 1
        while end < len(text) and (_goes_on(text[end]) or (_in_word(text[start]) and _in_word(text[end]))):
            end += 1
        if not text[start].isspace():
            yield start, end
        start = end


def _search(text: str, surface: str) -> list[tuple[int, int]]:
    found = []
    start = text.find(surface)
    while start >= 0:
        found.append((start, start + len(surface)))
        start = text.find(surface, start + len(surface))
    return found


def _compose(text: str) -> tuple[str, list[int]]:
    """``text`` in normal form C, and for each of its code points (and its end) the offset in ``text``."""
    composed: list[str] = []
    offsets: list[int] = []
    start = 0
    while start < len(text):
        end, piece = start + 1, unicodedata.normalize("NFC", text[start])
        # A mark goes with what it follows, and so does a Hangul letter that completes a syllable.
        while end < len(text) and (
            unicodedata.combining(text[end]) or len(unicodedata.normalize("NFC", piece + text[end])) <= len(piece)
        ):
            piece = unicodedata.normalize("NFC", piece + text[end])
            end += 1
        composed.append(piece)
        offsets += [start] * len(piece)
        start = end
    return "".join(composed), [*offsets, len(text)]


def _is_whole(text: str, start: int, end: int) -> bool:
    """Whether neither edge of the occurrence cuts a word, a combined character or an emoji sequence."""
    starts_word = start == 0 or not (_in_word(text[start]) and _in_word(text[start - 1]))
    ends_word = end == len(text) or not (_in_word(text[end - 1]) and _in_word(text[end]))
    cuts_mark = any(place < len(text) and _goes_on(text[place]) for place in (start, end))
    joined = start > 0 and text[start - 1] == "\u200d"
    return starts_word and ends_word and not cuts_mark and not joined


def _in_word(char: str) -> bool:
    return char.isalnum() or _goes_on(char)


def _goes_on(char: str) -> bool:
    return char in JOINERS or unicodedata.category(char).startswith("M")
