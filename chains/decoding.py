"""BLOOM with a shared prefix, in plain PyTorch: scores of given labels, and grounded replies.

A few-shot prompt repeats its instruction and shots for every text. Here they run once; their keys and values stay in a
``Prefix`` that every batch attends to without a copy per row. A row's own tokens have buffers of their own, scores
against both parts are joined before one softmax (cascade attention, https://flashinfer.ai/2024/02/02/cascade-inference.html),
and only those rows of the vocabulary matrix are multiplied that can come next. Knows token ids, nothing of text.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from chains.bloom import BloomForCausalLM, build_alibi_tensor
from chains.grounding import Node
from chains.weights import PackedLinear

__all__ = ["Decoder", "Fork", "Writing"]

MAX_PREFIX_TOKENS = 1024  # of all prefixes that are kept
# A pass over so few tokens costs hardly more than over one, for it waits for the weights to be read from memory.
FREE_TOKENS = {"cpu": 24, "cuda": 256}
STEP = 16  # tokens by which the rows' buffers grow
MASKED = -1e9
# Hidden numbers (tokens × width) of new texts in one pass: enough for matrix products at full speed, few enough for the
# processor's caches.
PASS_SIZE = 2**19


@dataclass(frozen=True)
class Prefix:
    """Keys and values of the tokens that all rows share: per layer (heads, tokens + 1, head_dim).

    The last key and value are zeros, a place for what a row's own tokens weigh together.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    length: int


class Rows:
    """The rows' own keys and values, per layer (rows, heads, capacity, head_dim), and how much of them is used.

    ``lengths`` counts each row's own tokens; what lies beyond is overwritten by the next pass. ``is_brief`` rows take
    one pass only: all layers write to one buffer, since none is read again.
    """

    def __init__(
        self, decoder: "Decoder", prefix: Prefix, count: int, capacity: int, *, is_brief: bool = False
    ) -> None:
        self.prefix = prefix
        self.lengths = [0] * count

        def make() -> list[torch.Tensor]:
            shape = (count, decoder.heads, capacity, decoder.head_dim)
            buffers = [
                torch.zeros(shape, dtype=decoder.dtype, device=decoder.device)
                for _ in decoder.blocks[: 1 if is_brief else None]
            ]
            return buffers * len(decoder.blocks) if is_brief else buffers

        self.keys, self.values = make(), make()

    def fit(self, used: int) -> None:
        """Make room for ``used`` tokens a row if there is none, or give it back where there is far too much.

        Attention reads all of a buffer: matrix products of a slice would copy it first.
        """
        capacity = self.keys[0].shape[2]
        if used > capacity or 2 * (used + STEP) < capacity:
            more = used + STEP - capacity
            for buffers in (self.keys, self.values):
                for layer, buffer in enumerate(buffers):
                    buffers[layer] = F.pad(buffer, (0, 0, 0, more))

    def move(self, source: int, target: int) -> None:
        """Put the row at ``source`` in the place of the one at ``target``."""
        length = self.lengths[target] = self.lengths[source]
        if source != target:
            for buffer in (*self.keys, *self.values):
                buffer[target, :, :length] = buffer[source, :, :length]


@dataclass
class Writing:
    """A reply on its way: ``pending`` tokens, at first those of the text, are not run yet; they lead to ``node``."""

    number: int
    node: Node
    room: int
    pending: list[int]
    reply: list[int] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        return self.node.is_end or len(self.reply) >= self.room


@dataclass(frozen=True)
class Fork:
    """A place where the model chooses: ``node``, after the first ``offset`` tokens of a draft for ``writing``."""

    writing: Writing
    offset: int
    node: Node


