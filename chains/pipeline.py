"""transformers' text-generation pipeline with two ways of its own, and LangChain's ``HuggingFacePipeline`` around it.

Called as usual it generates as transformers does. With ``labels=…`` it scores the given label words (forced decoding)
and its reply is their log-probabilities as JSON; with ``items=…`` it writes a reply that can only name what stands in
the text (grounded decoding). Both come as plain data, so a chain binds them: ``llm.bind(pipeline_kwargs={…})``.
"""

import ctypes
import json
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from langchain_core.outputs import LLMResult
from langchain_huggingface import HuggingFacePipeline
from transformers import PreTrainedTokenizerBase

from chains.bloom import BloomForCausalLM, TextGenerationPipeline
from chains.decoding import Decoder
from chains.errors import ModelError
from chains.grounding import Markup, Node, reply_graph
from chains.queue import Queue

__all__ = ["BloomPipeline", "make_llm", "plain_options"]

MAX_ROWS = 128  # that write replies together
# What byte-level tokenizers write for each byte: itself where it is printable in Latin-1, else the next free character
# from U+0100 on (bytes_to_unicode in https://github.com/openai/gpt-2/blob/master/src/encoder.py).
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
BYTES = {chr(byte): byte for byte in PRINTABLE} | {chr(256 + place): byte for place, byte in enumerate(OTHERS)}


