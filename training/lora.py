"""Fine-tune a BLOOM by LoRA: ``python -m training.lora --model M --data FILE… --eval FILE… --out DIR [--resume]``.

A sequence is laid out as the chains lay out a prompt: one instruction, then as many items as fit, each a query and its
reply, so items are asked with no shot, one, two … before them. Replies are cut into tokens exactly as grounded and
forced decoding write them, and only they are learned. The base stays as it is; what is trained are PEFT's adapters
(https://arxiv.org/abs/2106.09685) of all linear layers, in fp32 beside a base in bf16 (fp32 on processors without it).

Batches are a function of (data, seed, step) alone and a checkpoint is there as a whole or not at all, so a training
stopped at any moment goes on with ``--resume`` as if it had not been (to the last bit on a processor). In ``--out``:
``adapter/`` for ``--model BASE+DIR/adapter``, ``report.json``, ``curve.png``, ``log.jsonl``, ``tensorboard/``.
"""

import argparse
import json
import math
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint as recomputed
from transformers import PreTrainedTokenizerBase

from chains.adapters import RECIPE
from chains.bloom import BloomForCausalLM
from chains.errors import ChainError, ModelError, TableError
from chains.evaluation import evaluate, tasks_of
from chains.files import written_whole
from chains.grounding import Markup, Node, reply_graph
from chains.pipeline import make_llm
from chains.prompts import load_task, to_prompt_text
from chains.registry import Model, ModelInfo, find_model, load, load_weights
from chains.remote import PREFIX
from chains.schema import Mention
from chains.weights import choose_dtype
from training.gold import Example, read_examples, without_repeats
from training.mini import IGNORED, attention_bias, hidden_states

TARGETS = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
LOSS_ROWS = 256  # replies' tokens whose logits, 250,880 each with BLOOM's vocabulary, are in memory at once
COUNTS = ("rank", "alpha", "batch", "context", "epochs", "eval_every", "eval_limit", "checkpoint_every")
MAIN_SCORE = {"language": "accuracy", "entities": "micro_f1"}


