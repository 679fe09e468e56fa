"""Which tokens may come next in an entity reply: a graph of nodes, no model and no torch.

A reply is the empty word, or items ``<name>(type)`` whose name is a piece of the text that begins and ends at word
edges. Each node maps a token to the next node; a node with one successor is a forced stretch, which a decoder appends
without asking the model. Names are spelled as the tokenizer cuts them when they stand in a reply.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

__all__ = ["Markup", "NameNode", "Node", "reply_graph", "word_starts"]

MAX_NAME_TOKENS = 40


@dataclass(eq=False)
class Node:
    """A state of the reply: which token leads where. ``is_end`` says that the reply is complete."""

    next: dict[int, "Node"] = field(default_factory=dict)
    is_end: bool = False


class NameNode(Node):
    """A state inside a name; its successors are found when first asked for.

    ``ways`` are the (occurrence, depth) pairs that spell the name so far.
    """

    def __init__(self, spellings: "Spellings", ways: list[tuple[int, int]]) -> None:
        self.is_end = False
        self._spellings = spellings
        self._ways = ways
        self._next: dict[int, Node] | None = None

    @property
    def next(self) -> dict[int, Node]:  # type: ignore[override]
        if self._next is None:
            self._next = self._spellings.successors(self._ways)
        return self._next


class Spellings:
    """How each name that may start in a text is cut into tokens, and after which token a word ends."""

    def __init__(self, tokens: list[list[int]], ends: list[list[bool]], close: Sequence[int], after: Node) -> None:
        self.tokens = tokens
        self.ends = ends
        self.close = close
        self.after = after

    def successors(self, ways: list[tuple[int, int]]) -> dict[int, Node]:
        """The next tokens of all ``ways``, and the closing mark where one of them stands at a word's end."""
        following: dict[int, list[tuple[int, int]]] = {}
        for start, depth in ways:
            if depth < len(self.tokens[start]):
                following.setdefault(self.tokens[start][depth], []).append((start, depth + 1))
        nodes: dict[int, Node] = {token: NameNode(self, group) for token, group in following.items()}
        if any(depth and self.ends[start][depth - 1] for start, depth in ways):
            add_path(nodes, self.close, self.after)
        return nodes


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

    def tokens(self) -> set[int]:
        """Every token that the markup may need."""
        parts = [self.empty, self.open_first, self.open_next, self.close, *self.types, *self.ends]
        return {token for part in parts for token in part}


def reply_graph(text: str, markup: Markup) -> tuple[Node, set[int]]:
    """The first node of all replies to ``text``, and every token that any of them may hold."""
    done, after, types = Node(is_end=True), Node(), Node()
    starts, stops = word_starts(text)
    tokens, ends = _spell(text, starts, stops, markup.tokenizer)
    names = NameNode(Spellings(tokens, ends, markup.close, types), [(number, 0) for number in range(len(tokens))])
    for word in markup.types:
        add_path(types.next, word, after)
    start, emptied = Node(), Node()
    add_path(start.next, markup.empty, emptied)
    if tokens:
        add_path(start.next, markup.open_first, names)
        add_path(after.next, markup.open_next, names)
    for end in markup.ends:
        add_path(after.next, end, done)
        add_path(emptied.next, end, done)
    return start, markup.tokens().union(*tokens)


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


def _spell(
    text: str, starts: list[int], stops: set[int], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[list[int]], list[list[bool]]]:
    """For each start, the tokens of the text from there on, and whether a name may end after each of them."""
    if not starts:
        return [], []
    # Cut after the opening bracket, where the name will stand; no name is longer than MAX_NAME_TOKENS tokens.
    pieces = ["<" + text[start : start + 6 * MAX_NAME_TOKENS] for start in starts]
    encoded = tokenizer(pieces, add_special_tokens=False, return_offsets_mapping=True)
    tokens, ends = [], []
    for start, ids, offsets in zip(starts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        skip = next((number for number, (_, end) in enumerate(offsets) if end > 1), len(ids))
        kept = ids[skip : skip + MAX_NAME_TOKENS]
        if not kept or offsets[skip][0] != 1:
            continue  # the tokenizer joins the bracket with the name: it cannot be spelled apart
        last = [end for _, end in offsets[skip:]]
        # Only the last of several byte tokens that spell one character completes it.
        complete = [number + 1 == len(last) or offsets[skip + number + 1][0] >= end for number, end in enumerate(last)]
        closes = [complete[number] and start + last[number] - 1 in stops for number in range(len(kept))]
        # Nothing after the last place where a name may end: it would lead nowhere.
        size = max((number + 1 for number, is_end in enumerate(closes) if is_end), default=0)
        if size:
            tokens.append(kept[:size])
            ends.append(closes[:size])
    return tokens, ends
