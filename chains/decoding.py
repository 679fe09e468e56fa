"""BLOOM with a shared prefix, in plain PyTorch: scores of given labels, and grounded replies.

A few-shot prompt repeats its instruction and shots for every text. Here they run once; their keys and values stay in a
``Prefix`` that every batch attends to without a copy per row. A row's own tokens have buffers of their own, scores
against both parts are joined before one softmax (cascade attention, https://flashinfer.ai/2024/02/02/cascade-inference.html),
and only those rows of the vocabulary matrix are multiplied that can come next. Knows token ids, nothing of text.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from transformers import BloomForCausalLM
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

from chains.grounding import Node

__all__ = ["Decoder"]

MAX_PREFIXES = 8
MASKED = -1e9


@dataclass(frozen=True)
class Prefix:
    """Keys and values of the tokens that all rows share: per layer (heads, tokens, head_dim)."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    length: int


class Rows:
    """The rows' own keys and values, per layer (rows, heads, capacity, head_dim), and how much of them is used.

    ``lengths`` (rows,) counts each row's own tokens; what lies beyond is overwritten by the next pass.
    """

    def __init__(self, decoder: "Decoder", prefix: Prefix, count: int, capacity: int) -> None:
        shape = (count, decoder.heads, capacity, decoder.head_dim)
        self.prefix = prefix
        self.keys = [torch.zeros(shape, dtype=decoder.dtype, device=decoder.device) for _ in decoder.blocks]
        self.values = [torch.zeros(shape, dtype=decoder.dtype, device=decoder.device) for _ in decoder.blocks]
        self.lengths = torch.zeros(count, dtype=torch.long, device=decoder.device)

    def keep(self, rows: torch.Tensor) -> None:
        """Drop all rows but ``rows``."""
        self.keys = [keys[rows] for keys in self.keys]
        self.values = [values[rows] for values in self.values]
        self.lengths = self.lengths[rows]


