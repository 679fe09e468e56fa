"""Weights on disk and in memory, never two copies of them: convert a checkpoint once, map it, pack its layers.

A tensor is mapped from its file by itself, so that dropping it frees its pages. The layers of a bf16 model on a CPU are
packed into memory one by one; the vocabulary matrix stays in its file, and only the rows that are used become resident.
Files are read as https://github.com/huggingface/safetensors#format says: the header's size in 8 bytes, a JSON header,
then the data. Pickled weights are never opened.
"""

import fcntl
import json
import math
import mmap
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BloomConfig, GenerationConfig

from chains.bloom import BloomForCausalLM
from chains.errors import ModelError

__all__ = [
    "Int8Linear",
    "PackedLinear",
    "can_compute_int8",
    "can_pack",
    "choose_dtype",
    "convert",
    "holds",
    "load_mapped",
    "pack",
]

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TINY = 1e-12  # instead of a largest number of zero
MOST = 126  # of a token's numbers in int8
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
VOCABULARY, HEAD = "transformer.word_embeddings.weight", "lm_head.weight"
PACKED_FOR_ROWS = 64  # the number of rows the order is best for
CHUNK_BYTES = 8_000_000
SPARE_BYTES = 50_000_000  # tokenizer, configuration and a disk that is not quite full afterwards
MAX_HEADER_BYTES = 100_000_000  # as in the safetensors library


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: its bytes are ``file[start:start + size]``."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        return self.count * self.dtype.itemsize


def choose_dtype(device: str) -> torch.dtype:
    """bf16 on CUDA and on processors that multiply in it, fp32 on others.

    Never fp16 on a CPU, which computes it several times slower than either.
    """
    supported = device == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if supported else torch.float32


def holds(folder: Path, dtype: torch.dtype) -> bool:
    """Whether every tensor of the checkpoint is stored in ``dtype``, so that it can be mapped where it lies."""
    return all(tensor.dtype == dtype for tensor in _stored(folder).values())


