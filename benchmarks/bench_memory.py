"""Resident memory of one process with the dashboard's packages, before a model, with it, and after work.

``python -m benchmarks.bench_memory [MODEL …]``; a model is a name, a folder, or ``random:560m`` / ``random:1b1`` for
random weights in BLOOMZ's real shape. Each runs in a process of its own; prints a table and one last JSON line.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

SHAPES = {"560m": (1024, 24, 16), "1b1": (1536, 24, 16)}  # hidden, layers, heads
BLOOMZ_VOCABULARY = 250_880
TEXT = "Nadia Okafor left Siemens for Porto, and Élise Vautrin took over in Genève."


def measure(model_name: str) -> dict[str, float]:
    """Megabytes (10⁶ bytes) resident: ``base`` without a model, ``loaded``, ``working`` and the ``peak`` of all."""
    import altair  # noqa: F401  the dashboard's own imports
    import pandas  # noqa: F401
    import streamlit.web.bootstrap  # noqa: F401
    import torch  # noqa: F401

    import chains.pipeline  # noqa: F401
    from chains.analysis import analyse
    from chains.registry import load

    sizes = {"base": resident("VmRSS")}
    model = load(model_name)
    sizes["loaded"] = resident("VmRSS")
    for _ in range(3):
        analyse([TEXT] * 8 + [f"{TEXT} {number}" for number in range(24)], model)
    return sizes | {"working": resident("VmRSS"), "peak": resident("VmHWM")}


def resident(field: str) -> float:
    """A line of /proc/self/status in megabytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024 / 1e6


def make_random(size: str, folder: Path) -> None:
    """A checkpoint with random weights in BLOOMZ's shape, with the embedded model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, BloomConfig, BloomForCausalLM

    from chains.registry import EMBEDDED_FOLDER

    hidden, layers, heads = SHAPES[size]
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)
    torch.set_default_dtype(torch.bfloat16)
    config = BloomConfig(vocab_size=BLOOMZ_VOCABULARY, hidden_size=hidden, n_layer=layers, n_head=heads)
    BloomForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(names: list[str]) -> None:
    """Measure each model in a new process."""
    results = {}
    for name in names or ["embedded"]:
        with tempfile.TemporaryDirectory() as folder:
            path = name
            if name.startswith("random:"):
                path = folder
                subprocess.run([sys.executable, "-m", __spec__.name, "--make", name[7:], folder], check=True)
            command = [sys.executable, "-m", __spec__.name, "--measure", path]
            results[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(f"{'model':<14}" + "".join(f"{column + ' [MB]':>14}" for column in ("base", "loaded", "working", "peak")))
    for name, sizes in results.items():
        print(f"{name:<14}" + "".join(f"{sizes[column]:>14.0f}" for column in ("base", "loaded", "working", "peak")))
    print(json.dumps(results))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2])))
    elif sys.argv[1:2] == ["--make"]:
        make_random(sys.argv[2], Path(sys.argv[3]))
    else:
        main(sys.argv[1:])
