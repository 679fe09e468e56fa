"""Resident memory of one process with the dashboard's packages, before a model, with it, and after work.

``python -m benchmarks.bench_memory [MODEL …]``; a model is a name, a folder, or ``random:560m`` / ``random:1b1`` for
random weights in BLOOMZ's real shape, stored in fp16 as on the Hub, so that their first load converts them. The work is
the shipped gold sample in pieces, as a batch job does it (``--rows N``: only so many of its sentences, spread evenly);
it ends with rows of the vocabulary matrix all over it, as BLOOM's own tokenizer would take them: the random models have
the embedded one's, which knows the first 16,384. Rows get the little memory that they get where less than 1 GB is
free. Each part runs in a process of its own; prints a table and one last JSON line.
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHAPES = {"560m": (1024, 24, 16), "1b1": (1536, 24, 16)}  # hidden, layers, heads
BLOOMZ_VOCABULARY = 250_880
GOLD = Path(__file__).parent.parent / "tests" / "gold"
PIECE = 32  # sentences at once
TOUCHED = 10_000  # tokens
SMALL_ROW_BYTES = 64_000_000  # what chains.registry.load grants where less than 1 GB is free
COLUMNS = ("base", "loaded", "working", "touched", "peak")


def measure(model_name: str, count: int) -> dict[str, float]:
    """Megabytes (10⁶ bytes) resident: ``base`` without a model, ``loaded``, ``working`` after ``count`` sentences,
    ``touched`` after many tokens more, the ``peak`` of all; and the seconds of loading and of work."""
    import altair  # noqa: F401  the dashboard's own imports
    import pandas  # noqa: F401
    import streamlit.web.bootstrap  # noqa: F401
    import torch

    import chains.pipeline  # noqa: F401
    from chains.analysis import analyse
    from chains.registry import load

    sizes = {"base": resident("VmRSS")}
    started = time.perf_counter()
    model = load(model_name)
    sizes |= {"load_s": time.perf_counter() - started, "loaded": resident("VmRSS"), "load_peak": resident("VmHWM")}
    model.llm.pipeline.row_bytes = SMALL_ROW_BYTES
    if count:
        started = time.perf_counter()
        texts = sentences()[:: max(1, len(sentences()) // count)][:count]
        for place in range(0, len(texts), PIECE):
            analyse(texts[place : place + PIECE], model)
        sizes |= {"work_s": time.perf_counter() - started, "working": resident("VmRSS")}
        vocabulary = model.llm.pipeline.decoder.bloom.word_embeddings
        vocabulary(torch.randint(vocabulary.num_embeddings, (TOUCHED,)))
        sizes["touched"] = resident("VmRSS")
    return sizes | {"peak": resident("VmHWM")}


def sentences() -> list[str]:
    """The texts of the shipped gold sample."""
    with (GOLD / "entities.jsonl").open(encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    with (GOLD / "language.csv").open(encoding="utf-8", newline="") as file:
        return texts + [row["text"] for row in csv.DictReader(file)]


def resident(field: str) -> float:
    """A line of /proc/self/status in megabytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024 / 1e6


def make_random(size: str, folder: Path) -> None:
    """An fp16 checkpoint with random weights in BLOOMZ's shape, with the embedded model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, BloomConfig, BloomForCausalLM

    from chains.registry import EMBEDDED_FOLDER

    hidden, layers, heads = SHAPES[size]
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)
    torch.set_default_dtype(torch.float16)
    config = BloomConfig(vocab_size=BLOOMZ_VOCABULARY, hidden_size=hidden, n_layer=layers, n_head=heads)
    BloomForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(arguments: list[str]) -> None:
    """Measure each model in new processes: its first use if that converts it, then load and work."""
    count = len(sentences())
    if "--rows" in arguments:
        place = arguments.index("--rows")
        count = int(arguments[place + 1])
        del arguments[place : place + 2]
    results = {}
    for name in arguments or ["embedded"]:
        with tempfile.TemporaryDirectory() as folder:
            path, data = name, {}
            if name.startswith("random:"):
                path, data = f"{folder}/{name[7:]}", {"BLOOM_LENS_DATA": folder}
                run("--make", name[7:], path)
                results[f"{name}, first use"] = json.loads(run("--measure", path, "0", **data))
            results[name] = json.loads(run("--measure", path, str(count), **data))
    print(f"{'model':<24}" + "".join(f"{column + ' [MB]':>14}" for column in COLUMNS) + f"{'load [s]':>10}")
    for name, sizes in results.items():
        cells = (f"{sizes[column]:>14.0f}" if column in sizes else f"{'':>14}" for column in COLUMNS)
        print(f"{name:<24}" + "".join(cells) + f"{sizes['load_s']:>10.1f}")
    print(json.dumps(results))


def run(*arguments: str, **variables: str) -> str:
    """What this program prints in a process of its own."""
    command = [sys.executable, "-m", __spec__.name, *arguments]
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **variables}
    ).stdout


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]))))
    elif sys.argv[1:2] == ["--make"]:
        make_random(sys.argv[2], Path(sys.argv[3]))
    else:
        main(sys.argv[1:])
