"""The table of models, and ``load``: from a name to a model that answers."""

import glob
import hashlib
import os
import re
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chains.config import load_settings
from chains.errors import ModelError
from chains.prompts import to_prompt_text
from chains.remote import PREFIX, WINDOW_BYTES, RemoteLLM, connect, parse_address

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from chains.bloom import BloomForCausalLM
    from chains.pipeline import BloomLLM

__all__ = [
    "EMBEDDED", "MODELS", "Model", "ModelInfo", "RemoteModel",
    "find_model", "free_memory_bytes", "load", "load_weights",
]  # fmt: skip

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent.parent / "models" / "bloom-mini"
# Measured by benchmarks/bench_memory.py: the interpreter, torch and the dashboard before any model; what any model's
# work takes (tokenizer, libraries that load late, compiled kernels); and what grows with the layers (keys, values,
# activations, touched rows of the vocabulary): together 0.71 GB for the embedded model, 1.52 GB for bloomz-560m.
BASE_MEMORY_BYTES = 530_000_000
WORK_MEMORY_BYTES = 150_000_000
WORK_PER_LAYER_BYTE = 0.4
COMMIT = re.compile(r"[0-9a-f]{40}")
CONTEXT_TOKENS = 2_048  # of a checkpoint that does not say; section 3.2 of https://arxiv.org/abs/2211.05100


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model before it is loaded. ``shots`` is the default number of few-shot examples,
    ``window_tokens`` the most tokens of a text that are read at once; ``vocabulary`` of the parameters are rows of the
    vocabulary matrix, which stays on disk. ``revision`` is the commit of a Hub model that is downloaded; without one,
    whatever stands on its main branch, if the user allows that. ``adapter`` is the folder of a LoRA adapter to merge
    into the weights."""

    name: str
    source: str
    revision: str | None
    parameters: int
    licence: str
    shots: int = 3
    window_tokens: int = 512
    vocabulary: int = 0
    adapter: str | None = None

    @property
    def download_bytes(self) -> int:
        """Size of the checkpoint on the Hub (two bytes per parameter)."""
        return 2 * self.parameters

    @property
    def layer_bytes(self) -> int:
        """Size of all but the vocabulary matrix in bf16: what is in memory for as long as the model is."""
        return 2 * (self.parameters - self.vocabulary)

    @property
    def memory_bytes(self) -> int:
        """Resident memory that the whole program needs with this model in bf16 at work."""
        return BASE_MEMORY_BYTES + WORK_MEMORY_BYTES + int((1 + WORK_PER_LAYER_BYTE) * self.layer_bytes)


def _bloomz(size: str, hidden: int, parameters: int, revision: str | None = None) -> ModelInfo:
    return ModelInfo(
        f"bloomz-{size}",
        f"bigscience/bloomz-{size}",
        revision,
        parameters,
        "BigScience BLOOM RAIL 1.0",
        vocabulary=250_880 * hidden,
    )


# Parameters as counted from each model's BloomConfig. Commits are those that two sources name; see _require_pin.
MODELS: dict[str, ModelInfo] = {
    info.name: info
    for info in (
        ModelInfo(
            EMBEDDED,
            str(EMBEDDED_FOLDER),
            None,
            16_939_776,
            "CC BY-SA 4.0",
            shots=0,
            window_tokens=96,
            vocabulary=16_384 * 384,
        ),
        _bloomz("560m", 1024, 559_214_592, "a2845d7e13dd12efae154a9f1c63fcc2e0cc4b05"),
        _bloomz("1b1", 1536, 1_065_314_304),
        _bloomz("1b7", 2048, 1_722_408_960),
        _bloomz("3b", 2560, 3_002_557_440),
        _bloomz("7b1", 4096, 7_069_016_064, "2f4c4f3ebcf171dbbe2bae989ea2d2f3d3486a97"),
    )
}


class Model:
    """A loaded model: ``llm`` is what the chains take; ``version`` names it beside every result."""

    can_score = True  # labels, by forced decoding

    def __init__(self, info: ModelInfo, llm: "BloomLLM") -> None:
        self.info = info
        self.name = info.name
        self.llm = llm

    @property
    def version(self) -> str:
        """The model's name and the beginning of its weights' fingerprint (``base+adapter`` where there are two), with
        the precision if it is a lower one."""
        precision, _, revision = self.llm.revision.rpartition("-")
        parts = "+".join(part[:8] for part in revision.split("+"))
        return f"{self.name} · {parts}" + f" · {precision}" * bool(precision)

    def count_tokens(self, text: str) -> int:
        """The number of tokens that the model's tokenizer cuts ``text`` into, as it stands in a prompt."""
        with self.llm.pipeline.lock:
            return len(self.llm.pipeline.tokenizer(to_prompt_text(text), add_special_tokens=False)["input_ids"])

    def plain_options(self, max_new_tokens: int) -> dict[str, Any]:
        """What a chain binds to ``llm`` as ``pipeline_kwargs`` to generate freely, greedily, up to the line's end."""
        from chains.pipeline import plain_options

        return plain_options(max_new_tokens, self.llm.pipeline.tokenizer)

    def cut(self, prompt: str, query: str) -> list[bytes]:
        """The bytes of each token of a prompt whose last lines are made from ``query``, as the model reads it."""
        tokens: list[bytes] = self.llm.pipeline.cut(prompt, query)
        return tokens

    @property
    def context_tokens(self) -> int:
        """The longest sequence of tokens that the model was trained on; BLOOM goes beyond it, but answers worse."""
        return int(getattr(self.llm.pipeline.model.config, "seq_length", CONTEXT_TOKENS))

    @cached_property
    def plain_llm(self) -> object:
        """``HuggingFacePipeline`` as LangChain ships it, over the same weights: the reference in tests."""
        from langchain_huggingface import HuggingFacePipeline
        from transformers import TextGenerationPipeline

        pipeline = self.llm.pipeline
        return HuggingFacePipeline(
            pipeline=TextGenerationPipeline(model=pipeline.model, tokenizer=pipeline.tokenizer, task="text-generation")
        )


