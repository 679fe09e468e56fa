import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from chains.entities import find_entities_batch
from chains.errors import ModelError
from chains.evaluation import evaluate, read_gold
from chains.language import detect_languages
from chains.prompts import load_task
from chains.registry import EMBEDDED_FOLDER, load
from chains.schema import Entity

pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install -r requirements-dev.txt")

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "training" / "harness"
GOLD = ROOT / "tests" / "gold"
ROWS = 12
# What lm_eval and its libraries warn of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def tasks():
    from training.harness import tasks

    return tasks


@pytest.fixture(scope="module")
def gold(tmp_path_factory):
    """The first rows of the shipped gold sets as files of their own, with a blank text."""
    folder = tmp_path_factory.mktemp("gold")
    lines = (GOLD / "language.csv").read_text(encoding="utf-8").splitlines()
    (folder / "language.csv").write_text("\n".join([lines[0], " ,unknown", *lines[1:ROWS], "Guten Tag!,other"]))
    lines = (GOLD / "entities.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "entities.jsonl").write_text("\n".join(lines[:ROWS]))
    return folder


def run_harness(pretrained, gold, shots, tasks=("bloom_lens_language",), **options):
    """What lm_eval reports of a model in fp32."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    about = {"pretrained": str(pretrained), "shots": shots}
    about |= {"language": str(gold / "language.csv"), "entities": str(gold / "entities.jsonl")}
    return simple_evaluate(
        model="hf",
        model_args={"pretrained": str(pretrained), "dtype": "float32"},
        tasks=list(tasks),
        task_manager=TaskManager(include_path=str(FOLDER), include_defaults=False, metadata=about),
        device="cpu",
        batch_size=4,
        bootstrap_iters=0,
        **options,
    )


@pytest.mark.parametrize("shots", [0, 3])
def test_label_scores_are_those_of_forced_decoding(tasks, gold, tiny_folder, exact_model, shots):
    report = run_harness(tiny_folder, gold, shots)
    texts = [(text, label) for text, label in read_gold(gold / "language.csv", "language") if text.strip()]
    detections = detect_languages([text for text, _ in texts], exact_model, shots=shots)
    samples = report["samples"]["bloom_lens_language"]
    assert len(samples) == len(texts) == ROWS
    for sample, detection, (_, label) in zip(samples, detections, texts, strict=True):
        assert sample["doc"]["prompt"] == detection.prompts[0]
        scores = tasks.label_scores(sample["doc"], [tuple(result) for result in sample["filtered_resps"]])
        # Sums of fp32 numbers, with and without a prefix cache.
        words = load_task("language").labels
        assert {name: scores[words[name]] for name in words} == pytest.approx(
            {name: detection.logprobs[name] for name in words}, abs=1e-4
        )
        assert tuple(sample["accuracy"]) == (label, detection.language)


def test_labels_that_fork_late_are_scored_token_by_token(tasks):
    row = {"tokens": json.dumps({"ab": [0, 1], "ac": [0, 2], "d": [3]}), "gold": "unknown"}
    # a: 0.5, then b or c as 3 to 1, and other tokens that are no label; d: 0.25.
    sums = [-0.6931, -0.6931 - 1.0, -0.6931 - 1.0 - 1.0986, -1.3863]
    scores = tasks.label_scores(row, [(value, False) for value in sums])
    assert scores == pytest.approx({"ab": -0.6931, "ac": -0.6931 - 1.0986, "d": -1.0986}, abs=1e-3)


def test_a_label_that_cannot_be_scored_by_its_beginnings_is_an_error(tasks, monkeypatch):
    cut = {"english": [1, 2], "eng": [3], "español": [4], "française": [5], "other": [6]}
    texts = {(1,): "eng", (1, 2): "english"}

    class Tokenizer:
        def __call__(self, text, **_):
            return {"input_ids": cut[text]}

        def decode(self, ids):
            return texts.get(tuple(ids)) or next(word for word, own in cut.items() if own == ids)

    monkeypatch.setattr("transformers.AutoTokenizer", SimpleNamespace(from_pretrained=lambda *_, **__: Tokenizer()))
    with pytest.raises(ModelError, match="cuts 'eng' otherwise than the beginning of 'english'"):
        tasks.label_beginnings.__wrapped__("anything")


def test_entities_are_read_and_placed_as_the_chains_do(tasks):
    gold = [Entity(text="Ana", type="person", start=0, end=3), Entity(text="Lima", type="location", start=9, end=13)]
    row = {"text": "Ana left Lima.", "gold": json.dumps([entity.model_dump() for entity in gold])}
    rights = tasks.entity_results(row, [" <Ana>(person) <Zed>(person)"])
    unreadable = tasks.entity_results(row, ["I do not know"])
    assert (rights["unreadable"], unreadable["unreadable"]) == (0.0, 1.0)
    assert tasks.micro_f1([rights["micro_f1"]]) == pytest.approx(2 / 3)
    assert tasks.entity_macro_f1([rights["macro_f1"]]) == pytest.approx(1 / 2)
    assert tasks.micro_f1([rights["micro_f1"], unreadable["micro_f1"]]) == pytest.approx(2 / 5)


@pytest.mark.model
def test_as_it_is_shipped_the_command_reports_what_evaluate_reports(gold, tmp_path):
    metadata = {"language": str(gold / "language.csv"), "entities": str(gold / "entities.jsonl")}
    command = [sys.executable, "-m", "lm_eval", "--include_path", str(FOLDER), "--tasks", "bloom_lens"]
    command += ["--model", "hf", "--model_args", f"pretrained={EMBEDDED_FOLDER},dtype=float32", "--device", "cpu"]
    command += ["--batch_size", "8", "--output_path", str(tmp_path), "--metadata", json.dumps(metadata)]
    # From elsewhere: the tasks find the chains by themselves.
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = tmp_path.rglob("results_*.json")
    results = json.loads(path.read_text())["results"]
    model = load("embedded")
    report = evaluate(gold / "language.csv", "language", model)
    right = report["accuracy"] * report["texts"]  # the blank text is right without being asked
    assert results["bloom_lens_language"]["accuracy,none"] == pytest.approx((right - 1) / (report["texts"] - 1))
    marked = read_gold(gold / "entities.jsonl", "entities")
    found = find_entities_batch([text for text, _ in marked], model, way="plain")
    from chains.metrics import entity_scores

    scores = entity_scores([entities for _, entities in marked], [item.entities for item in found])
    assert results["bloom_lens_entities"]["micro_f1,none"] == pytest.approx(scores["micro_f1"])
    assert results["bloom_lens_entities"]["unreadable,none"] == 0
