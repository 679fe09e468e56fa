"""How often a model answers in int8 as it does in bf16, and what int8 does to its scores and its speed.

``python -m benchmarks.bench_agreement --data DIR [--model NAME] [--limit N]``; ``DIR`` is that of ``training.report``,
whose development files are read. Each precision runs in a process of its own. Languages agree where the answer is the
same, entities where all spans of a sentence are, with their types. Prints a table and one last JSON line.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from chains.entities import find_entities_batch
from chains.language import detect_languages
from chains.metrics import entity_scores
from chains.registry import EMBEDDED, load
from training.data import read_gold
from training.report import ENTITY_FILES, keys, language_sets


def answer(model_name: str, data: Path, limit: int) -> dict[str, dict[str, Any]]:
    """By file: what the model answers, each text's in a form that can be compared; its score 0–1; and the seconds."""
    model = load(model_name)
    results: dict[str, dict[str, Any]] = {}
    for name, rows in language_sets(data, limit, 0).items():
        chosen = random.Random(0).sample(rows, min(limit, len(rows)))
        started = time.perf_counter()
        answers = [detection.language for detection in detect_languages([text for text, _ in chosen], model)]
        seconds = time.perf_counter() - started
        right = sum(one == gold for one, (_, gold) in zip(answers, chosen, strict=True))
        results[f"language, {name}"] = {"answers": answers, "score": right / len(chosen), "seconds": seconds}
    for name in ENTITY_FILES:
        gold = list(read_gold(data / "ner" / f"{name}.jsonl.gz"))
        gold = random.Random(0).sample(gold, min(limit, len(gold)))
        started = time.perf_counter()
        found = [result.entities for result in find_entities_batch([sentence.text for sentence in gold], model)]
        seconds = time.perf_counter() - started
        results[f"entities, {name}"] = {
            "answers": [sorted(keys(entities)) for entities in found],
            "score": entity_scores([sentence.entities for sentence in gold], found)["micro_f1"],
            "seconds": seconds,
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with ner/ and language/")
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--limit", type=int, default=300, help="texts per file")
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        return print(json.dumps(answer(options.model, options.data, options.limit)))
    both = {}
    for precision in ("", "int8"):
        command = [sys.executable, "-m", "benchmarks.bench_agreement", *sys.argv[1:], "--answer"]
        variables = {**os.environ, "BLOOM_LENS_PRECISION": precision}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=variables)
        both[precision] = json.loads(done.stdout.splitlines()[-1])
    rows = []
    for name, exact in both[""].items():
        rough = both["int8"][name]
        same = [one == other for one, other in zip(exact["answers"], rough["answers"], strict=True)]
        rows.append(
            {
                "file": name,
                "texts": len(same),
                "agree": sum(same) / len(same),
                "score": exact["score"],
                "score_int8": rough["score"],
                "seconds": exact["seconds"],
                "seconds_int8": rough["seconds"],
            }
        )
    print("| file | texts | the same | score | score in int8 | points | seconds | seconds in int8 |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for row in rows:
        points = 100 * (row["score_int8"] - row["score"])
        print(
            f"| {row['file']} | {row['texts']} | {row['agree']:.1%} | {row['score']:.3f} | {row['score_int8']:.3f} "
            f"| {points:+.2f} | {row['seconds']:.1f} | {row['seconds_int8']:.1f} |"
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
