"""Seconds per text of both tasks: ours, transformers' own generation, CTranslate2 and llama.cpp, in one run.

``python -m benchmarks.bench_speed [--model random:560m|random:1b1|embedded|FOLDER] [--rows a,b,…] [--rounds N]``

Every row runs in a process of its own, which is asked for one task at a time; rounds go through the rows in turn, so
that a busy machine costs all of them alike, and medians are compared. All use three shots and the same sentences, 40
short, 40 medium and 40 long ones (``sentences.jsonl``, CC0); a slow row takes the first few of each length.

- ``language``: one decision per text. The plain rows generate 4 tokens, as many as the longest label; the peers score
  one token, ours all labels.
- ``entities``: 32 tokens per text. Random weights write nonsense, so ours does the work of each choice and then goes
  where the text's marked names lead: the copies and forced stretches are those of a model that answers right.
- ``single``: both tasks for one text after another, as a person waits for them.

Prints the medians, ratios to ours, ours as a share of the machine's limit (multiply-adds that the layers need for a
text's own tokens, over the bf16 matrix-product rate measured in the same process between the rounds), the peak memory
of each process, and one last line of JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.bench_memory import make_random, resident

SENTENCES = Path(__file__).parent / "sentences.jsonl"
LENGTHS = ("short", "medium", "long")
SHOTS, LABEL_TOKENS, REPLY_TOKENS = 3, 4, 32
TASKS = ("language", "entities", "single")
# Texts of each length per round: about as many seconds for every row.
TEXTS = {
    "plain": {"language": 2, "entities": 1, "single": 0},
    "tuned": {"language": 8, "entities": 8, "single": 1},
    "ctranslate2": {"language": 40, "entities": 16, "single": 0},
    "llama.cpp": {"language": 16, "entities": 8, "single": 0},
    "ours": {"language": 40, "entities": 40, "single": 4},
    "ours-int8": {"language": 40, "entities": 40, "single": 4},
}
Sentence = dict[str, Any]
Runner = Callable[[str, list[Sentence]], None]


def prompts_of(task_name: str, sentences: list[Sentence]) -> tuple[str, list[str]]:
    """The prompts' common beginning, and what follows it in each."""
    from chains.prompts import load_task, prompt_template, to_prompt_text

    task = load_task(task_name)
    template = prompt_template(task, SHOTS)
    queries = [task.query.replace("{text}", to_prompt_text(sentence["text"])) for sentence in sentences]
    return template.format(text="x").removesuffix(task.query.replace("{text}", "x")), queries


def plain(folder: Path, *, dtype: str, batch: int) -> Runner:
    """``HuggingFacePipeline`` as shipped."""
    import torch
    from langchain_huggingface import HuggingFacePipeline
    from transformers import AutoTokenizer, BloomForCausalLM, TextGenerationPipeline

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = BloomForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    pipeline = TextGenerationPipeline(model=model, tokenizer=tokenizer, task="text-generation")
    llm = HuggingFacePipeline(pipeline=pipeline, batch_size=batch)

    def generate(task: str, sentences: list[Sentence]) -> None:
        new = LABEL_TOKENS if task == "language" else REPLY_TOKENS
        options = {"do_sample": False, "max_new_tokens": new, "min_new_tokens": new, "return_full_text": False}
        options |= {"pad_token_id": tokenizer.pad_token_id, "batch_size": batch}
        beginning, queries = prompts_of(task, sentences)
        llm.bind(pipeline_kwargs=options).batch([beginning + query for query in queries])

    return generate


def peer(name: str, folder: Path) -> Runner:
    """CTranslate2 or llama.cpp with the prompt's beginning cached."""
    from benchmarks.peers import CTranslate2Peer, LlamaCppPeer

    model = (CTranslate2Peer if name == "ctranslate2" else LlamaCppPeer)(folder)

    def run(task: str, sentences: list[Sentence]) -> None:
        if task == "language":
            model.language(*prompts_of(task, sentences))
        else:
            model.entities(*prompts_of(task, sentences), REPLY_TOKENS)

    return run