class RemoteModel(Model):
    """A model behind a server (``openai:<url>#<model>``): the same chains, no weights in this process."""

    llm: RemoteLLM  # type: ignore[assignment]  # all that looks into a pipeline is overridden

    def __init__(self, info: ModelInfo, llm: RemoteLLM) -> None:
        self.info = info
        self.name = info.name
        self.llm = llm
        self.can_score = llm.can_score

    @property
    def version(self) -> str:
        """The server's host and the model's name there; which weights answer, only the server knows."""
        return f"openai:{self.llm.address.host}/{self.llm.address.model} · remote"

    def count_tokens(self, text: str) -> int:
        """The number of UTF-8 bytes: no byte-level tokenizer, as BLOOM's, makes more tokens of a text than that."""
        return len(to_prompt_text(text).encode())

    def cut(self, prompt: str, query: str) -> list[bytes]:
        """Always raises ``ModelError``."""
        raise ModelError(
            f"Only the server of {self.name} has its tokenizer: choose a model of this machine for tokens."
        )

    @property
    def context_tokens(self) -> int:
        """What every BLOOM was trained on."""
        return CONTEXT_TOKENS

    def plain_options(self, max_new_tokens: int) -> dict[str, Any]:
        """See ``Model.plain_options``."""
        return {"max_new_tokens": max_new_tokens}


