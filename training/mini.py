"""Train the embedded model from scratch: ``python -m training.mini --data DIR --out DIR [--resume]``.

The model is a plain ``BloomForCausalLM``. Three things make it learn the tasks from little data:

- every item of a sequence is trained on (``training.data``): full loss on the reply, a small one on the text;
- a tagging head on a middle layer, thrown away at the end, says of each token of the text whether a name begins,
  goes on or is absent there, once on reading it and once two tokens later: many more signals than the replies hold;
- a warm-up in which part of the replies copy words found by rule teaches copying first.

Hidden matrices are updated by Muon (https://kellerjordan.github.io/posts/muon/), all else by AdamW; the learning rate
is constant after a short warm-up and falls to zero over the last quarter. A training stopped at any moment goes on from
its last checkpoint with ``--resume`` and draws the same batches.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import BloomConfig, BloomForCausalLM, PreTrainedTokenizerFast
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

from chains.prompts import Task, to_prompt_text
from training.data import TYPES, Sampler, Sentence, entity_reply, load_data, prompt_texts, read_gold
from training.tokenizer import train_tokenizer

IGNORED = -100
TAGS = 1 + 2 * len(TYPES)  # outside, and begin / inside of each type
TAG_DELAY = 2  # tokens
SELECTED_SHARE = 0.6  # of a batch's positions get a language-model loss: the replies first, then some of the text


@dataclass(frozen=True)
class Recipe:
    """Everything that shapes the training; stored with the checkpoint."""

    vocab_size: int = 16384
    hidden_size: int = 384
    layers: int = 6
    heads: int = 8
    context: int = 256  # tokens
    batch: int = 16  # sequences
    steps: int = 8000
    learning_rate: float = 2e-3
    warmup_steps: int = 200
    decay_share: float = 0.25
    text_loss: float = 0.1
    tag_loss: float = 0.5
    copy_rate: float = 0.4  # at the start, falling to zero over copy_share of the steps
    copy_share: float = 0.1
    language_share: float = 0.2
    seed: int = 1


def hidden_states(model: BloomForCausalLM, ids: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The states of a middle layer and of the last one, each (batch, tokens, hidden), by fused attention.

    The same numbers as ``model.transformer(ids)`` up to rounding, about 1.5 times as fast on a CPU.
    ``bias`` is ``attention_bias``.
    """
    bloom = model.transformer
    x = bloom.word_embeddings_layernorm(bloom.word_embeddings(ids))
    middle = x
    for number, block in enumerate(bloom.h):
        attention = block.self_attention
        fused = attention.query_key_value(block.input_layernorm(x))
        query, key, value = (
            fused.view(*x.shape[:2], attention.num_heads, 3, attention.head_dim).transpose(1, 2).unbind(3)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        x = x + attention.dense(mixed.transpose(1, 2).flatten(2))
        inner = block.mlp.dense_h_to_4h(block.post_attention_layernorm(x))
        x = x + block.mlp.dense_4h_to_h(F.gelu(inner, approximate="tanh"))
        if number == len(bloom.h) * 2 // 3 - 1:
            middle = x
    return middle, bloom.ln_f(x)


def attention_bias(heads: int, tokens: int, device: torch.device) -> torch.Tensor:
    """ALiBi (https://arxiv.org/abs/2108.12409) and the causal mask as one (1, heads, tokens, tokens) summand."""
    slopes = build_alibi_tensor(torch.ones(1, tokens), heads, torch.float32).view(heads, 1, tokens)
    causal = torch.full((tokens, tokens), -math.inf).triu(1)
    return (slopes + causal)[None].to(device)


class Encoder:
    """Turns items into token ids with, for each position, what it should predict and how much that counts."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> None:
        self.tokenizer = tokenizer
        self.recipe = recipe

    def item(
        self, task: Task, text: str, reply: str, sentence: Sentence | None
    ) -> tuple[list[int], list[float], list[int]]:
        """ids, weight of each id as a target, and the tag of each id (``IGNORED`` outside entity texts)."""
        safe = to_prompt_text(text)
        before = task.query.split("{text}")[0]
        encoded = self.tokenizer(
            task.query.replace("{text}", safe), return_offsets_mapping=True, add_special_tokens=False
        )
        ids, weights, tags = list(encoded["input_ids"]), [], []
        for start, end in encoded["offset_mapping"]:
            inside = start >= len(before) and end <= len(before) + len(safe)
            weights.append(self.recipe.text_loss if inside else 0.0)
            masked = sentence is None or sentence.mask_types
            tags.append(IGNORED if masked or not inside else tag_of(sentence, start - len(before), end - len(before)))
        suffix = task.shot.split("{reply}")[1] + "\n"
        written = self.tokenizer(
            task.reply_separator + reply + suffix, return_offsets_mapping=True, add_special_tokens=False
        )
        made_up = bool(sentence and sentence.mask_types)
        in_type = False
        for token, (start, end) in zip(written["input_ids"], written["offset_mapping"], strict=True):
            piece = (task.reply_separator + reply + suffix)[start:end]
            ids.append(token)
            weights.append(0.0 if made_up and in_type and piece != ")" else 1.0)
            tags.append(IGNORED)
            in_type = piece == "(" or (in_type and piece != ")")
        return ids, weights, tags

    def sequence(
        self, sampler: Sampler, rng: random.Random, copy_rate: float
    ) -> tuple[list[int], list[float], list[int]]:
        """One instruction and as many whole items as fit, padded to the context."""
        task, stream = sampler.items(rng, copy_rate)
        ids = self.tokenizer(task.instruction + "\n", add_special_tokens=False)["input_ids"]
        weights, tags = [0.0] * len(ids), [IGNORED] * len(ids)
        misses = 0
        while misses < 3 and len(ids) < self.recipe.context - 16:
            item = self.item(task, *next(stream))
            if len(ids) + len(item[0]) > self.recipe.context:
                misses += 1
                continue
            for whole, part in zip((ids, weights, tags), item, strict=True):
                whole.extend(part)  # type: ignore[arg-type]
        short = self.recipe.context - len(ids)
        return ids + [self.tokenizer.pad_token_id] * short, weights + [0.0] * short, tags + [IGNORED] * short

    def batch(self, sampler: Sampler, step: int) -> dict[str, torch.Tensor]:
        """The batch of a step: ids, tags, and for the selected positions their index, target and weight."""
        recipe = self.recipe
        rng = random.Random(f"{recipe.seed}/{step}")
        copy_rate = recipe.copy_rate * max(0.0, 1 - step / (recipe.copy_share * recipe.steps))
        rows = [self.sequence(sampler, rng, copy_rate) for _ in range(recipe.batch)]
        ids = torch.tensor([row[0] for row in rows])
        # Position t predicts id t + 1; the last position of a row predicts nothing.
        targets = torch.roll(ids, -1, 1).flatten()
        weights = torch.roll(torch.tensor([row[1] for row in rows]), -1, 1)
        weights[:, -1] = 0
        flat = weights.flatten()
        noise = torch.rand(flat.shape, generator=torch.Generator().manual_seed(step))
        chosen = (flat + (flat > 0) + noise * 0.01).topk(int(SELECTED_SHARE * flat.numel())).indices
        return {
            "ids": ids,
            "tags": torch.tensor([row[2] for row in rows]),
            "chosen": chosen,
            "targets": targets[chosen],
            "weights": flat[chosen],
        }


def tag_of(sentence: Sentence, start: int, end: int) -> int:
    """0 outside names, 1 + 2 × type where a name begins, 2 + 2 × type where it goes on."""
    if sentence.text[start:end].isspace():
        return 0
    start += sentence.text[start:end][:1] == " "
    for entity in sentence.entities:
        if entity.start <= start and end <= entity.end:
            return 1 + 2 * TYPES.index(entity.type) + (start > entity.start)
    return 0


class Losses(torch.nn.Module):
    """The model with its tagging head; its forward pass gives the loss."""

    def __init__(self, model: BloomForCausalLM, recipe: Recipe, device: torch.device) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.tagger = torch.nn.Linear(recipe.hidden_size, 2 * TAGS)
        self.register_buffer("bias", attention_bias(recipe.heads, recipe.context, device), persistent=False)

    def forward(
        self, ids: torch.Tensor, tags: torch.Tensor, chosen: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The whole loss, and the mean reply loss in nats per token."""
        middle, last = hidden_states(self.model, ids, self.bias)
        logits = last.flatten(0, 1)[chosen] @ self.model.lm_head.weight.T
        each = F.cross_entropy(logits.float(), targets, reduction="none")
        answer = weights >= 1
        reply = (each * answer).sum() / answer.sum().clamp(min=1)
        text = (each * weights * ~answer).sum() / (~answer & (weights > 0)).sum().clamp(min=1)
        now, late = self.tagger(middle).float().split(TAGS, dim=-1)
        tagging = F.cross_entropy(now.flatten(0, 1), tags.flatten(), ignore_index=IGNORED)
        tagging = tagging + F.cross_entropy(
            late[:, TAG_DELAY:].flatten(0, 1), tags[:, :-TAG_DELAY].flatten(), ignore_index=IGNORED
        )
        return reply + text + self.recipe.tag_loss * torch.nan_to_num(tagging), reply.detach()


@torch.no_grad()
def exact_share(
    losses: Losses, encoder: Encoder, sampler: Sampler, sentences: list[Sentence], batch: int = 32
) -> float:
    """The share of sentences whose whole reply greedy decoding would write, without shots; found in one pass."""
    task = sampler.entities
    start = encoder.tokenizer(task.instruction + "\n", add_special_tokens=False)["input_ids"]
    rows = []
    for sentence in sentences:
        ids, weights, _ = encoder.item(task, sentence.text, entity_reply(task, sentence), sentence)
        if len(start) + len(ids) <= encoder.recipe.context:
            rows.append((start + ids, [0.0] * len(start) + weights))
    right = 0
    device = losses.tagger.weight.device
    for first in range(0, len(rows), batch):
        part = rows[first : first + batch]
        ids = torch.full((len(part), encoder.recipe.context), encoder.tokenizer.pad_token_id)
        weights = torch.zeros(ids.shape)
        for number, (row, weight) in enumerate(part):
            ids[number, : len(row)] = torch.tensor(row)
            weights[number, : len(weight)] = torch.tensor(weight)
        ids = ids.to(device)
        with torch.autocast(device.type, torch.bfloat16):
            _, last = hidden_states(losses.model, ids, losses.bias)
        answers = weights[:, 1:] >= 1
        predicted = torch.zeros_like(ids[:, 1:])
        predicted[answers] = (last[:, :-1][answers] @ losses.model.lm_head.weight.T.to(last.dtype)).argmax(-1)
        right += int(((predicted == ids[:, 1:]) | ~answers.to(device)).all(1).sum())
    return right / max(1, len(rows))


def learning_rate(recipe: Recipe, step: int) -> float:
    """Warm-up, a plateau, and a straight fall to zero."""
    decay = max(1.0, recipe.decay_share * recipe.steps)
    return recipe.learning_rate * min(1.0, (step + 1) / recipe.warmup_steps, max(0.0, (recipe.steps - step) / decay))


def make_optimizers(losses: Losses, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for embeddings, biases, norms and the tagging head."""
    matrices = [p for p in losses.model.transformer.h.parameters() if p.ndim == 2]
    known = {id(p) for p in matrices}
    rest = [p for p in losses.parameters() if id(p) not in known]
    return [
        torch.optim.Muon(matrices, lr=recipe.learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def train(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    start: Path | None,
    resume: bool,
    compiled: bool,
    minutes_between: float,
    extra: list[Path],
) -> None:
    """Train to the recipe's last step, then write the model to ``out/model``.

    ``start`` is the folder of a trained model of the recipe's shape whose weights and tokenizer are gone on from.
    """
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(recipe.seed)
    sampler = Sampler(load_data(data, extra), language_share=recipe.language_share)
    folder = start or out / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        train_tokenizer(prompt_texts(sampler, 300_000), recipe.vocab_size).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    encoder = Encoder(tokenizer, recipe)
    model = new_model(recipe, tokenizer)
    if start:
        model.load_state_dict(BloomForCausalLM.from_pretrained(start, use_safetensors=True).state_dict())
    losses = Losses(model, recipe, device).to(device)
    optimizers = make_optimizers(losses, recipe)
    checkpoint = out / "checkpoint.pt"
    first, seconds = 0, 0.0
    if resume and checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        losses.load_state_dict(state["losses"])
        for optimizer, stored in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(stored)
        first, seconds = state["step"], state["seconds"]
    step_losses = torch.compile(losses, dynamic=False) if compiled else losses
    dev = {
        path.name.split(".")[1]: list(read_gold(path))[:100]
        for path in sorted((data / "ner").glob("wikineural.*.dev.jsonl.gz"))
    }

    def save(step: int) -> None:
        partial = checkpoint.with_suffix(".partial")
        state = {
            "losses": losses.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "step": step,
            "seconds": seconds,
        }
        torch.save(state, partial)
        partial.replace(checkpoint)

    started = saved = time.monotonic()
    before = seconds
    mean = torch.zeros((), device=device)
    for step, batch in batches(encoder, sampler, first, recipe.steps, device):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, step)
        with torch.autocast(device.type, torch.bfloat16):
            loss, reply = step_losses(**batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(losses.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        mean = reply if step == first else 0.98 * mean + 0.02 * reply
        now = time.monotonic()
        seconds = before + now - started
        if (step + 1) % 100 == 0 or step + 1 == recipe.steps:
            line: dict[str, float | dict[str, float]] = {"step": step + 1, "reply_loss": round(float(mean), 4)}
            line |= {"loss": round(float(loss.detach()), 4), "minutes": round(seconds / 60, 2)}
            if (step + 1) % 500 == 0 or step + 1 == recipe.steps:
                line["exact"] = {
                    name: round(exact_share(losses, encoder, sampler, part), 3) for name, part in dev.items()
                }
            print(json.dumps(line), flush=True)
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
        if now - saved > 60 * minutes_between or step + 1 == recipe.steps:
            save(step + 1)
            saved = time.monotonic()
    write_model(losses.model, tokenizer, out / "model")


def batches(
    encoder: Encoder, sampler: Sampler, first: int, steps: int, device: torch.device
) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
    """Step number and batch, from step ``first`` on; the next batch is made by threads while a step runs."""
    from concurrent.futures import ThreadPoolExecutor

    ahead = 8 if device.type == "cuda" else 1
    with ThreadPoolExecutor(ahead) as pool:
        waiting = [pool.submit(encoder.batch, sampler, step) for step in range(first, min(steps, first + ahead))]
        for step in range(first, steps):
            batch = waiting.pop(0).result()
            if step + ahead < steps:
                waiting.append(pool.submit(encoder.batch, sampler, step + ahead))
            yield step, {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> BloomForCausalLM:
    """A fresh model of the recipe's shape."""
    config = BloomConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        seq_length=recipe.context,
    )
    return BloomForCausalLM(config)


def write_model(model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a copy of the model in bf16 as safetensors, with its tokenizer."""
    copy = BloomForCausalLM(model.config).to(torch.bfloat16)
    copy.load_state_dict(model.state_dict())
    copy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.mini", description="Train the embedded model.")
    parser.add_argument("--data", type=Path, required=True, help="folder with ner/, language/ and text/")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log and model")
    parser.add_argument("--start", type=Path, help="model folder whose weights and tokenizer to begin with")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument(
        "--no-compile", action="store_true", help="do not use torch.compile (which needs a C++ compiler)"
    )
    parser.add_argument("--checkpoint-minutes", type=float, default=3.0)
    parser.add_argument("--extra", type=Path, nargs="*", default=[], help="more gold JSONL files to train on")
    for name, value in Recipe().__dict__.items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=value)
    chosen = parser.parse_args(arguments)
    recipe = Recipe(**{name: getattr(chosen, name) for name in Recipe().__dict__})
    train(
        recipe,
        chosen.data,
        chosen.out,
        start=chosen.start,
        resume=chosen.resume,
        compiled=not chosen.no_compile,
        minutes_between=chosen.checkpoint_minutes,
        extra=chosen.extra,
    )


if __name__ == "__main__":
    main()