def gelu(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """``gelu(layer(x))``, fused where the layer can."""
    if isinstance(layer, PackedLinear):
        return layer.gelu(x)
    return F.gelu(layer(x), approximate="tanh")


def plus(layer: nn.Module, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """``layer(x) + residual``, fused where the layer can."""
    return layer.plus(x, residual) if isinstance(layer, PackedLinear) else residual + layer(x)


class Asking:
    """New tokens whose queries attend to the prefix and to their own row.

    ``spots`` are their rows in ``buffer`` (rows, heads, capacity, head_dim) and their places there, row by row.
    """

    def __init__(
        self, decoder: "Decoder", prefix: Prefix, buffer: torch.Tensor, spots: Sequence[tuple[int, int]]
    ) -> None:
        self.prefix = prefix
        self.rows, self.heads, capacity, _ = buffer.shape
        counts = [0] * self.rows
        offsets = []
        for number, _ in spots:
            offsets.append(counts[number])
            counts[number] += 1
        self.width = max(counts)
        device, slopes = decoder.device, decoder.slopes[:, None, None]
        row, place = torch.tensor(spots, device=device).T
        offset, head = torch.tensor(offsets, device=device), torch.arange(self.heads, device=device)
        # Where each (token, head) stands in (rows, heads, width) and in (rows, heads, capacity), both as one dimension:
        # copying by one index costs a fraction of copying by several.
        self.padded = ((row[:, None] * self.heads + head) * self.width + offset[:, None]).flatten()
        self.slots = ((row[:, None] * self.heads + head) * capacity + place[:, None]).flatten()
        self.is_even = len(spots) == self.rows * self.width
        last = torch.zeros(self.rows, self.width, dtype=place.dtype, device=device)
        last[row, offset] = place
        positions = torch.arange(capacity, device=device)
        is_future = positions > last[..., None]  # (rows, width, capacity)
        self.bias = slopes * (prefix.length + positions) + MASKED * is_future[:, None]  # (rows, heads, width, capacity)
        self.alibi = slopes * torch.arange(prefix.length + 1, device=device)  # (heads, 1, prefix + 1)

    def attend(self, query: torch.Tensor, layer: int, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """What the queries (tokens, heads, head_dim) read in a layer: (tokens, heads × head_dim)."""
        scores = self._pad(query) @ keys.transpose(2, 3) + self.bias
        weights = F.softmax(scores, -1)
        own = weights.to(query.dtype) @ values
        # The log of the sum of exponentials, by the largest of each row: logsumexp computes them all again.
        total = scores.amax(-1, keepdim=True) - weights.amax(-1, keepdim=True).log()
        # One product per head for the tokens of all rows: the prefix is read once, whatever the batch.
        past = query.transpose(0, 1) @ self.prefix.keys[layer].transpose(1, 2) + self.alibi
        past[..., -1] = self._unpad(total)[..., 0].T
        weights = F.softmax(past, -1).to(query.dtype)
        mixed = (weights @ self.prefix.values[layer]).transpose(0, 1)
        return torch.addcmul(mixed, weights[..., -1:].transpose(0, 1), self._unpad(own)).flatten(1)

    def _pad(self, values: torch.Tensor) -> torch.Tensor:
        """(tokens, heads, n) → (rows, heads, width, n)."""
        if self.width == 1 and self.is_even:
            return values[:, :, None]
        padded = values.new_zeros(self.rows * self.heads * self.width, values.shape[2])
        return padded.index_copy_(0, self.padded, values.flatten(0, 1)).view(self.rows, self.heads, self.width, -1)

    def _unpad(self, values: torch.Tensor) -> torch.Tensor:
        """(rows, heads, width, n) → (tokens, heads, n)."""
        if self.width == 1 and self.is_even:
            return values[:, :, 0]
        return values.flatten(0, 2).index_select(0, self.padded).view(-1, self.heads, values.shape[3])


class Decoder:
    """Runs a loaded ``BloomForCausalLM``; not safe for several threads at once."""

    def __init__(self, model: BloomForCausalLM) -> None:
        self.bloom = model.transformer
        self.blocks = list(self.bloom.h)
        self.vocabulary = model.lm_head.weight  # (vocab, hidden)
        self.heads = model.config.n_head
        self.head_dim = model.config.hidden_size // self.heads
        self.pass_tokens = max(1, PASS_SIZE // model.config.hidden_size)
        self.dtype, self.device = self.vocabulary.dtype, self.vocabulary.device
        # ALiBi's slope per head: build_alibi_tensor gives slope × position, so position 1 holds the slope.
        alibi = build_alibi_tensor(torch.ones(1, 2), self.heads, torch.float32)
        self.slopes = alibi.view(self.heads, 2)[:, 1].to(self.device)
        self._prefixes: OrderedDict[tuple[int, ...], Prefix] = OrderedDict()

    @property
    def token_bytes(self) -> int:
        """What the keys and values of one token take."""
        size: int = 2 * len(self.blocks) * self.heads * self.head_dim * self.vocabulary.element_size()
        return size

    @torch.inference_mode()
    def prefix(self, ids: Sequence[int]) -> Prefix:
        """The prefix's keys and values: computed once; the most recently used are kept, up to ``MAX_PREFIX_TOKENS``."""
        key = tuple(ids)
        if key not in self._prefixes:
            nothing = torch.zeros(self.heads, 1, self.head_dim, dtype=self.dtype, device=self.device)
            empty = Prefix([nothing] * len(self.blocks), [nothing] * len(self.blocks), 0)
            rows = Rows(self, empty, 1, len(key) + 1)
            if key:
                self.extend(rows, [list(key)])
            self._prefixes[key] = Prefix(
                [keys[0] for keys in rows.keys], [values[0] for values in rows.values], len(key)
            )
        self._prefixes.move_to_end(key)
        while len(self._prefixes) > 1 and sum(map(len, self._prefixes)) > MAX_PREFIX_TOKENS:
            self._prefixes.popitem(last=False)
        return self._prefixes[key]

    @torch.inference_mode()
    def extend(
        self, rows: Rows, tokens: Sequence[Sequence[int]], *, first: int = 0, wanted: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Append each row's tokens (at least one), beginning with row ``first``; last hidden states (wanted, hidden).

        The new tokens of all rows stand one after another, without padding, wherever each is for itself; only their
        attention to their own row is padded to (rows, width). ``wanted`` are places in that sequence, ascending, by
        default of each row's last token; the last layer computes no others.
        """
        counts = [len(row) for row in tokens]
        before = rows.lengths[first : first + len(tokens)]
        after = [length + count for length, count in zip(before, counts, strict=True)]
        rows.fit(max([*rows.lengths, *after]) if first else max(after))
        keys, values = ([buffer[first : first + len(tokens)] for buffer in part] for part in (rows.keys, rows.values))
        rows.lengths[first : first + len(tokens)] = after
        if wanted is None:
            wanted = [end - 1 for end in accumulate(counts)]

        ids = torch.tensor([token for row in tokens for token in row], device=self.device)
        spots = [(row, before[row] + offset) for row, count in enumerate(counts) for offset in range(count)]
        all_asking = Asking(self, rows.prefix, keys[0], spots)
        asking = Asking(self, rows.prefix, keys[0], [spots[place] for place in wanted])
        x = self.bloom.word_embeddings_layernorm(self.bloom.word_embeddings(ids))  # (tokens, hidden)
        for layer, block in enumerate(self.blocks):
            attention = block.self_attention
            fused = attention.query_key_value(block.input_layernorm(x)).view(len(ids), self.heads, 3, self.head_dim)
            query, key, value = fused.unbind(2)  # each (tokens, heads, head_dim)
            keys[layer].view(-1, self.head_dim).index_copy_(0, all_asking.slots, key.flatten(0, 1))
            values[layer].view(-1, self.head_dim).index_copy_(0, all_asking.slots, value.flatten(0, 1))
            query = query * attention.inv_norm_factor
            if layer < len(self.blocks) - 1:
                mixed = all_asking.attend(query, layer, keys[layer], values[layer])
            else:  # the other tokens have given their keys and values, and nobody reads more of them
                x, query = x[list(wanted)], query[list(wanted)]
                mixed = asking.attend(query, layer, keys[layer], values[layer])
            x = plus(attention.dense, mixed, x)
            inner = gelu(block.mlp.dense_h_to_4h, block.post_attention_layernorm(x))
            x = plus(block.mlp.dense_4h_to_h, inner, x)
        return cast(torch.Tensor, self.bloom.ln_f(x))

    @torch.inference_mode()
    def score_labels(
        self, prefix: Sequence[int], texts: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """Log-probabilities (texts, labels) in nats of each label after each text, given that the reply is a label.

        The labels form a trie; at each fork the tokens that may follow share the probability. One pass over the
        texts' own tokens scores labels that differ in their first token; only deeper forks take a pass of their own.
        No label may be the beginning of another.
        """
        is_brief = len({label[0] for label in labels}) == len(labels)
        capacity = max(map(len, texts)) + (0 if is_brief else max(map(len, labels)))
        rows = Rows(self, self.prefix(prefix), len(texts), capacity, is_brief=is_brief)
        scores = torch.zeros(len(texts), len(labels), device=self.device)
        self._descend(rows, self.extend(rows, texts), labels, list(range(len(labels))), 0, scores)
        return scores

    def _descend(
        self,
        rows: Rows,
        hidden: torch.Tensor,
        labels: Sequence[Sequence[int]],
        alive: list[int],
        depth: int,
        scores: torch.Tensor,
    ) -> None:
        """Add to ``scores`` what the fork after ``depth`` tokens gives to the labels ``alive`` there."""
        groups: dict[int, list[int]] = {}
        for label in alive:
            groups.setdefault(labels[label][depth], []).append(label)
        here = F.log_softmax(self._logits(hidden, list(groups)), dim=-1)
        for column, group in enumerate(groups.values()):
            scores[:, group] += here[:, column, None]
            end = depth + 1
            while len(group) > 1 and len({labels[label][end] for label in group}) == 1:
                end += 1  # no fork: the tokens are certain
            if len(group) > 1:
                before = list(rows.lengths)
                path = list(labels[group[0]][depth:end])
                self._descend(rows, self.extend(rows, [path] * len(before)), labels, group, end, scores)
                rows.lengths = before

    @torch.inference_mode()
    def write_replies(
        self,
        prefix: Sequence[int],
        texts: Sequence[Sequence[int]],
        graphs: Iterable[Node],
        rooms: Sequence[int],
        *,
        together: int = 64,
    ) -> list[list[int]]:
        """For each text the greedy reply among those its graph allows, as token ids with the mark that ends it.

        A reply of as many tokens as its text has in ``rooms`` stops where it is. At most ``together`` rows run at
        once; finished rows leave and waiting ones enter, in order, each taking its graph as it enters.

        Forced stretches cost no pass of their own: they are run with the token before them. So are likely ones where
        a pass has tokens to spare: the model's choice at each of their forks is read off the same pass, and what it
        would not have written is dropped (prompt lookup, https://github.com/apoorvumang/prompt-lookup-decoding).
        """
        replies: list[list[int]] = [[] for _ in texts]
        waiting = deque(range(len(texts)))
        rows = Rows(self, self.prefix(prefix), min(together, len(texts)), max(map(len, texts)) + min(max(rooms), 32))
        going: list[Writing] = []
        starts = iter(graphs)
        is_filling = True
        while going or waiting:
            kept, free = len(going), len(rows.lengths) - len(going)
            # A pass for a few new rows costs as much as for many.
            is_filling = bool(waiting and free) and (is_filling or 4 * free >= len(rows.lengths))
            if is_filling:
                size = 0
                while waiting and free and (not size or size + len(texts[waiting[0]]) <= self.pass_tokens):
                    number, free = waiting.popleft(), free - 1
                    size += len(texts[number])
                    rows.lengths[len(going)] = 0
                    going.append(Writing(number, next(starts), rooms[number], list(texts[number])))
            first = kept if len(going) > kept else 0
            self._write(rows, going[first:], first)
            for place in reversed(range(first, len(going))):
                if going[place].is_done:
                    replies[going[place].number] = going[place].reply
                    rows.move(len(going) - 1, place)
                    going[place] = going[-1]
                    going.pop()
        return replies

    def _write(self, rows: Rows, writings: list[Writing], first: int) -> None:
        """Run what is pending of ``writings``, which stand in ``rows`` from ``first`` on, and choose what follows."""
        free = FREE_TOKENS[self.device.type] - sum(len(writing.pending) for writing in writings)
        drafts, forks, wanted, size = [], [], [], 0
        for writing in writings:
            draft, offsets = self._draft(writing, free // len(writings))
            drafts.append(draft)
            forks.append(offsets)
            wanted += [size + len(writing.pending) - 1 + fork.offset for fork in offsets]
            size += len(writing.pending) + len(draft)
        tokens = [writing.pending + draft for writing, draft in zip(writings, drafts, strict=True)]
        hidden = self.extend(rows, tokens, first=first, wanted=wanted)
        chosen = iter(self._choose(hidden, [fork for row in forks for fork in row]))
        for number, (writing, draft, row) in enumerate(zip(writings, drafts, forks, strict=True), first):
            choices = [next(chosen) for _ in row]
            # The first fork at which the model would not have written the draft, or the draft's end.
            place = next(i for i, fork in enumerate(row) if draft[fork.offset : fork.offset + 1] != [choices[i]])
            fork, token = row[place], choices[place]
            rows.lengths[number] -= len(draft) - fork.offset
            node = fork.node.next[token]
            writing.reply += draft[: fork.offset]
            writing.pending = [token]
            while len(node.next) == 1 and len(writing.reply) + len(writing.pending) < writing.room:
                token, node = next(iter(node.next.items()))
                writing.pending.append(token)
            writing.reply += writing.pending
            writing.node = node

    def _draft(self, writing: Writing, limit: int) -> tuple[list[int], list[Fork]]:
        """At most ``limit`` tokens that are likely or forced after what is pending, and the forks on their way.

        The last fork stands at the draft's end: what would follow it without a choice is not worth running.
        """
        limit = min(limit, writing.room - len(writing.reply) - 1)
        tokens: list[int] = []
        forks, node = [Fork(writing, 0, writing.node)], writing.node
        while not node.is_end and len(tokens) < limit:
            token = next(iter(node.next)) if len(node.next) == 1 else node.likely
            if token is None:
                break
            tokens.append(token)
            node = node.next[token]
            if len(node.next) > 1:
                forks.append(Fork(writing, len(tokens), node))
        return tokens[: forks[-1].offset], forks

    def _choose(self, hidden: torch.Tensor, forks: list[Fork]) -> list[int]:
        """For each fork the likeliest token that its node allows."""
        allowed = [list(fork.node.next) for fork in forks]
        candidates = sorted({token for tokens in allowed for token in tokens})
        column = {token: place for place, token in enumerate(candidates)}
        logits = self._logits(hidden, candidates)
        mask = torch.full(logits.shape, MASKED)
        for row, tokens in enumerate(allowed):
            mask[row, [column[token] for token in tokens]] = 0
        best: list[int] = (logits + mask.to(self.device)).argmax(-1).tolist()
        return [candidates[place] for place in best]

    def _logits(self, hidden: torch.Tensor, tokens: list[int]) -> torch.Tensor:
        """Logits in fp32 of ``tokens`` alone, (rows, tokens)."""
        rows: torch.Tensor = self.vocabulary[torch.tensor(tokens, device=self.device)]
        return (hidden @ rows.T).float()