def find_model(name: str) -> ModelInfo:
    """The model of a name in the table, a Hub id (``owner/name`` or ``owner/name@<commit>``), a local folder with a
    BLOOM checkpoint, one of these with a LoRA adapter (``<base>+<adapter folder>``), or a model behind a server
    (``openai:<url>#<model>``).

    Raises:
        ModelError: none of these.
    """
    if name.startswith(PREFIX):
        return ModelInfo(name, parse_address(name).url, None, 0, "as its server says", window_tokens=WINDOW_BYTES)
    if name in MODELS:
        return MODELS[name]
    for info in MODELS.values():
        if name == info.source:
            return info
    if name and (folder := Path(os.path.expanduser(name))) and os.path.isdir(folder):
        if folder.resolve() == EMBEDDED_FOLDER.resolve():
            return MODELS[EMBEDDED]
        weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        return ModelInfo(str(folder), str(folder), None, weights // 2, "as the folder says")
    base, plus, adapter = name.partition("+")
    if plus and adapter:
        info = find_model(base)
        return replace(info, name=f"{info.name}+{adapter}", adapter=os.path.expanduser(adapter))
    base, at, commit = name.partition("@")
    if at and COMMIT.fullmatch(commit):
        return replace(find_model(base), revision=commit)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and "@" not in name:
        return ModelInfo(name, name, None, 0, "as its page on the Hub says")
    raise ModelError(
        f"There is no model {name!r}. Choose one of {', '.join(MODELS)}, give a Hub id such as 'owner/name' or "
        "'owner/name@<the 40 digits of a commit>', the folder of a BLOOM checkpoint, '<one of these>+<folder of a LoRA "
        "adapter>', or 'openai:<url>#<model>' for a model behind a server."
    )


def free_memory_bytes() -> int:
    """Memory that a new allocation may take: the machine's, or the container's if that is less."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return max(0, free)


def load(name: str) -> Model:
    """The model of that name, ready to answer. Slow; whoever calls this keeps the result.

    Weights are safetensors only and no code of a checkpoint is run; which type they have ``weights.choose_dtype`` says.

    Raises:
        ModelError: no such model, no memory or no network for it, or not a BLOOM checkpoint.
        ChainError: the model's server does not answer as it should.
    """
    info = find_model(name)
    if name.startswith(PREFIX):
        return RemoteModel(info, connect(parse_address(name), load_settings().api_key))
    free = free_memory_bytes()
    if info.layer_bytes > free:
        raise ModelError(
            f"{info.name} needs about {info.layer_bytes / 1e9:.1f} GB for its layers, and {free / 1e9:.1f} GB of "
            "memory are free. Close other programs, or choose a smaller model."
        )
    import torch

    from chains import weights
    from chains.pipeline import make_llm

    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = load_settings().precision
    if precision not in ("", "int8") or (precision and (device == "cuda" or not weights.can_compute_int8())):
        raise ModelError(
            f"BLOOM_LENS_PRECISION is {precision!r}: expected 'int8', on a processor with VNNI and without a GPU, or "
            "nothing. Unset it for the type that suits this machine."
        )
    model, tokenizer, revision = load_weights(info, weights.choose_dtype(device))
    if precision:
        weights.pack(model, weights.Int8Linear)
        revision = f"{precision}-{revision}"  # its answers are not those of the exact weights
    elif device == "cpu" and weights.can_pack(model.dtype):
        weights.pack(model)
    # More rows together are faster: a share of what is free, from about 10 to 128 rows of bloomz-560m.
    row_bytes = min(768_000_000, max(64_000_000, free_memory_bytes() // 16))
    return Model(info, make_llm(model.to(device), tokenizer, info.name, revision, row_bytes))


def load_weights(info: ModelInfo, dtype: "torch.dtype") -> tuple["BloomForCausalLM", "PreTrainedTokenizerBase", str]:
    """A model of this machine as it is on disk, its adapter merged, with its tokenizer and its revision.

    The weights are mapped from a checkpoint in ``dtype`` (but for those that an adapter changes) and ask for no
    gradients.

    Raises:
        ModelError: the weights or the adapter cannot be found or read, or do not fit each other.
    """
    from transformers import AutoTokenizer, BloomConfig

    from chains import weights
    from chains.adapters import read_adapter

    adapter = read_adapter(Path(info.adapter)) if info.adapter else None
    try:
        folder, revision = _checkpoint(info, dtype)
        config = BloomConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model = weights.load_mapped(folder, config)
    except ModelError:
        raise
    except Exception as error:  # what a broken checkpoint raises has no common family
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{info.name} could not be loaded from {info.source!r}: {reason} "
            "Check the network connection for a first download, or choose the embedded model."
        ) from error
    if tokenizer.pad_token_id is None:
        raise ModelError(f"The tokenizer of {info.name} has no padding token. Use a BLOOM checkpoint's own tokenizer.")
    tokenizer.padding_side = "left"
    # A text that completes a special token, as "s" does in "<s>(", is cut as plain text.
    tokenizer.split_special_tokens = True
    if adapter:
        if adapter.base_revision and adapter.base_revision[:8] != revision[:8]:
            raise ModelError(
                f"The adapter {info.adapter!r} was trained on the base's revision {adapter.base_revision[:8]}, and "
                f"{info.source!r} is at {revision[:8]}. Give the base that it was trained on, or train it anew."
            )
        adapter.merge_into(model)
        revision = f"{revision[:8]}+{fingerprint(adapter.folder)}"
    return model, tokenizer, revision


def _checkpoint(info: ModelInfo, dtype: "torch.dtype") -> tuple[Path, str]:
    """The folder with the model's weights in ``dtype``, and their revision.

    A checkpoint in another type is converted once into ``models/<name>-<revision>-<dtype>`` in the data folder; for a
    model of the Hub that copy is all that later loads look at, so they need no network.
    """
    from huggingface_hub import snapshot_download
    from transformers import BloomConfig

    from chains import weights

    copies, suffix = load_settings().data_folder / "models", str(dtype).removeprefix("torch.")
    is_local = os.path.isdir(info.source)
    base = info.name.partition("+")[0]  # the copy is without an adapter
    name = Path(info.source).resolve().name if is_local else base.replace("/", "--")
    if not is_local:
        pattern = f"{glob.escape(name)}-{(info.revision or '?' * 8)[:8]}-{suffix}"
        for copy in sorted(copies.glob(pattern), key=os.path.getmtime, reverse=True):
            return copy, copy.name.split("-")[-2]
        _require_pin(info)
    config = BloomConfig.from_pretrained(info.source, revision=info.revision or "main")
    if config.model_type != "bloom":
        raise ModelError(f"{info.name} is a {config.model_type!r} model. Only BLOOM checkpoints can be used.")
    if is_local:
        source = Path(info.source)
        revision = fingerprint(source)
    else:
        files = {"allow_patterns": ["*.json", "*.safetensors"], "ignore_patterns": ["*/*"]}
        download = partial(snapshot_download, info.source, revision=info.revision, **files)
        try:
            source = Path(download())
        except Exception:  # no network: an earlier download will do
            source = Path(download(local_files_only=True))
        revision = source.name  # the commit
    if weights.holds(source, dtype):
        return source, revision
    copy = copies / f"{name}-{revision[:8]}-{suffix}"
    weights.convert(source, copy, dtype)
    return copy, revision[:8]


def _require_pin(info: ModelInfo) -> None:
    """Raise ``ModelError`` if nobody says which commit to download, and the user does not allow any."""
    if info.revision is None and not load_settings().allows_unpinned:
        raise ModelError(
            f"No commit of {info.source!r} is pinned, so its owner could change what is downloaded. Name one, as in "
            f"'{info.source}@<commit>': its 40 digits stand on the model's page on the Hub under 'Files and versions'. "
            "Or set BLOOM_LENS_UNPINNED=1 to take what is there now, which is then kept."
        )


def fingerprint(folder: Path) -> str:
    """SHA-256 (hexadecimal) over the folder's configuration, tokenizer and weights."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        digest.update(file.name.encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