def ours(folder: Path) -> Runner:
    """The chains' own model; entity replies follow a script of ``REPLY_TOKENS`` tokens."""
    from chains.decoding import Decoder
    from chains.prompts import items_of, labels_of, load_task, write_reply
    from chains.registry import load

    llm = load(str(folder)).llm
    language, entities = load_task("language"), load_task("entities")
    scripts: dict[tuple[int, ...], list[int]] = {}

    class Scripted(Decoder):
        """Makes every choice, and then takes the script's."""

        def write_replies(self, prefix: Any, texts: Any, graphs: Any, rooms: Any, **options: Any) -> Any:
            self.scripts = [scripts[tuple(text)] for text in texts]
            return super().write_replies(prefix, texts, graphs, [REPLY_TOKENS] * len(texts), **options)

        def _choose(self, hidden: Any, forks: Any) -> list[int]:
            super()._choose(hidden, forks)
            return [self._scripted(fork) for fork in forks]

        def _scripted(self, fork: Any) -> int:
            token = self.scripts[fork.writing.number][len(fork.writing.reply) + fork.offset]
            if token not in fork.node.next:
                # Cut in another way within the text than alone: any name does.
                return next(iter(fork.node.next)) if fork.node.likely is None else fork.node.likely
            return token

    llm.pipeline.decoder = Scripted(llm.pipeline.model)

    def run(task: str, sentences: list[Sentence]) -> None:
        beginning, queries = prompts_of(task, sentences)
        for query, sentence in zip(queries, sentences, strict=True):
            ids = llm.pipeline._cut(query)
            names = [(text, entities.labels[kind]) for text, kind in sentence["entities"]]
            reply = entities.reply_separator + write_reply(names * REPLY_TOKENS, entities.empty)
            scripts[tuple(ids)] = llm.pipeline._cut(reply)[: 2 * REPLY_TOKENS]
        options = labels_of(language) if task == "language" else items_of(entities)
        llm.bind(pipeline_kwargs=options).batch([beginning + query for query in queries])

    return run


def matrix_rate() -> float:
    """Multiply-adds per second, times two, of a large matrix product in bf16: the best of five."""
    import torch

    one = torch.randn(2048, 2048, dtype=torch.bfloat16)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        one @ one
        seconds.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(seconds)


def work(row: str, folder: Path) -> None:
    """Answer tasks on standard input with seconds on standard output, one line of JSON each."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is no answer
    if row in ("plain", "tuned"):
        run = plain(
            folder, **({"dtype": "float32", "batch": 1} if row == "plain" else {"dtype": "bfloat16", "batch": 8})
        )
    else:
        if row == "ours-int8":
            os.environ["BLOOM_LENS_PRECISION"] = "int8"
        run = ours(folder) if row.startswith("ours") else peer(row, folder)
    print(json.dumps({"loaded": resident("VmRSS")}), file=answers)
    for line in sys.stdin:
        order = json.loads(line)
        if order["task"] == "memory":
            print(json.dumps({"peak": resident("VmHWM")}), file=answers)
            continue
        rate = matrix_rate() if row.startswith("ours") else 0.0
        start = time.perf_counter()
        if order["task"] == "single":
            for sentence in order["sentences"]:
                run("language", [sentence])
                run("entities", [sentence])
        else:
            run(order["task"], order["sentences"])
        seconds = time.perf_counter() - start
        rate = (rate + matrix_rate()) / 2 if row.startswith("ours") else 0.0
        print(json.dumps({"seconds": seconds / len(order["sentences"]), "rate": rate}), file=answers)


class Worker:
    """A row's process."""

    def __init__(self, row: str, folder: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.bench_speed", "--worker", row, str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.loaded = self.answer()["loaded"]

    def answer(self) -> dict[str, float]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended with exit code {self.process.wait()}; its message stands above")
        answer: dict[str, float] = json.loads(line)
        return answer

    def ask(self, task: str, sentences: list[Sentence] | None = None) -> dict[str, float]:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"task": task, "sentences": sentences}) + "\n")
        self.process.stdin.flush()
        return self.answer()


