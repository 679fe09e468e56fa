"""Which tokens may come next in an entity reply: a graph of nodes, no model and no torch.

A reply is the empty word, or items ``<name>(type)`` whose name is a piece of the text that begins and ends at word
edges. Each node maps a token to the next node; a node with one successor is a forced stretch, which a decoder appends
without asking the model. Names are spelled as the tokenizer cuts them when they stand in a reply. A node may also say
which token is ``likely`` before the model is asked: the copy of a capitalised word goes on to the end of its run.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

__all__ = ["Markup", "NameNode", "Node", "likely_names", "reply_graph", "word_starts"]

MAX_NAME_TOKENS = 40
WORD = re.compile(r"\w+")
# What may stand between two capitalised words of one name.
LINK = re.compile(r"[ .’'-]{1,2}|(?: (?:de|del|la|las|los|du|des|le|of|the|von|van|y))+ ")


@dataclass(eq=False)
class Node:
    """A state of the reply: which token leads where. ``is_end`` says that the reply is complete; ``likely`` is a guess
    at the next token, made without the model."""

    next: dict[int, "Node"] = field(default_factory=dict)
    is_end: bool = False
    likely: int | None = None


class NameNode(Node):
    """A state inside a name; its successors are found when first asked for.

    ``ways`` are the (occurrence, depth) pairs that spell the name so far; ``after`` is the place in the text where the
    reply's last name ended.
    """

    def __init__(self, spellings: "Spellings", ways: list[tuple[int, int]], after: int) -> None:
        self.is_end = False
        self._spellings = spellings
        self._ways = ways
        self._after = after
        self._next: dict[int, Node] | None = None

    @property
    def next(self) -> dict[int, Node]:  # type: ignore[override]
        if self._next is None:
            self._next = self._spellings.successors(self._ways, self._after)
        return self._next

    @property
    def likely(self) -> int | None:  # type: ignore[override]
        return self._spellings.likely(self._ways, self._after)


@dataclass(eq=False)
class Spellings:
    """How each name that may start in a text is cut into tokens, and what a reply may hold around it.

    Per occurrence: ``starts``, its place in the text; ``tokens``; ``stops``, the place in the text where the name ends
    if it ends after that token, or 0 where it may not. ``guesses`` maps occurrences that look like names to their ends.
    """

    starts: list[int]
    tokens: list[list[int]]
    stops: list[list[int]]
    guesses: dict[int, int]
    markup: "Markup"
    done: Node

    def names(self, after: int) -> NameNode:
        """The state in which a name begins."""
        return NameNode(self, [(number, 0) for number in range(len(self.tokens))], after)

    def successors(self, ways: list[tuple[int, int]], after: int) -> dict[int, Node]:
        """The next tokens of all ``ways``, and the closing mark where one of them stands at a word's end."""
        following: dict[int, list[tuple[int, int]]] = {}
        for number, depth in ways:
            if depth < len(self.tokens[number]):
                following.setdefault(self.tokens[number][depth], []).append((number, depth + 1))
        nodes: dict[int, Node] = {token: NameNode(self, group, after) for token, group in following.items()}
        ends = [self.stops[number][depth - 1] for number, depth in ways if depth]
        if stop := next((end for end in ends if end > after), max(ends, default=0)):
            add_path(nodes, self.markup.close, self._types(stop))
        return nodes

    def likely(self, ways: list[tuple[int, int]], after: int) -> int | None:
        """The next token if the text's next capitalised words are the name."""
        ahead = [way for way in ways if way[0] in self.guesses and self.starts[way[0]] >= after]
        number, depth = (ahead or ways)[0]
        if not depth and not ahead:
            return None
        stop = depth and self.stops[number][depth - 1]
        is_whole = stop and stop >= self.guesses.get(number, 0)
        return self.markup.close[0] if is_whole or depth == len(self.tokens[number]) else self.tokens[number][depth]

    def _types(self, stop: int) -> Node:
        """The state in which the type of a name that ends at ``stop`` is written."""
        types, after = Node(), Node()
        for word in self.markup.types:
            add_path(types.next, word, after)
        add_path(after.next, self.markup.open_next, self.names(stop))
        for end in self.markup.ends:
            add_path(after.next, end, self.done)
        goes_on = any(self.starts[number] >= stop for number in self.guesses)
        after.likely = self.markup.open_next[0] if goes_on else self.markup.ends[0][0]
        return types


def add_path(nodes: dict[int, Node], tokens: Sequence[int], target: Node) -> None:
    """Lead from ``nodes`` along ``tokens`` to ``target``, sharing what is there already."""
    for token in tokens[:-1]:
        nodes = nodes.setdefault(token, Node()).next
    nodes[tokens[-1]] = target