def convert(source: Path, target: Path, dtype: torch.dtype) -> None:
    """Write the checkpoint ``source`` with its weights in ``dtype`` into the folder ``target``, unless that exists.

    All or nothing: written beside ``target`` and renamed. One process does the work, others wait for it; what a killed
    one left is removed. Needs memory for one chunk of a tensor only.

    Raises:
        ModelError: not enough disk space.
        OSError, ValueError: a file that cannot be read or written.
    """
    stored = _stored(source)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)  # the older name
    if config.get("tie_word_embeddings", True):
        stored.pop(HEAD, None)
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(target.parent, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # freed by the system, however the process ends
        if target.is_dir():
            return
        partial = target.with_name(target.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        needed = sum(tensor.count for tensor in stored.values()) * dtype.itemsize + SPARE_BYTES
        free = shutil.disk_usage(target.parent).free
        if needed > free:
            raise ModelError(
                f"The model's converted copy needs {needed / 1e9:.2f} GB in {str(target.parent)!r}, and "
                f"{free / 1e9:.2f} GB are free there. Free some space, or set BLOOM_LENS_DATA to another disk."
            )
        try:
            partial.mkdir()
            for file in source.glob("*.json"):
                if file.name not in {"config.json", INDEX}:
                    _write(partial / file.name, [file.read_bytes()])
            config = {**config, "dtype": str(dtype).removeprefix("torch.")}
            _write(partial / "config.json", [json.dumps(config, indent=2).encode()])
            _write(partial / WEIGHTS, _safetensors(stored, dtype))
            _sync(partial)
            partial.rename(target)
            os.fsync(lock)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    finally:
        os.close(lock)


def _stored(folder: Path) -> dict[str, Stored]:
    """Every tensor of a checkpoint in one file or several, by its name in ``BloomForCausalLM``."""
    files = {folder / WEIGHTS}
    if not (folder / WEIGHTS).exists():
        if not (folder / INDEX).exists():
            raise FileNotFoundError(f"there is no {WEIGHTS} and no {INDEX}; pickled weights are not read.")
        shards = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        files = {folder / Path(shard).name for shard in shards}
    found = {}
    for file in sorted(files):
        with file.open("rb") as content:
            header_size = int.from_bytes(content.read(8), "little")
            if header_size > min(MAX_HEADER_BYTES, file.stat().st_size - 8):
                raise ValueError(f"{file.name} is no safetensors file, or cut off.")
            header: dict[str, Any] = json.loads(content.read(header_size))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if name.endswith(".causal_mask"):
                continue  # old checkpoints keep it; it holds no weights
            if entry["dtype"] not in DTYPES:
                raise ValueError(f"{name!r} is stored as {entry['dtype']}; expected one of {', '.join(DTYPES)}.")
            start, end = (8 + header_size + offset for offset in entry["data_offsets"])
            tensor = Stored(file, DTYPES[entry["dtype"]], tuple(entry["shape"]), start)
            if start < 0 or end != start + tensor.size or end > file.stat().st_size:
                raise ValueError(f"{file.name} is cut off or damaged at {name!r}.")
            # The base model's checkpoints lack the prefix.
            found[name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"] = tensor
    return found


def _safetensors(stored: dict[str, Stored], dtype: torch.dtype) -> Iterator[bytes | memoryview]:
    """The content of a safetensors file with these tensors in ``dtype``, piece by piece."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in stored.items():
        start, end = end, end + tensor.count * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": tensor.shape, "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    yield len(head).to_bytes(8, "little") + head
    for tensor in stored.values():
        with tensor.file.open("rb") as content:
            content.seek(tensor.start)
            left = tensor.size
            while left:
                chunk = bytearray(content.read(min(CHUNK_BYTES, left)))
                left -= len(chunk)
                values = torch.frombuffer(chunk, dtype=tensor.dtype).to(dtype)
                yield values.view(torch.uint8).numpy().data


def _write(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    with path.open("wb") as file:
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def load_mapped(folder: Path, config: BloomConfig) -> BloomForCausalLM:
    """The checkpoint as a model whose weights, in the type they are stored in, all lie in its files.

    Raises:
        OSError, ValueError: weights that cannot be read, are missing, or are not this model's.
    """
    with torch.device("meta"):
        model = BloomForCausalLM(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    stored = _stored(folder)
    if config.tie_word_embeddings:  # the head is the vocabulary matrix, whether it is stored again or not
        del shapes[HEAD]
        stored.pop(HEAD, None)
    for name in [*shapes, *stored]:
        if name not in stored:
            raise ValueError(f"its weights lack {name!r}.")
        if name not in shapes:
            raise ValueError(f"its weights hold {name!r}, which is no part of the model.")
        if stored[name].shape != shapes[name]:
            raise ValueError(f"{name!r} has the shape {stored[name].shape}; expected {shapes[name]}.")
    model.load_state_dict({name: _mapped(stored[name], name == VOCABULARY) for name in shapes}, False, assign=True)
    model.tie_weights()
    if (folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.requires_grad_(False).eval()


def _mapped(tensor: Stored, is_sparse: bool) -> torch.Tensor:
    """The tensor in its file. A page becomes resident when it is read; if ``is_sparse``, no others with it."""
    before = tensor.start % mmap.ALLOCATIONGRANULARITY
    with tensor.file.open("rb") as file:
        if is_sparse and hasattr(os, "posix_fadvise"):
            # What is in the system's cache already would come in blocks of up to megabytes: 2,000 rows of
            # bloomz-560m made 504 MB resident, and make 10 MB this way.
            os.posix_fadvise(file.fileno(), tensor.start, tensor.size, os.POSIX_FADV_DONTNEED)
        # Copy on write because torch asks for memory that may be written; nothing writes there.
        size, offset = before + tensor.size, tensor.start - before
        memory = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY, offset=offset)
    if is_sparse and hasattr(mmap, "MADV_RANDOM"):
        memory.madvise(mmap.MADV_RANDOM)
    return torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.count, offset=before).view(tensor.shape)


class PackedLinear(nn.Module):
    """``nn.Linear`` in bf16 with its weight (out, in) in the order in which oneDNN multiplies; any input (…, in)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), PACKED_FOR_ROWS)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._product(x, "none", "")

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        """``gelu(self(x))`` by BLOOM's approximation, in one pass over the result."""
        return self._product(x, "gelu", "tanh")

    def plus(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """``self(x) + residual`` in one pass over the result."""
        total: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")
        return total

    def _product(self, x: torch.Tensor, then: str, way: str) -> torch.Tensor:
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, then, [], way)
        return product


class Int8Linear(nn.Module):
    """``nn.Linear`` with its weight (out, in) in int8, one scale a row, and inputs in int8, one scale a token.

    A token's numbers become ``round(126 x / max|x|)``, so its neighbours in a batch change nothing (LLM.int8(),
    https://arxiv.org/abs/2208.07339, section 2; its columns of outliers in 16 bits are left out).
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        self.scales: torch.Tensor = weight.abs().amax(1).clamp(min=TINY) / 127
        whole = (weight / self.scales[:, None]).round().to(torch.int8)
        self.weight = nn.Parameter(torch.ops.onednn.qlinear_prepack(whole, None), requires_grad=False)
        self.bias: torch.Tensor = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
        self.zeros: torch.Tensor = torch.zeros(len(self.scales), dtype=torch.int32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        largest = x.abs().amax(-1, keepdim=True).clamp_(min=TINY)
        # 126 and not 127, which bf16 may round up to 128, and that is no signed byte.
        whole = (x * (MOST / largest)).round_().to(torch.int8)
        # oneDNN multiplies bytes without a sign by bytes with one, so inputs are moved by 128, which is to flip their
        # first bit. torch converts to signed bytes six times as fast as to the others.
        whole = whole.view(torch.uint8).bitwise_xor_(128)
        product: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            whole, 1 / MOST, 128, self.weight, self.scales, self.zeros, None, 1.0, 0, x.dtype, "none", [], ""
        )
        return torch.addcmul(self.bias, product, largest)


def can_compute_int8() -> bool:
    """Whether this processor adds products of bytes without overflow (VNNI), and this torch uses it."""
    return bool(torch.cpu._is_vnni_supported()) and hasattr(torch.ops.onednn, "qlinear_pointwise")


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this machine's torch has packed products for models in ``dtype`` on the CPU."""
    names = ("_reorder_linear_weight", "_linear_pointwise")
    return dtype == torch.bfloat16 == choose_dtype("cpu") and all(hasattr(torch.ops.mkldnn, name) for name in names)


def pack(model: BloomForCausalLM, kind: type[PackedLinear] | type[Int8Linear] = PackedLinear) -> None:
    """Move all but the vocabulary matrix of a mapped model into memory, the blocks' linear layers as ``kind``.

    One tensor at a time: the pages of each are freed as soon as it is copied.
    """
    # oneDNN and torch's layer above it each keep what they compiled for the last 1,024 shapes, 0.1–0.5 MB a shape:
    # after 370 sentences of the gold sample 500 MB. All layers share their shapes, so 16 are as fast.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "16")
    # No list of all modules here: it would keep every replaced one until the end.
    for block in model.transformer.h:
        for parent in (block.self_attention, block.mlp):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, kind(child))
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data = parameter.data.clone()