def plain_options(max_new_tokens: int, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Every generation option of the plain way, deterministic: greedy, up to the end of the line."""
    return {
        "do_sample": False,
        "num_beams": 1,
        "temperature": None,
        "top_k": None,
        "top_p": None,
        "repetition_penalty": 1.0,
        "max_new_tokens": max_new_tokens,
        "return_full_text": False,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "stop_strings": ["\n"],
        "tokenizer": tokenizer,
    }


@dataclass(frozen=True)
class Row:
    """A prompt's place among the others, its text, and the tokens of its query."""

    place: int
    text: str
    ids: list[int]


def _parts(rows: list[Row], tokens: int) -> Iterator[list[Row]]:
    """Neighbouring rows of up to ``tokens`` together, at least one."""
    part: list[Row] = []
    for row in rows:
        if part and sum(len(other.ids) for other in part) + len(row.ids) > tokens:
            yield part
            part = []
        part.append(row)
    yield part


def give_back_memory() -> None:
    """Let the system have what is free in this process's heap: 90 MB after some calls of bloomz-560m.

    Done where the C library is GNU's, which keeps it (https://man7.org/linux/man-pages/man3/malloc_trim.3.html).
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


class BloomPipeline(TextGenerationPipeline):  # type: ignore[misc]
    """Text generation, label scores and grounded replies of one BLOOM model, for any number of threads at once.

    All that is asked goes through ``queue``. Replies are written together as long as the keys and values of their own
    tokens fit ``row_bytes``.

    ``lock`` is for the tokenizer, which raises "Already borrowed" in a second thread. It is held for as long as a text
    takes to be cut, and not while the model computes: whoever measures a text need not wait for somebody's answer.
    """

    def __init__(self, model: BloomForCausalLM, tokenizer: PreTrainedTokenizerBase, row_bytes: int) -> None:
        super().__init__(model=model, tokenizer=tokenizer, task="text-generation")
        self.decoder = Decoder(model)
        self.queue = Queue(self._answer)
        self.lock = threading.RLock()
        self.row_bytes = row_bytes

    def __call__(self, text_inputs: str | Sequence[str], **options: Any) -> Any:
        """One ``[{"generated_text": reply}]`` per prompt (a bare one for a bare prompt), as transformers gives."""
        prompts = [text_inputs] if isinstance(text_inputs, str) else list(text_inputs)
        streamer = None
        if kind := next((name for name in ("labels", "items") if options.get(name)), ""):
            # The others are transformers' and mean nothing here; calls that differ in nothing else share batches.
            streamer, options = options.get("streamer"), {kind: options[kind]}
        answers = self.queue.ask(prompts, options, kind)
        if streamer:
            streamer.on_finalized_text(answers[0][0]["generated_text"], stream_end=True)
        return answers[0] if isinstance(text_inputs, str) else answers

    def _answer(self, prompts: list[str], options: dict[str, Any]) -> list[Any]:
        """What the queue's worker runs, never twice at once."""
        labels, items = options.get("labels"), options.get("items")
        if not labels and not items:
            with self.lock:
                return list(super().__call__(prompts, **options))
        replies = self._score(prompts, **labels) if labels else self._write(prompts, **options["items"])
        give_back_memory()
        return [[{"generated_text": reply}] for reply in replies]

    def _score(self, prompts: list[str], *, query: str, words: list[str]) -> list[str]:
        """For each prompt a JSON object: label word → log-probability in nats, given that the reply is a label."""
        labels = [self._cut(word) for word in words]
        replies = [""] * len(prompts)
        for prefix, rows in self._groups(prompts, query):
            for part in _parts(rows, self.decoder.pass_tokens):
                scores = self.decoder.score_labels(prefix, [row.ids for row in part], labels)
                for row, values in zip(part, scores.tolist(), strict=True):
                    named = {word.strip(): score for word, score in zip(words, values, strict=True)}
                    replies[row.place] = json.dumps(named, ensure_ascii=False)
        return replies

    def _write(
        self, prompts: list[str], *, query: str, separator: str, empty: str, words: list[str], end: str
    ) -> list[str]:
        """For each prompt a grounded reply; it may be cut short at twice the text's tokens and some more."""
        with self.lock:
            markup = Markup(self.tokenizer, separator=separator, empty=empty, words=words, end=end)

        def graph(text: str) -> Node:
            with self.lock:
                return reply_graph(text, markup)

        replies = [""] * len(prompts)
        for prefix, rows in self._groups(prompts, query):
            written = self.decoder.write_replies(
                prefix,
                [row.ids for row in rows],
                (graph(row.text) for row in rows),
                [2 * len(row.ids) + 32 for row in rows],
                # A reply is seldom longer than its text.
                together=min(MAX_ROWS, self.row_bytes // (2 * len(rows[0].ids) * self.decoder.token_bytes)) or 1,
            )
            with self.lock:
                for row, ids in zip(rows, written, strict=True):
                    replies[row.place] = self.tokenizer.decode(ids, skip_special_tokens=True)
        return replies

    def _groups(self, prompts: list[str], query: str) -> list[tuple[list[int], list[Row]]]:
        """Prompts grouped by what they share: the tokens of that, and the rows, longest first.

        A prompt is its prefix and a last line or lines made from ``query``; a text holds no line break, so the
        query's beginning is found for certain.
        """
        before, after = query.split("{text}")
        shared: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for place, prompt in enumerate(prompts):
            body = prompt.removesuffix(after)
            start = body.rfind("\n" + before) + 1
            if not body.startswith(before, start) or body == prompt:
                raise ModelError(f"The prompt does not end with its query {query!r}; make it from the task's template.")
            shared[body[:start]].append((place, body[start + len(before) :]))
        groups = []
        for beginning, texts in shared.items():
            with self.lock:
                own = self.tokenizer([before + text + after for _, text in texts], add_special_tokens=False)
            rows = [Row(place, text, ids) for (place, text), ids in zip(texts, own["input_ids"], strict=True)]
            # If memory runs out, it does so at once; and rows that run together are of like length.
            rows.sort(key=lambda row: -len(row.ids))
            groups.append((self._cut(beginning), rows))
        return groups

    def cut(self, prompt: str, query: str) -> list[bytes]:
        """The bytes of each token of a prompt, as the model reads it; a character may be spread over several.

        Raises:
            ModelError: the prompt does not end with its ``query``, filled in.
        """
        [(prefix, [row])] = self._groups([prompt], query)
        with self.lock:
            tokens = self.tokenizer.convert_ids_to_tokens([*prefix, *row.ids])
        return [bytes(BYTES[char] for char in token) for token in tokens]

    def _cut(self, text: str) -> list[int]:
        with self.lock:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


class BloomLLM(HuggingFacePipeline):
    """LangChain's ``HuggingFacePipeline`` over a ``BloomPipeline``; its cache key names the model's revision."""

    revision: str

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {**super()._identifying_params, "revision": self.revision}

    def generate(self, prompts: list[str], *args: Any, **options: Any) -> LLMResult:
        return super(BloomLLM, self._keyed(options)).generate(prompts, *args, **options)

    async def agenerate(self, prompts: list[str], *args: Any, **options: Any) -> LLMResult:
        return await super(BloomLLM, self._keyed(options)).agenerate(prompts, *args, **options)

    def _keyed(self, options: dict[str, Any]) -> Self:
        """A copy with the bound options as its own: LangChain leaves bound ones out of its cache key."""
        return self.model_copy(update={"pipeline_kwargs": options.get("pipeline_kwargs")})


def make_llm(
    model: BloomForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    revision: str,
    row_bytes: int = 64_000_000,
) -> BloomLLM:
    """The LangChain model that the chains take as their ``llm``; see ``BloomPipeline`` for ``row_bytes``."""
    # The pipeline makes its own batches, by length and tokens: hand it as many prompts as there are.
    return BloomLLM(
        pipeline=BloomPipeline(model, tokenizer, row_bytes), model_id=name, revision=revision, batch_size=100_000
    )