@dataclass(frozen=True)
class Recipe:
    """All that shapes a training besides model and data; stored with the adapter."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    learning_rate: float = 2e-4
    warmup_share: float = 0.05
    batch: int = 8  # sequences
    context: int = 256  # tokens of a sequence
    epochs: int = 1
    steps: int = 0  # 0: as many as the epochs have
    eval_every: int = 50  # steps
    eval_limit: int = 200  # texts of each held-out file and task
    checkpoint_every: int = 50  # steps
    seed: int = 1


@dataclass(frozen=True)
class Item:
    """The tokens of a query and its reply; ``start`` is where the reply begins."""

    task: str
    ids: list[int]
    start: int


@dataclass(frozen=True)
class Packed:
    """Tokens, and for each the token that should follow it or ``IGNORED``."""

    ids: list[int]
    targets: list[int]


class Encoder:
    """Examples → items → sequences, for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context: int) -> None:
        self.tokenizer = tokenizer
        self.context = context
        self.tasks = {name: load_task(name) for name in ("language", "entities")}
        task = self.tasks["entities"]
        self.markup = Markup(
            tokenizer,
            separator=task.reply_separator,
            empty=str(task.empty),
            words=list(task.labels.values()),
            end=task.reply_end,
        )

    def items(self, examples: Sequence[Example]) -> list[Item]:
        """What can be learned: examples with a text, a reply that grounded decoding can write, and room for both."""
        items = (self.item(example) for example in examples if example.text.strip())
        return [item for item in items if item and len(self.head(item.task)) + len(item.ids) <= self.context]

    def item(self, example: Example) -> Item | None:
        """The example's tokens, or ``None`` if its reply cannot be spelled."""
        task, text = self.tasks[example.task], to_prompt_text(example.text)
        query = self.markup.cut(task.query.replace("{text}", text))
        if isinstance(example.answer, str):
            suffix = task.shot.split("{reply}")[1] + "\n"
            reply = self.markup.cut(task.reply_separator + example.answer) + self.markup.cut(suffix)
        else:
            reply = spell(example.answer, self.markup)
            if not leads_to_end(reply_graph(text, self.markup), reply):
                return None
        return Item(example.task, query + reply, len(query))

    def head(self, task: str) -> list[int]:
        """What a sequence of the task begins with."""
        return self.markup.cut(self.tasks[task].instruction + "\n")

    def pack(self, items: Sequence[Item], rng: random.Random) -> list[Packed]:
        """Every item once, in random order, in sequences of one task each, in random order."""
        sequences = []
        for task in self.tasks:
            own = [item for item in items if item.task == task]
            rng.shuffle(own)
            head = self.head(task)
            ids, targets = list(head), [IGNORED] * len(head)
            for item in own:
                if len(ids) + len(item.ids) > self.context:
                    sequences.append(shifted(ids, targets))
                    ids, targets = list(head), [IGNORED] * len(head)
                ids += item.ids
                targets += [IGNORED] * item.start + item.ids[item.start :]
            if own:
                sequences.append(shifted(ids, targets))
        rng.shuffle(sequences)
        return sequences

    def stream(self, items: Sequence[Item], seed: int) -> Iterator[Packed]:
        """The sequences of epoch after epoch, without end."""
        for epoch in count():
            yield from self.pack(items, random.Random(f"{seed}/{epoch}"))

    def batch(self, sequences: Sequence[Packed], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """ids and targets, each (sequences, tokens), padded at the right, where causal attention never looks."""
        width = max(len(sequence.ids) for sequence in sequences)
        pad = self.tokenizer.pad_token_id
        ids = [sequence.ids + [pad] * (width - len(sequence.ids)) for sequence in sequences]
        targets = [sequence.targets + [IGNORED] * (width - len(sequence.ids)) for sequence in sequences]
        return torch.tensor(ids, device=device), torch.tensor(targets, device=device)


def shifted(ids: list[int], own: list[int]) -> Packed:
    """The sequence in which each token's target is the one after it, where ``own`` says that this is learned."""
    return Packed(ids, [*own[1:], IGNORED])


def spell(mentions: Sequence[Mention], markup: Markup) -> list[int]:
    """The tokens of the reply that names ``mentions``, cut as grounded decoding writes them."""
    if not mentions:
        return markup.empty + markup.ends[0]
    ids: list[int] = []
    for number, mention in enumerate(mentions):
        name = markup.tokenizer(
            "<" + to_prompt_text(mention.text), add_special_tokens=False, return_offsets_mapping=True
        )
        own = [token for token, (_, end) in zip(name["input_ids"], name["offset_mapping"], strict=True) if end > 1]
        ids += [
            *(markup.open_next if number else markup.open_first),
            *own,
            *markup.close,
            *markup.cut(mention.type + ")"),
        ]
    return ids + markup.ends[0]


def leads_to_end(node: Node, ids: Sequence[int]) -> bool:
    """Whether grounded decoding may write exactly this reply."""
    for token in ids:
        if token not in node.next:
            return False
        node = node.next[token]
    return node.is_end


def reply_loss(model: BloomForCausalLM, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The summed loss in nats over the targets that are not ``IGNORED``; logits are made for these alone."""
    bias = attention_bias(model.config.n_head, ids.shape[1], ids.device)
    _, hidden = hidden_states(model, ids, bias)
    learned = targets != IGNORED
    head = model.lm_head.weight

    def piece(states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy((states @ head.T).float(), wanted, reduction="sum")

    pieces = zip(hidden[learned].split(LOSS_ROWS), targets[learned].split(LOSS_ROWS), strict=True)
    return torch.stack([recomputed(piece, *part, use_reentrant=False) for part in pieces]).sum()


class Training:
    """One training of adapters: its data, model, optimizer, log, and how far it has come."""

    def __init__(self, info: ModelInfo, recipe: Recipe, data: Sequence[Path], held_out: Sequence[Path]) -> None:
        from peft import LoraConfig, get_peft_model

        self.info, self.recipe, self.held_out = info, recipe, held_out
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        measured = read_examples(held_out)
        given = read_examples(data)
        kept = without_repeats(given, (example.text for example in measured))
        bloom, self.tokenizer, self.revision = load_weights(info, choose_dtype(self.device.type))
        self.encoder = Encoder(self.tokenizer, recipe.context)
        self.items = self.encoder.items(kept)
        print(
            f"{len(given):,} examples, {len(given) - len(kept):,} of them repeats or in the held-out files, "
            f"{len(kept) - len(self.items):,} too long or with a reply that grounded decoding cannot write: "
            f"{len(self.items):,} are learned."
        )
        if not self.items:
            raise TableError("Nothing is left to learn from. Give other files as --data, or a larger --context.")
        wanted = random.Random(recipe.seed).sample(measured, min(len(measured), recipe.eval_limit))
        self.measured = self.encoder.pack(self.encoder.items(wanted), random.Random(0))
        if not self.measured:
            raise TableError("Nothing is left to measure with. Give other files as --eval, or a larger --context.")
        per_epoch = math.ceil(len(self.encoder.pack(self.items, random.Random(f"{recipe.seed}/0"))) / recipe.batch)
        self.steps = recipe.steps or per_epoch * recipe.epochs
        # Which training a checkpoint belongs to.
        content = [asdict(recipe), self.revision, self.steps, [item.ids for item in self.items]]
        self.digest = sha256(json.dumps(content).encode()).hexdigest()
        torch.manual_seed(recipe.seed)
        bloom.name_or_path = info.source  # what PEFT writes down as the base
        config = LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            lora_dropout=recipe.dropout,
            target_modules=TARGETS,
            task_type="CAUSAL_LM",
        )
        self.adapted = get_peft_model(bloom.to(self.device), config)
        self.bloom: BloomForCausalLM = self.adapted.get_base_model()
        weights = [parameter for parameter in self.adapted.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=0.01)
        self.weights = weights
        self.step = 0
        self.lines: list[dict[str, Any]] = []  # the log

    def batches(self) -> Iterator[list[Packed]]:
        """The batches from this step on, without end."""
        stream = self.encoder.stream(self.items, self.recipe.seed)
        rest = islice(stream, self.step * self.recipe.batch, None)
        while True:
            yield list(islice(rest, self.recipe.batch))

    def learn(self, sequences: Sequence[Packed]) -> float:
        """One step; the mean loss in nats per token of a reply."""
        recipe, warmup = self.recipe, max(1, round(self.recipe.warmup_share * self.steps))
        share = min((self.step + 1) / warmup, (self.steps - self.step) / max(1, self.steps - warmup))
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * share
        torch.manual_seed(recipe.seed * 1_000_003 + self.step)  # dropout is a function of the step, too
        self.adapted.train()
        ids, targets = self.encoder.batch(sequences, self.device)
        loss = reply_loss(self.bloom, ids, targets) / (targets != IGNORED).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return float(loss.detach())

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Mean loss in nats per token of a reply, over a sample of the held-out files."""
        self.adapted.eval()
        total, tokens = 0.0, 0
        for first in range(0, len(self.measured), self.recipe.batch):
            ids, targets = self.encoder.batch(self.measured[first : first + self.recipe.batch], self.device)
            total += float(reply_loss(self.bloom, ids, targets))
            tokens += int((targets != IGNORED).sum())
        return total / max(1, tokens)

    def scores(self) -> dict[str, float]:
        """What the chains make of the held-out files with the weights as they are."""
        self.adapted.eval()
        llm = make_llm(self.bloom, self.tokenizer, self.info.name, f"step-{self.step}")
        reports = report(Model(self.info, llm), self.held_out, self.recipe.eval_limit)
        return {name: float(scores[MAIN_SCORE[scores["task"]]]) for name, scores in reports.items()}

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        from peft import get_peft_model_state_dict

        state = {
            "digest": self.digest,
            "step": self.step,
            "lines": self.lines,
            "adapter": get_peft_model_state_dict(self.adapted),
            "optimizer": self.optimizer.state_dict(),
        }
        with written_whole(path) as target:
            torch.save(state, target)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            ModelError: it is of another training.
        """
        from peft import set_peft_model_state_dict

        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["digest"] != self.digest:
            raise ModelError(
                f"The checkpoint {str(path)!r} is of a training with other data, options or weights. Give those that "
                "it was begun with, or another folder as --out."
            )
        set_peft_model_state_dict(self.adapted, state["adapter"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.lines = state["step"], state["lines"]

    def write_adapter(self, folder: Path) -> None:
        """Write the adapter as PEFT does, and the recipe beside it."""
        self.adapted.save_pretrained(str(folder))
        about = {"base": self.info.name, "base_revision": self.revision[:8], "steps": self.steps, **asdict(self.recipe)}
        (folder / RECIPE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def report(model: Model, files: Sequence[Path], limit: int) -> dict[str, dict[str, Any]]:
    """``evaluate``'s report of each file and task, by a name for both."""
    return {
        f"{task} {path.name}": evaluate(path, task, model, limit=limit) for path in files for task in tasks_of(path)
    }


def train(
    model: str, recipe: Recipe, data: Sequence[Path], held_out: Sequence[Path], out: Path, *, resume: bool
) -> dict[str, Any]:
    """Train to the last step and write the adapter; the scores before and after, as in ``report.json``.

    Raises:
        ChainError: the model or a file cannot be used, or ``out`` holds a training that was not asked for.
    """
    from torch.utils.tensorboard import SummaryWriter

    info = find_model(model)
    if info.adapter or model.startswith(PREFIX):
        raise ModelError(f"{model!r} cannot be trained: give a BLOOM of this machine or the Hub, without an adapter.")
    out.mkdir(parents=True, exist_ok=True)
    saved, log = out / "checkpoint.pt", out / "log.jsonl"
    if saved.exists() and not resume:
        raise ModelError(f"{str(out)!r} holds a training. Go on with it (--resume), or give another folder.")
    training = Training(info, recipe, data, held_out)
    if saved.exists():
        training.restore(saved)
        print(f"Going on after step {training.step} of {training.steps}.")
    lines = training.lines
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))  # what came after the checkpoint comes again

    with closing(SummaryWriter(str(out / "tensorboard"), purge_step=training.step + 1)) as board:

        def note(**values: Any) -> None:
            lines.append({"step": training.step, **values})
            with log.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
            print(json.dumps(lines[-1]), flush=True)
            for name, value in {**values, **values.get("scores", {})}.items():
                if name != "scores":
                    board.add_scalar(name, value, training.step)

        def measure() -> None:
            note(held_out_loss=training.held_out_loss(), scores=training.scores())

        if not lines:
            measure()
        for sequences in training.batches():
            if training.step >= training.steps:
                break
            note(loss=training.learn(sequences))
            is_last = training.step == training.steps
            if training.step % recipe.eval_every == 0 or is_last:
                measure()
            if training.step % recipe.checkpoint_every == 0 or is_last:
                training.save(saved)
    training.write_adapter(out / "adapter")
    draw(lines, out / "curve.png")
    limit = recipe.eval_limit
    summary = {
        "before": report(load(model), held_out, limit),
        "after": report(load(f"{model}+{out / 'adapter'}"), held_out, limit),
    }
    (out / "report.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def draw(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """The curves of loss and scores as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (losses, scores) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, label in (("loss", "batches"), ("held_out_loss", "held-out texts")):
        points = [(line["step"], line[name]) for line in lines if name in line]
        losses.plot(*zip(*points, strict=True), label=label)
    measured = [line for line in lines if "scores" in line]
    for name in measured[0]["scores"]:
        scores.plot([line["step"] for line in measured], [line["scores"][name] for line in measured], "o-", label=name)
    losses.set(xlabel="step", ylabel="nats per token of a reply", title="Loss")
    scores.set(xlabel="step", ylabel="accuracy, micro-F1", title="Scores on held-out texts")
    for axes in (losses, scores):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def table(summary: dict[str, Any]) -> str:
    """The scores before and after as a Markdown table."""
    rows = ["| held-out file | texts | score | before | after |", "|---|--:|---|--:|--:|"]
    for name, before in summary["before"].items():
        score = MAIN_SCORE[before["task"]]
        after = summary["after"][name][score]
        rows.append(f"| {name} | {before['texts']:,} | {score} | {before[score]:.3f} | **{after:.3f}** |")
    return "\n".join(rows)


def merge(model: str, folder: Path) -> None:
    """Write ``<base>+<adapter>`` as a checkpoint of its own, in the type in which this machine computes.

    Raises:
        ModelError: it is no such model, or the folder is there already.
    """
    info = find_model(model)
    if not info.adapter:
        raise ModelError(f"{model!r} has no adapter to merge: give '<base>+<adapter folder>'.")
    if folder.exists():
        raise ModelError(f"{str(folder)!r} is there already. Give a new folder.")
    bloom, tokenizer, revision = load_weights(info, choose_dtype("cpu"))
    bloom.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"{info.name} at {revision} is merged into {folder}.")


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0, or 1 after an error in words."""
    parser = argparse.ArgumentParser(prog="python -m training.lora", description="Fine-tune a BLOOM by LoRA.")
    parser.add_argument("--model", required=True, help="base; for --merge BASE+ADAPTER")
    parser.add_argument(
        "--data", type=Path, nargs="+", help="gold files: JSON Lines with entities, tables with language"
    )
    parser.add_argument("--eval", type=Path, nargs="+", help="gold files to measure with; their texts are not learned")
    parser.add_argument("--out", type=Path, help="folder for adapter, checkpoint, log, curves")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--merge", type=Path, metavar="FOLDER", help="train nothing: write the merged model there")
    defaults = asdict(Recipe())
    for name, value in defaults.items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=value, help=f"default: {value}")
    chosen = parser.parse_args(arguments)
    if not chosen.merge and not (chosen.data and chosen.eval and chosen.out):
        parser.error("give --data, --eval and --out, or --merge")
    recipe = Recipe(**{name: getattr(chosen, name) for name in defaults})
    for name in COUNTS:
        if getattr(recipe, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, not {getattr(recipe, name)}")
    try:
        if chosen.merge:
            merge(chosen.model, chosen.merge)
        else:
            print(table(train(chosen.model, recipe, chosen.data, chosen.eval, chosen.out, resume=chosen.resume)))
    except ChainError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