def measure(model: str, rows: list[str], rounds: int) -> dict[str, Any]:
    """Median seconds per text by row and task, megabytes by row, and ours as a share of the limit."""
    from chains.registry import EMBEDDED_FOLDER

    sentences = [json.loads(line) for line in SENTENCES.read_text("utf-8").splitlines()]
    by_length = [[sentence for sentence in sentences if sentence["length"] == length] for length in LENGTHS]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if model.startswith("random:"):
            make_random(model.removeprefix("random:"), folder)
        else:
            folder = EMBEDDED_FOLDER if model == "embedded" else Path(model)
        os.environ["BLOOM_LENS_DATA"] = str(Path(temporary) / "data")  # for the converted copy
        workers = {row: Worker(row, folder) for row in rows}
        samples: dict[tuple[str, str], list[float]] = {}
        shares: dict[str, list[float]] = {"language": [], "entities": []}
        rates = []
        for number in range(rounds + 1):
            for task in TASKS:
                for row, worker in workers.items():
                    count = TEXTS[row][task]
                    chosen = [sentence for group in by_length for sentence in group[:count]]
                    if not chosen:
                        continue
                    result = worker.ask(task, chosen)
                    print(f"round {number} {task:<9}{row:<12}{result['seconds']:.4f} s/text", file=sys.stderr)
                    if not number:
                        continue  # the first round warms up
                    samples.setdefault((row, task), []).append(result["seconds"])
                    if row == "ours" and task in shares:
                        rates.append(result["rate"])
                        needed = multiply_adds(folder, task, chosen)
                        shares[task].append(needed / result["rate"] / result["seconds"])
        peaks = {row: worker.ask("memory")["peak"] for row, worker in workers.items()}
        for worker in workers.values():
            worker.process.kill()
    return {
        "model": model,
        "rounds": rounds,
        "seconds_per_text": {
            row: {task: statistics.median(samples[row, task]) for task in TASKS if (row, task) in samples}
            for row in rows
        },
        "share_of_limit": {task: statistics.median(values) for task, values in shares.items() if values},
        "gflops": statistics.median(rates) / 1e9 if rates else None,
        "peak_mb": peaks,
    }


def multiply_adds(folder: Path, task: str, sentences: list[Sentence]) -> float:
    """Twice the multiply-adds of the layers' matrices for an average text's own tokens, and those of its reply."""
    from transformers import AutoTokenizer, BloomConfig

    config, tokenizer = BloomConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    _, queries = prompts_of(task, sentences)
    own = statistics.mean(len(tokenizer(query)["input_ids"]) for query in queries)
    if task == "entities":
        own += REPLY_TOKENS
    return 2.0 * 12 * config.n_layer * config.hidden_size**2 * own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="random:560m")
    parser.add_argument("--rows", default=",".join(TEXTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options.worker[0], Path(options.worker[1]))
    result = measure(options.model, options.rows.split(","), options.rounds)
    seconds, ours_ = result["seconds_per_text"], result["seconds_per_text"].get("ours", {})
    print(f"{result['model']}, medians of {result['rounds']} rounds, seconds per text (times ours)")
    print(f"{'':<12}" + "".join(f"{task:>22}" for task in TASKS) + f"{'peak memory [MB]':>20}")
    for row, times in seconds.items():
        cells = [
            f"{times[task]:.4f} ({times[task] / ours_.get(task, times[task]):.1f}×)" if task in times else "–"
            for task in TASKS
        ]
        print(f"{row:<12}" + "".join(f"{cell:>22}" for cell in cells) + f"{result['peak_mb'][row]:>20.0f}")
    for task, share in result["share_of_limit"].items():
        print(f"ours, {task}: {share:.0%} of the limit at {result['gflops']:.0f} GFLOP/s")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
