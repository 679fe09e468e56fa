"""The two peers of the speed benchmark: CTranslate2 (int8) and llama.cpp (Q8_0), each used as well as we know how.

A peer is made from a BLOOM checkpoint folder of Hugging Face's; its converted copy is kept inside that folder. It runs
instruction and shots once and keeps their keys and values for all rows. Both use all cores. Their
next-token logits correlate with Hugging Face's in fp32 by 0.9995 (CTranslate2) and 0.9998 (llama.cpp).
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from chains.prompts import load_task

__all__ = ["CTranslate2Peer", "LlamaCppPeer"]

# Seconds per text below: sentences of 14 to 49 tokens, a prefix of 136, 32 new tokens for entities; bloomz-560m's
# shape with random weights, 2 cores.
# (c) marks processor seconds per core, where another program held a core meanwhile; the rest are wall seconds.

# Rows that CTranslate2 runs together, and by how many tokens their lengths may differ: a batch runs as many tokens at
# once as its shortest row has, and forces each of the others in a step of its own, with all logits.
# Language, 64 texts, rows/spread: 1/0 0.089, 16/0 0.052, 8/1 0.055. With AVX2: 1/0 0.111, 4/0 0.060, 16/0 0.060,
# 8/1 0.056, 16/2 0.056; with AVX2 and each batch on two cores: 1/0 0.160, 8/0 0.096, 16/2 0.090, 64/100 0.197.
LANGUAGE_ROWS, LANGUAGE_SPREAD = 16, 0
# Entities, 32 texts: 1/0 1.44 (c), 8/4 0.43 (c), 16/4 0.42 (c), 16/40 0.29 (c); 32 and 64 rows were not measured.
ENTITY_ROWS, ENTITY_SPREAD = 16, 40

# Rows that llama.cpp runs together.
# Language, 64 texts: 16 0.088 (c), 32 0.088 (c), 16 with 128 tokens a layer 0.095 (c); without flash attention
# 1 0.14 (c), 8 0.165, 16 0.129, 32 0.134; 16 with flash attention and a cache per row 0.136.
LLAMA_LANGUAGE_ROWS = 16
# Entities, 32 texts: 1 0.78 (c), 8 0.47 (c), 16 0.38 (c), 32 0.36 (c); 64 rows were not measured.
LLAMA_ENTITY_ROWS = 32
LLAMA_CELLS = 8192  # tokens that its cache holds: the prefix once, and all that a batch of rows adds
LLAMA_PHYSICAL = 512  # tokens that run through a layer together


class CTranslate2Peer:
    """CTranslate2 with int8 weights and its cache for static prompts.

    Sources: https://opennmt.net/CTranslate2/python/ctranslate2.Generator.html,
    https://opennmt.net/CTranslate2/generation.html#prompt-caching
    """

    def __init__(self, folder: Path) -> None:
        if "avx512dq" in Path("/proc/cpuinfo").read_text():  # it takes AVX2 unless told, also where it has AVX-512
            os.environ.setdefault("CT2_FORCE_CPU_ISA", "AVX512")
        import ctranslate2
        from transformers import AutoTokenizer

        converted = folder / "ctranslate2-int8"
        if not converted.exists():
            _write_whole(converted, lambda part: _to_ctranslate2(folder, part))
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        ctranslate2.set_log_level(40)  # errors; it warns that bf16 norms and biases become float32
        # One batch per core: a batch on two cores leaves one of them idle for a fifth of the time.
        self.generator = ctranslate2.Generator(
            str(converted), compute_type="int8", inter_threads=os.cpu_count(), intra_threads=1
        )

    def language(self, prefix: str, rows: list[str]) -> None:
        """One generated token with its score per row."""
        self._generate(prefix, rows, 1, LANGUAGE_ROWS, LANGUAGE_SPREAD)

    def entities(self, prefix: str, rows: list[str], new_tokens: int) -> None:
        """Exactly ``new_tokens`` greedy tokens per row."""
        self._generate(prefix, rows, new_tokens, ENTITY_ROWS, ENTITY_SPREAD)

    def _generate(self, prefix: str, rows: list[str], new_tokens: int, most: int, spread: int) -> list[list[int]]:
        """The new token ids of each row."""
        static = self._tokens(prefix)
        tokens = [self._tokens(row) for row in rows]
        batches: list[list[int]] = []  # places of rows, longest first
        for place in sorted(range(len(rows)), key=lambda place: -len(tokens[place])):
            if batches and len(batches[-1]) < most and len(tokens[batches[-1][0]]) - len(tokens[place]) <= spread:
                batches[-1].append(place)
            else:
                batches.append([place])
        running = [
            self.generator.generate_batch(
                [tokens[place] for place in batch],
                asynchronous=True,
                static_prompt=static,
                include_prompt_in_result=False,
                max_length=new_tokens,
                min_length=new_tokens,
                return_scores=new_tokens == 1,
            )
            for batch in batches
        ]
        replies: list[list[int]] = [[]] * len(rows)
        for batch, results in zip(batches, running, strict=True):
            for place, result in zip(batch, results, strict=True):
                replies[place] = result.result().sequences_ids[0]
        return replies

    def _tokens(self, text: str) -> list[str]:
        return self.tokenizer.convert_ids_to_tokens(self.tokenizer(text, add_special_tokens=False).input_ids)


def _to_ctranslate2(folder: Path, target: Path) -> None:
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(folder)).convert(str(target), quantization="int8")


class LlamaCppPeer:
    """llama.cpp with Q8_0 weights: rows are sequences that share the prefix's cells of one cache.

    Source: https://github.com/ggml-org/llama.cpp/blob/master/examples/batched/batched.cpp
    """

    def __init__(self, folder: Path) -> None:
        import llama_cpp
        from transformers import AutoTokenizer

        file = folder / "q8_0.gguf"
        if not file.exists():
            _write_whole(file, lambda part: _to_gguf(folder, part))
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        # A reply is a label's word: what tells them apart is its first token.
        task = load_task("language")
        words = [*task.labels.values(), *filter(None, [task.out_of_scope])]
        self.labels = [self._ids(task.reply_separator + word)[0] for word in words]

        self.api = llama_cpp
        logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)  # or it prints all tensors
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {str(file)!r}. Delete it, so that it is converted again.")
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = options.n_batch = LLAMA_CELLS
        options.n_ubatch = LLAMA_PHYSICAL
        self.most = max(LLAMA_LANGUAGE_ROWS, LLAMA_ENTITY_ROWS)
        options.n_seq_max = options.n_outputs_max = self.most + 1  # more logits than it needs would cost gigabytes
        options.n_threads = options.n_threads_batch = os.cpu_count()
        options.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        options.kv_unified = True
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        if not self.context:
            raise RuntimeError("llama.cpp cannot make a context for this model; try fewer LLAMA_CELLS.")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(LLAMA_CELLS, 0, 1)
        self.prefix: list[int] = []  # what sequence 0 holds

    def __del__(self) -> None:
        if hasattr(self, "batch"):
            self.api.llama_batch_free(self.batch)
            self.api.llama_free(self.context)
            self.api.llama_model_free(self.model)

    def language(self, prefix: str, rows: list[str]) -> None:
        """The best label per row by the logits of the labels' first tokens."""
        for logits in self._decide(prefix, rows):
            logits[self.labels].argmax()

    def entities(self, prefix: str, rows: list[str], new_tokens: int) -> None:
        """Exactly ``new_tokens`` greedy tokens per row."""
        self._generate(prefix, rows, new_tokens)

    def _decide(self, prefix: str, rows: list[str]) -> Iterator[np.ndarray]:
        """The next token's logits of each row, (vocabulary,); valid until the next one is asked for."""
        for batch in self._batches(rows, LLAMA_LANGUAGE_ROWS):
            yield from self._start(prefix, batch)

    def _generate(self, prefix: str, rows: list[str], new_tokens: int) -> list[list[int]]:
        """The new token ids of each row."""
        replies = []
        for batch in self._batches(rows, LLAMA_ENTITY_ROWS):
            chosen = [self._start(prefix, batch).argmax(1)]
            for step in range(new_tokens - 1):
                places = [len(self.prefix) + len(row) + step for row in batch]
                chosen.append(self._run([[token] for token in chosen[-1].tolist()], places).argmax(1))
            replies += np.stack(chosen, 1).tolist()
        return replies

    def _start(self, prefix: str, rows: Sequence[list[int]]) -> np.ndarray:
        """The logits after prefix and row, (rows, vocabulary); sequence ``n`` then holds both of row ``n - 1``."""
        api, shared = self.api, self._ids(prefix)
        if shared != self.prefix:
            api.llama_memory_clear(self.memory, False)
            self._run([shared], [0], first=0)
            self.prefix = shared
        for sequence in range(1, self.most + 1):
            api.llama_memory_seq_rm(self.memory, sequence, -1, -1)
        for sequence in range(1, len(rows) + 1):
            api.llama_memory_seq_cp(self.memory, 0, sequence, -1, -1)
        return self._run(rows, [len(shared)] * len(rows))

    def _run(self, rows: Sequence[list[int]], places: Sequence[int], first: int = 1) -> np.ndarray:
        """The logits after each row's last token, (rows, vocabulary), when rows go on at ``places`` of their sequences.

        The first row belongs to sequence ``first``.
        """
        batch, count = self.batch, 0
        if sum(map(len, rows)) > LLAMA_CELLS:
            raise ValueError(f"{len(rows)} rows have more than {LLAMA_CELLS} tokens; raise LLAMA_CELLS.")
        for sequence, (row, place) in enumerate(zip(rows, places, strict=True), first):
            for offset, token in enumerate(row):
                batch.token[count], batch.pos[count] = token, place + offset
                batch.n_seq_id[count], batch.seq_id[count][0] = 1, sequence
                batch.logits[count] = offset == len(row) - 1
                count += 1
        batch.n_tokens = count
        if code := self.api.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode gave {code} for {count} tokens; 1 is a full cache: raise LLAMA_CELLS.")
        logits = self.api.llama_get_logits(self.context)
        return np.ctypeslib.as_array(logits, (len(rows), self.vocabulary))

    def _batches(self, rows: list[str], most: int) -> Iterator[list[list[int]]]:
        for start in range(0, len(rows), most):
            yield [self._ids(row) for row in rows[start : start + most]]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids


def _to_gguf(folder: Path, target: Path) -> None:
    """Write the checkpoint as llama.cpp's converter and ``llama-quantize`` do: matrices Q8_0, vectors fp32.

    Source: https://github.com/ggml-org/llama.cpp/blob/master/conversion/bloom.py. There is no tokenizer in the file.
    """
    import gguf
    from safetensors import safe_open

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    hidden, layers, heads = config["hidden_size"], config["n_layer"], config["n_head"]
    writer = gguf.GGUFWriter(target, "bloom")
    writer.add_context_length(2048)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(4 * hidden)
    writer.add_block_count(layers)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BLOOM, layers)
    q8 = gguf.GGMLQuantizationType.Q8_0
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        for name in weights.keys():  # noqa: SIM118  not a dict
            if name == "lm_head.weight":  # tied to the embeddings
                continue
            tensor = weights.get_tensor(name).float()
            if ".query_key_value." in name:  # per head query, key and value → all queries, all keys, all values
                tensor = tensor.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)
            values = tensor.contiguous().numpy()
            new_name = names.get_name(name.removeprefix("transformer."), try_suffixes=(".weight", ".bias"))
            if new_name is None:
                raise ValueError(f"{folder} holds the tensor {name!r}, which no BLOOM has.")
            if values.ndim == 2:
                writer.add_tensor(new_name, gguf.quants.quantize(values, q8), raw_dtype=q8)
            else:
                writer.add_tensor(new_name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_whole(target: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a path beside ``target`` and rename it: no copy that broke off is taken for a whole one."""
    part = target.with_name(target.name + ".part")
    if part.is_dir():
        shutil.rmtree(part)
    write(part)
    part.rename(target)
