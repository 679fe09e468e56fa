"""The table of models, and ``load``: from a name to a model that answers."""

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from chains.errors import ModelError
from chains.prompts import to_prompt_text

if TYPE_CHECKING:
    from chains.pipeline import BloomLLM

__all__ = ["EMBEDDED", "MODELS", "Model", "ModelInfo", "find_model", "free_memory_bytes", "load"]

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent.parent / "models" / "bloom-mini"
# The interpreter, torch and the dashboard before any model: measured by benchmarks/bench_memory.py.
BASE_MEMORY_BYTES = 530_000_000


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model before it is loaded. ``shots`` is the default number of few-shot examples,
    ``window_tokens`` the most tokens of a text that are read at once."""

    name: str
    source: str
    revision: str | None
    parameters: int
    licence: str
    shots: int = 3
    window_tokens: int = 512

    @property
    def download_bytes(self) -> int:
        """Size of the checkpoint on the Hub (two bytes per parameter)."""
        return 2 * self.parameters

    @property
    def memory_bytes(self) -> int:
        """Resident memory that the whole program needs with this model in bf16, with a tenth for the work itself."""
        return BASE_MEMORY_BYTES + int(2 * self.parameters * 1.1)


def _bloomz(size: str, parameters: int, revision: str | None = None) -> ModelInfo:
    licence = "BigScience BLOOM RAIL 1.0"
    return ModelInfo(f"bloomz-{size}", f"bigscience/bloomz-{size}", revision, parameters, licence)


# Parameters as counted from each model's BloomConfig.
MODELS: dict[str, ModelInfo] = {
    info.name: info
    for info in (
        ModelInfo(EMBEDDED, str(EMBEDDED_FOLDER), None, 16_939_776, "CC BY-SA 4.0", shots=0, window_tokens=96),
        _bloomz("560m", 559_214_592, "a2845d7e13dd12efae154a9f1c63fcc2e0cc4b05"),
        _bloomz("1b1", 1_065_314_304),
        _bloomz("1b7", 1_722_408_960),
        _bloomz("3b", 3_002_557_440),
        _bloomz("7b1", 7_069_016_064),
    )
}


class Model:
    """A loaded model: ``llm`` is what the chains take; ``version`` names it beside every result."""

    def __init__(self, info: ModelInfo, llm: "BloomLLM") -> None:
        self.info = info
        self.name = info.name
        self.llm = llm

    @property
    def version(self) -> str:
        """The model's name and the beginning of its weights' fingerprint."""
        return f"{self.name} · {self.llm.revision[:8]}"

    def count_tokens(self, text: str) -> int:
        """The number of tokens that the model's tokenizer cuts ``text`` into, as it stands in a prompt."""
        with self.llm.pipeline.lock:
            return len(self.llm.pipeline.tokenizer(to_prompt_text(text), add_special_tokens=False)["input_ids"])

    @cached_property
    def plain_llm(self) -> object:
        """``HuggingFacePipeline`` as LangChain ships it, over the same weights: the reference in tests."""
        from langchain_huggingface import HuggingFacePipeline
        from transformers import TextGenerationPipeline

        pipeline = self.llm.pipeline
        return HuggingFacePipeline(
            pipeline=TextGenerationPipeline(model=pipeline.model, tokenizer=pipeline.tokenizer, task="text-generation")
        )


def find_model(name: str) -> ModelInfo:
    """The model of a name in the table, a Hub id (``owner/name``) or a local folder with a BLOOM checkpoint.

    Raises:
        ModelError: none of these.
    """
    if name in MODELS:
        return MODELS[name]
    for info in MODELS.values():
        if name == info.source:
            return info
    if name and (folder := Path(os.path.expanduser(name))) and os.path.isdir(folder):
        weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        return ModelInfo(str(folder), str(folder), None, weights // 2, "as the folder says")
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return ModelInfo(name, name, None, 0, "as its page on the Hub says")
    raise ModelError(
        f"There is no model {name!r}. Choose one of {', '.join(MODELS)}, give a Hub id such as 'owner/name', "
        "or the folder of a BLOOM checkpoint."
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

    Weights are safetensors only and no code of a checkpoint is run. On a CPU they are bf16 where the processor
    computes in it and fp32 otherwise, never fp16, which a CPU computes several times slower; on CUDA bf16.

    Raises:
        ModelError: no such model, no memory or no network for it, or not a BLOOM checkpoint.
    """
    info = find_model(name)
    free = free_memory_bytes()
    if info.parameters and 2 * info.parameters > free:
        raise ModelError(
            f"{info.name} needs about {2 * info.parameters / 1e9:.1f} GB for its weights, and {free / 1e9:.1f} GB of "
            "memory are free. Close other programs, or choose a smaller model."
        )
    import torch
    from transformers import AutoTokenizer, BloomConfig, BloomForCausalLM
    from transformers.utils import logging

    from chains.pipeline import make_llm

    # Only a download is slow enough for a progress bar on standard error.
    (logging.disable_progress_bar if os.path.isdir(info.source) else logging.enable_progress_bar)()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = {"revision": info.revision} if info.revision else {}
    try:
        config = BloomConfig.from_pretrained(info.source, **options)
        if config.model_type != "bloom":
            raise ModelError(f"{info.name} is a {config.model_type!r} model. Only BLOOM checkpoints can be used.")
        tokenizer = AutoTokenizer.from_pretrained(info.source, trust_remote_code=False, **options)
        model, found = BloomForCausalLM.from_pretrained(
            info.source, dtype=_dtype(device), use_safetensors=True, output_loading_info=True, **options
        )
        if found["missing_keys"]:  # transformers would go on with random numbers
            raise ValueError(f"its weights lack {min(found['missing_keys'])!r}.")
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
    model.eval().to(device)
    revision = getattr(config, "_commit_hash", None) or fingerprint(Path(info.source))
    return Model(info, make_llm(model, tokenizer, info.name, revision))


def _dtype(device: str) -> object:
    """bf16 on CUDA and on processors that multiply in it, fp32 on others."""
    import torch

    return torch.bfloat16 if device == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def fingerprint(folder: Path) -> str:
    """SHA-256 (hexadecimal) over the folder's configuration, tokenizer and weights."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        digest.update(file.name.encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