class Decoder:
    """Runs a loaded ``BloomForCausalLM``; not safe for several threads at once."""

    def __init__(self, model: BloomForCausalLM) -> None:
        self.bloom = model.transformer
        self.blocks = list(self.bloom.h)
        self.vocabulary = model.lm_head.weight  # (vocab, hidden)
        self.heads = model.config.n_head
        self.head_dim = model.config.hidden_size // self.heads
        self.dtype, self.device = self.vocabulary.dtype, self.vocabulary.device
        # ALiBi's slope per head: build_alibi_tensor gives slope × position, so position 1 holds the slope.
        alibi = build_alibi_tensor(torch.ones(1, 2), self.heads, torch.float32)
        self.slopes = alibi.view(self.heads, 2)[:, 1].to(self.device)
        self._prefixes: OrderedDict[tuple[int, ...], Prefix] = OrderedDict()

    @torch.inference_mode()
    def prefix(self, ids: Sequence[int]) -> Prefix:
        """The prefix's keys and values: computed once, the most recently used ``MAX_PREFIXES`` are kept."""
        key = tuple(ids)
        if key not in self._prefixes:
            nothing = torch.zeros(self.heads, 0, self.head_dim, dtype=self.dtype, device=self.device)
            empty = Prefix([nothing] * len(self.blocks), [nothing] * len(self.blocks), 0)
            rows = Rows(self, empty, 1, max(1, len(key)))
            if key:
                self.extend(rows, [list(key)])
            length = len(key)
            self._prefixes[key] = Prefix(
                [keys[0, :, :length] for keys in rows.keys], [values[0, :, :length] for values in rows.values], length
            )
        self._prefixes.move_to_end(key)
        while len(self._prefixes) > MAX_PREFIXES:
            self._prefixes.popitem(last=False)
        return self._prefixes[key]

    @torch.inference_mode()
    def extend(self, rows: Rows, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
        """Append each row's tokens (at least one); the last hidden state of every row, (rows, hidden).

        The new tokens of all rows stand one after another, without padding, wherever each is for itself; only their
        attention to their own row is padded to (rows, width).
        """
        counts = torch.tensor([len(row) for row in tokens], device=self.device)
        ids = torch.tensor([token for row in tokens for token in row], device=self.device)
        ends = counts.cumsum(0)
        row = torch.repeat_interleave(torch.arange(len(tokens), device=self.device), counts)
        offset = torch.arange(len(ids), device=self.device) - (ends - counts)[row]
        place = rows.lengths[row] + offset
        width, used, shared = int(counts.max()), int((rows.lengths + counts).max()), rows.prefix.length

        positions = torch.arange(shared + used, device=self.device)
        alibi = self.slopes[:, None] * positions  # (heads, shared + used)
        future = torch.zeros(len(ids), used, device=self.device)
        future.masked_fill_(positions[:used] > place[:, None], MASKED)
        own_bias = alibi[None, :, shared:] + future[:, None]  # (tokens, heads, used)

        def pad(values: torch.Tensor) -> torch.Tensor:
            """(tokens, heads, n) → (rows, heads, width, n)."""
            if width == 1:
                return values[:, :, None]
            padded = values.new_zeros(len(tokens), width, *values.shape[1:])
            padded[row, offset] = values
            return padded.transpose(1, 2)

        def unpad(values: torch.Tensor) -> torch.Tensor:
            """(rows, heads, width, n) → (tokens, heads, n)."""
            return values[:, :, 0] if width == 1 else values.transpose(1, 2)[row, offset]

        x = self.bloom.word_embeddings_layernorm(self.bloom.word_embeddings(ids))  # (tokens, hidden)
        for layer, block in enumerate(self.blocks):
            attention = block.self_attention
            fused = attention.query_key_value(block.input_layernorm(x)).view(len(ids), self.heads, 3, self.head_dim)
            query, key, value = fused.unbind(2)  # each (tokens, heads, head_dim)
            rows.keys[layer][row, :, place] = key
            rows.values[layer][row, :, place] = value
            query = query * attention.inv_norm_factor
            own = unpad(pad(query) @ rows.keys[layer][:, :, :used].transpose(2, 3)) + own_bias
            # One product per head for the tokens of all rows: the prefix is read once, whatever the batch.
            past = query.transpose(0, 1) @ rows.prefix.keys[layer].transpose(1, 2) + alibi[:, None, :shared]
            weights = F.softmax(torch.cat([past.transpose(0, 1), own], -1), dim=-1, dtype=torch.float32).to(self.dtype)
            mixed = unpad(pad(weights[..., shared:]) @ rows.values[layer][:, :, :used])
            mixed = mixed + (weights[..., :shared].transpose(0, 1) @ rows.prefix.values[layer]).transpose(0, 1)
            x = x + attention.dense(mixed.flatten(1))
            inner = block.mlp.dense_h_to_4h(block.post_attention_layernorm(x))
            x = x + block.mlp.dense_4h_to_h(F.gelu(inner, approximate="tanh"))
        rows.lengths = rows.lengths + counts
        return cast(torch.Tensor, self.bloom.ln_f(x[ends - 1]))

    @torch.inference_mode()
    def score_labels(
        self, prefix: Sequence[int], texts: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """Log-probabilities (texts, labels) in nats of each label after each text, given that the reply is a label.

        The labels form a trie; at each fork the tokens that may follow share the probability. One pass over the
        texts' own tokens scores labels that differ in their first token; only deeper forks take a pass of their own.
        No label may be the beginning of another.
        """
        rows = Rows(self, self.prefix(prefix), len(texts), max(map(len, texts)) + max(map(len, labels)))
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
                before = rows.lengths
                path = list(labels[group[0]][depth:end])
                self._descend(rows, self.extend(rows, [path] * len(before)), labels, group, end, scores)
                rows.lengths = before

    @torch.inference_mode()
    def write_replies(
        self, prefix: Sequence[int], texts: Sequence[Sequence[int]], graphs: Sequence[Node], rooms: Sequence[int]
    ) -> list[list[int]]:
        """For each text the greedy reply among those its graph allows, as token ids with the mark that ends it.

        A reply of as many tokens as its text has in ``rooms`` stops where it is. Forced stretches cost no step of
        their own: they are appended together with the token before them. Finished rows leave the batch.
        """
        rows = Rows(self, self.prefix(prefix), len(texts), max(map(len, texts)) + max(rooms))
        replies: list[list[int]] = [[] for _ in texts]
        nodes = list(graphs)
        alive = list(range(len(texts)))
        hidden = self.extend(rows, texts)
        while True:
            steps = self._step(hidden, [nodes[row] for row in alive], [rooms[row] - len(replies[row]) for row in alive])
            going = []
            for place, (row, (tokens, node)) in enumerate(zip(alive, steps, strict=True)):
                nodes[row] = node
                replies[row] += tokens
                if not node.is_end and len(replies[row]) < rooms[row]:
                    going.append(place)
            if not going:
                return replies
            if len(going) < len(alive):
                rows.keep(torch.tensor(going, device=self.device))
            hidden = self.extend(rows, [steps[place][0] for place in going])
            alive = [alive[place] for place in going]

    def _step(self, hidden: torch.Tensor, nodes: list[Node], room: list[int]) -> list[tuple[list[int], Node]]:
        """For each row its likeliest allowed token and the forced ones after it, and the node they lead to."""
        allowed = [list(node.next) for node in nodes]
        candidates = sorted({token for tokens in allowed for token in tokens})
        column = {token: place for place, token in enumerate(candidates)}
        logits = self._logits(hidden, candidates)
        mask = torch.full(logits.shape, MASKED)
        for row, tokens in enumerate(allowed):
            mask[row, [column[token] for token in tokens]] = 0
        best = (logits + mask.to(self.device)).argmax(-1).tolist()
        steps = []
        for place, node, left in zip(best, nodes, room, strict=True):
            tokens = [candidates[place]]
            node = node.next[candidates[place]]
            while len(node.next) == 1 and len(tokens) < left:
                token, node = next(iter(node.next.items()))
                tokens.append(token)
            steps.append((tokens, node))
        return steps

    def _logits(self, hidden: torch.Tensor, tokens: list[int]) -> torch.Tensor:
        """Logits in fp32 of ``tokens`` alone, (rows, tokens)."""
        rows: torch.Tensor = self.vocabulary[torch.tensor(tokens, device=self.device)]
        return (hidden @ rows.T).float()
