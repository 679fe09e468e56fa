"""A LoRA adapter of PEFT's, merged into a loaded model; needs neither PEFT nor a copy of the model on disk.

What LoRA (https://arxiv.org/abs/2106.09685) learned of a weight ``W`` is ``scale · B A``, two narrow matrices: ``W``
plus that is a plain weight again, so a merged model is a plain BLOOM. Read are ``adapter_config.json`` and
``adapter_model.safetensors`` as PEFT writes them, and ``recipe.json`` beside them, which names the base.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from chains.bloom import BloomForCausalLM
from chains.errors import ModelError

__all__ = ["ADAPTER_CONFIG", "ADAPTER_WEIGHTS", "RECIPE", "Adapter", "read_adapter"]

ADAPTER_CONFIG, ADAPTER_WEIGHTS, RECIPE = "adapter_config.json", "adapter_model.safetensors", "recipe.json"
PREFIX = "base_model.model."
# Options of PEFT that change what is computed, and the values with which it is ``scale · B A``.
PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (None, False),
    "fan_in_fan_out": (None, False),
    "lora_bias": (None, False),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "trainable_token_indices": (None, []),
}


@dataclass(frozen=True)
class Adapter:
    """The narrow matrices by module name, ``A`` (rank, in) and ``B`` (out, rank), what their product counts, and the
    revision of the base that they were trained on, if it is known."""

    folder: Path
    scale: float
    matrices: dict[str, tuple[torch.Tensor, torch.Tensor]]
    base_revision: str | None

    def merge_into(self, model: BloomForCausalLM) -> None:
        """Add ``scale · B A`` to the weights, in fp32, and round to the type that they have.

        Raises:
            ModelError: the model has no such module, or one of another shape.
        """
        modules = dict(model.named_modules())
        for name, (a, b) in self.matrices.items():
            weight = getattr(modules.get(name), "weight", None)
            shape = (b.shape[0], a.shape[1])
            if weight is None or tuple(weight.shape) != shape:
                found = "nothing" if weight is None else f"one of {tuple(weight.shape)}"
                raise ModelError(
                    f"The adapter {str(self.folder)!r} changes a weight {name!r} of shape {shape}, and the model has "
                    f"{found} there: it was trained on another base. Give the base that it was trained on."
                )
            delta = self.scale * (b.float() @ a.float())
            weight.data = (weight.data.float() + delta.to(weight.device)).to(weight.dtype)


def read_adapter(folder: Path) -> Adapter:
    """The LoRA adapter in a folder.

    Raises:
        ModelError: there is none, it cannot be read, or it is of a kind that is more than ``W + scale · B A``.
    """
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / ADAPTER_WEIGHTS)
        recipe = folder / RECIPE
        base_revision = json.loads(recipe.read_text(encoding="utf-8"))["base_revision"] if recipe.exists() else None
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        odd = {key: config[key] for key, plain in PLAIN.items() if config.get(key, plain[0]) not in plain}
    except Exception as error:  # what a broken file raises has no common family
        reason = str(error).strip() or type(error).__name__
        raise ModelError(
            f"The adapter {str(folder)!r} cannot be read: {reason}. Expected the folder of a LoRA adapter, with "
            f"{ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}, as 'python -m training.lora' writes it."
        ) from error
    if odd:
        listed = ", ".join(f"{key} = {value!r}" for key, value in odd.items())
        raise ModelError(
            f"The adapter {str(folder)!r} has {listed}: only plain LoRA can be merged here. Merge it with PEFT, save "
            "the whole model and give its folder."
        )
    matrices: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, kind = key.removesuffix(".weight").removeprefix(PREFIX).rpartition(".")
        matrices.setdefault(name, {})[kind] = tensor
    broken = [name for name, pair in matrices.items() if set(pair) != {"lora_A", "lora_B"}]
    broken += [
        name for name, pair in matrices.items() if any(len(m.shape) != 2 or rank not in m.shape for m in pair.values())
    ]
    if broken or not matrices:
        raise ModelError(
            f"The adapter {str(folder)!r} is damaged at {broken[0] if broken else ADAPTER_WEIGHTS!r}: expected two "
            f"matrices of rank {rank}, lora_A and lora_B, for every weight that it changes. Train or copy it anew."
        )
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    pairs = {name: (pair["lora_A"], pair["lora_B"]) for name, pair in matrices.items()}
    return Adapter(folder, scale, pairs, base_revision)