class Markup:
    """The tokens of everything in a reply but the names, for one tokenizer and one task."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, separator: str, empty: str, words: Sequence[str], end: str
    ) -> None:
        self.tokenizer = tokenizer
        self.separator = separator
        self.empty = self.cut(separator + empty)
        self.open_first = self.cut(separator + "<")
        self.open_next = self.cut(" <")
        self.close = self.cut(">(")
        self.types = [self.cut(word + ")") for word in words]
        self.ends = [self.cut(end)]
        if tokenizer.eos_token_id is not None:
            self.ends.append([tokenizer.eos_token_id])

    def cut(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def reply_graph(text: str, markup: Markup) -> Node:
    """The first node of all replies to ``text``."""
    spellings = _spell(text, markup)
    start, emptied = Node(), Node()
    add_path(start.next, markup.empty, emptied)
    for end in markup.ends:
        add_path(emptied.next, end, spellings.done)
    if spellings.tokens:
        add_path(start.next, markup.open_first, spellings.names(0))
    start.likely = markup.open_first[0] if spellings.guesses else markup.empty[0]
    return start


def likely_names(text: str) -> list[tuple[int, int]]:
    """Runs of capitalised words as (start, end), but a single word that opens the text."""
    names: list[tuple[int, int]] = []
    first = WORD.search(text)
    for word in WORD.finditer(text):
        if not word[0][0].isupper():
            continue
        if names and LINK.fullmatch(text, names[-1][1], word.start()):
            names[-1] = (names[-1][0], word.end())
        else:
            names.append((word.start(), word.end()))
    return names[1:] if first and names[:1] == [first.span()] else names


def word_starts(text: str) -> tuple[list[int], set[int]]:
    """Where a name may begin and where it may end: at the edges of words and symbols, never inside one.

    Scripts that write without spaces, whose letters have no case (category Lo), may be cut between any two letters.
    """
    starts, ends = [], set()
    for place, char in enumerate(text):
        if char.isspace():
            continue
        if place == 0 or _may_cut(text[place - 1], char):
            starts.append(place)
        if place + 1 == len(text) or _may_cut(char, text[place + 1]):
            ends.add(place + 1)
    return starts, ends


def _may_cut(left: str, right: str) -> bool:
    if (
        unicodedata.category(right).startswith("M")
        or "\u200d" in (left, right)
        or "\U0001f3fb" <= right <= "\U0001f3ff"
    ):
        return False
    if left.isalnum() and right.isalnum():
        return "Lo" in (unicodedata.category(left), unicodedata.category(right))
    # A combining mark belongs to the word before it.
    return not (unicodedata.category(left).startswith("M") and right.isalnum())


def _spell(text: str, markup: Markup) -> Spellings:
    """How each piece of the text from a word's start on is spelled, up to the last place where a name may end."""
    starts, ends = word_starts(text)
    spellings = Spellings([], [], [], {}, markup, Node(is_end=True))
    if not starts:
        return spellings
    guesses = dict(likely_names(text))
    # Cut after the opening bracket, where the name will stand; no name is longer than MAX_NAME_TOKENS tokens.
    pieces = ["<" + text[start : start + 6 * MAX_NAME_TOKENS] for start in starts]
    encoded = markup.tokenizer(pieces, add_special_tokens=False, return_offsets_mapping=True)
    for start, ids, offsets in zip(starts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        skip = next((number for number, (_, end) in enumerate(offsets) if end > 1), len(ids))
        kept = ids[skip : skip + MAX_NAME_TOKENS]
        if not kept or offsets[skip][0] != 1:
            continue  # the tokenizer joins the bracket with the name: it cannot be spelled apart
        last = [end for _, end in offsets[skip:]]
        # Only the last of several byte tokens that spell one character completes it.
        complete = [number + 1 == len(last) or offsets[skip + number + 1][0] >= end for number, end in enumerate(last)]
        stops = [start + last[number] - 1 for number in range(len(kept))]
        stops = [stop if complete[number] and stop in ends else 0 for number, stop in enumerate(stops)]
        # Nothing after the last place where a name may end: it would lead nowhere.
        size = max((number + 1 for number, stop in enumerate(stops) if stop), default=0)
        if size:
            if start in guesses:
                spellings.guesses[len(spellings.starts)] = guesses[start]
            spellings.starts.append(start)
            spellings.tokens.append(kept[:size])
            spellings.stops.append(stops[:size])
    return spellings
