import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BloomForCausalLM

from chains.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, RECIPE, read_adapter
from chains.entities import find_entities_batch
from chains.errors import ModelError
from chains.grounding import reply_graph
from chains.language import detect_languages
from chains.parsers import MentionParser
from chains.prompts import load_task, to_prompt_text
from chains.registry import find_model, load, load_weights
from chains.schema import Mention
from tests.conftest import SENTENCES
from training import lora
from training.gold import Example, read_examples, without_repeats
from training.lora import Encoder, Recipe, leads_to_end, main, reply_loss, spell
from training.mini import IGNORED

ROOT = Path(__file__).parent.parent
LANGUAGE, ENTITIES = load_task("language"), load_task("entities")
NAMES = [("Nadia Okafor", "person"), ("Siemens", "organization"), ("Porto", "location"), ("Genève", "location")]
# Third parties' own.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
FAST = ["--context", "96", "--batch", "2", "--eval-every", "4", "--checkpoint-every", "2", "--rank", "4"]


def gold_line(text):
    spans = [
        {"start": text.index(name), "end": text.index(name) + len(name), "type": type_}
        for name, type_ in NAMES
        if name in text
    ]
    return json.dumps({"text": text, "entities": spans}, ensure_ascii=False)


@pytest.fixture(scope="session")
def gold(tmp_path_factory):
    """Gold files to learn from and to measure with; one text is in both."""
    folder = tmp_path_factory.mktemp("lora-gold")
    texts = [f"{name} saw {other} {n}." for n in range(3) for name, _ in NAMES for other, _ in NAMES if name != other]
    (folder / "train.jsonl").write_text("\n".join(map(gold_line, [*texts, SENTENCES[0]])), encoding="utf-8")
    (folder / "train.csv").write_text(
        "text,language\nthe ferry,english\nel banco,spanish\nle train,french\ndas Haus,other\n", encoding="utf-8"
    )
    (folder / "eval.jsonl").write_text("\n".join(map(gold_line, SENTENCES[:3])), encoding="utf-8")
    (folder / "eval.csv").write_text("text,language\nthe train,english\nel tren,spanish\n", encoding="utf-8")
    return folder


def command(model, gold, out, *more):
    data = ["--data", str(gold / "train.jsonl"), str(gold / "train.csv")]
    held_out = ["--eval", str(gold / "eval.jsonl"), str(gold / "eval.csv")]
    return ["--model", str(model), *data, *held_out, "--out", str(out), *FAST, *more]


def log_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def trained(tiny_folder, gold, tmp_path_factory):
    """The folder of a training of 8 steps on the tiny random BLOOM."""
    out = tmp_path_factory.mktemp("lora") / "run"
    assert main(command(tiny_folder, gold, out, "--steps", "8", "--learning-rate", "1e-2")) == 0
    return out


@pytest.fixture(scope="session")
def encoder(tiny_folder):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.split_special_tokens = True
    return Encoder(tokenizer, 96)


mentions = st.lists(st.tuples(st.sampled_from([*NAMES, ("l’Iran", "location"), ("a{b}", "person")])), max_size=4)


@given(mentions)
def test_a_spelled_reply_is_one_that_grounded_decoding_may_write_and_the_parser_reads(encoder, chosen):
    wanted = [Mention(text=name, type=type_) for ((name, type_),) in chosen]
    text = to_prompt_text(", ".join(mention.text for mention in wanted) + ".")
    ids = spell(wanted, encoder.markup)
    assert leads_to_end(reply_graph(text, encoder.markup), ids)
    assert list(MentionParser(task=ENTITIES).parse(encoder.tokenizer.decode(ids)).mentions) == wanted


def test_a_reply_that_names_what_is_not_in_the_text_is_not_learned(encoder):
    zed = (Mention(text="Zed", type="person"),)
    assert encoder.item(Example("entities", "Nobody is here.", zed)) is None
    assert encoder.items([Example("entities", "Nobody.", zed), Example("language", " ", "other")]) == []
    assert encoder.items([Example("entities", "word " * 200, ())]) == []


def test_a_sequence_reads_as_a_prompt_of_the_chains_and_its_targets_are_the_replies(encoder):
    replies = {"language": ["español", "other"], "entities": ["<Porto>(location)", "none"]}
    answers = {"language": replies["language"], "entities": [(Mention(text="Porto", type="location"),), ()]}
    for task in (LANGUAGE, ENTITIES):
        texts = ["{Porto} <x>", "nada\nmás"]
        examples = [Example(task.kind, text, answer) for text, answer in zip(texts, answers[task.kind], strict=True)]
        (packed,) = encoder.pack(encoder.items(examples), random.Random(0))
        shown = {
            text: task.shot.replace("{text}", to_prompt_text(text)).replace("{reply}", reply)
            for text, reply in zip(texts, replies[task.kind], strict=True)
        }
        lines = [f"{task.instruction}\n{shown[a]}\n{shown[b]}\n" for a, b in (texts, texts[::-1])]
        assert encoder.tokenizer.decode(packed.ids) in lines
        learned = encoder.tokenizer.decode([token for token in packed.targets if token != IGNORED])
        ends = task.reply_end.strip() + "\n"
        both = [task.reply_separator + reply + ends for reply in replies[task.kind]]
        assert learned in {"".join(both), "".join(both[::-1])}
        # Each target stands one place before its own token.
        assert all(target in (IGNORED, packed.ids[place + 1]) for place, target in enumerate(packed.targets[:-1]))
        assert packed.targets[-1] == IGNORED


def test_an_epoch_has_every_item_once_and_depends_on_the_seed_alone(encoder):
    examples = [Example("language", f"{word} {n}", "english") for n in range(20) for word in ("the", "a")]
    items = encoder.items(examples)
    first, again, other = (encoder.pack(items, random.Random(seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) > 2 and all(len(packed.ids) <= 96 for packed in first)
    size = sum(len(packed.ids) - len(encoder.head("language")) for packed in first)
    assert size == sum(len(item.ids) for item in items)


def test_the_loss_is_that_of_transformers_over_the_replies(tiny_folder, encoder, monkeypatch):
    monkeypatch.setattr(lora, "LOSS_ROWS", 3)
    examples = [Example("language", f"text {n}", "française" if n % 2 else "other") for n in range(5)]
    examples += [Example("entities", "Porto is old.", (Mention(text="Porto", type="location"),))]
    sequences = encoder.pack(encoder.items(examples), random.Random(0))
    ids, targets = encoder.batch(sequences, torch.device("cpu"))
    model = BloomForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    model.requires_grad_(False)
    logits = model(ids, attention_mask=torch.ones_like(ids)).logits
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    assert float(reply_loss(model, ids, targets)) == pytest.approx(float(expected), rel=1e-4)


def test_texts_of_the_held_out_files_are_not_learned_and_none_twice():
    examples = [Example("entities", text, ()) for text in ("Ana left.", "ana LEFT", "Bo.", "?!", "…", "?!")]
    examples.append(Example("language", "Bo", "other"))
    kept = without_repeats(examples, ["ＡＮＡ, left!"])
    assert [(example.task, example.text) for example in kept] == [
        ("entities", "Bo."), ("entities", "?!"), ("entities", "…"), ("language", "Bo"),
    ]  # fmt: skip


def test_a_training_says_what_it_left_out_and_writes_log_curve_board_and_report(
    tiny_folder, gold, tmp_path, capsys, trained
):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(command(tiny_folder, gold, tmp_path / "run", "--steps", "1")) == 0
    said = capsys.readouterr().out
    assert "41 examples, 1 of them repeats or in the held-out files" in said
    assert "| entities eval.jsonl | 3 | micro_f1 |" in said and "| language eval.csv | 2 | accuracy |" in said
    lines = log_of(trained)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 9))
    assert [line["step"] for line in lines if "scores" in line] == [0, 4, 8]
    assert (trained / "curve.png").read_bytes().startswith(b"\x89PNG")
    board = EventAccumulator(str(trained / "tensorboard")).Reload()
    assert set(board.Tags()["scalars"]) == {"loss", "held_out_loss", "entities eval.jsonl", "language eval.csv"}
    assert [event.step for event in board.Scalars("loss")] == list(range(1, 9))
    report = json.loads((trained / "report.json").read_text())
    assert report["after"]["entities eval.jsonl"]["texts"] == 3
    assert json.loads((trained / "adapter" / RECIPE).read_text())["steps"] == 8


def test_the_loss_falls(trained):
    held_out = [line["held_out_loss"] for line in log_of(trained) if "held_out_loss" in line]
    assert held_out[-1] < 0.8 * held_out[0]


def test_a_training_killed_in_mid_run_goes_on_to_the_same_result(tiny_folder, gold, tmp_path, trained):
    arguments = command(tiny_folder, gold, tmp_path / "run", "--steps", "8", "--learning-rate", "1e-2")
    program = f"""
import os, signal, torch
torch.set_num_threads(1)
from training import lora
learn = lora.Training.learn
def learn_or_die(self, sequences):
    if self.step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return learn(self, sequences)
lora.Training.learn = learn_or_die
lora.main({arguments!r})
"""
    killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, env={**os.environ})
    assert killed.returncode == -9, killed.stderr.decode()[-2000:]
    assert [line["step"] for line in log_of(tmp_path / "run") if "loss" in line] == [1, 2, 3, 4, 5]
    assert not (tmp_path / "run" / "adapter").exists()
    assert main(arguments) == 1, "not without --resume"
    assert main([*arguments, "--resume"]) == 0
    assert log_of(tmp_path / "run") == log_of(trained)
    one, other = (load_file(out / "adapter" / ADAPTER_WEIGHTS) for out in (tmp_path / "run", trained))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def run_copy(trained, tmp_path):
    """A copy of the training that a test may change."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.mark.parametrize("change", [["--seed", "2"], ["--rank", "8"], ["--steps", "9"]])
def test_another_training_is_not_gone_on_with(tiny_folder, gold, run_copy, capsys, change):
    arguments = command(tiny_folder, gold, run_copy, "--steps", "8", "--learning-rate", "1e-2")
    assert main([*arguments, "--resume", *change]) == 1
    assert "other data, options or weights" in capsys.readouterr().err


def test_a_merged_adapter_is_what_peft_merges(tiny_folder, trained):
    from peft import PeftModel

    info = find_model(f"{tiny_folder}+{trained / 'adapter'}")
    mine, _, _ = load_weights(info, torch.bfloat16)
    base = BloomForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    theirs = PeftModel.from_pretrained(base, trained / "adapter").merge_and_unload().state_dict()
    changed = {name for name in theirs if not torch.equal(theirs[name], before[name])}
    assert len(changed) == 2 * len(lora.TARGETS), "four matrices in each of two layers"
    for name, value in mine.state_dict().items():
        assert torch.equal(value, theirs[name].to(torch.bfloat16)), name


def test_base_and_adapter_are_a_model_whose_version_names_both_revisions(tiny_folder, tiny_model, trained):
    model = load(f"{tiny_folder}+{trained / 'adapter'}")
    base, adapter = model.version.rpartition(" · ")[2].split("+")
    assert base == tiny_model.llm.revision[:8] and len(adapter) == 8 != base
    assert model.info.shots == tiny_model.info.shots
    learned = json.loads((trained / "report.json").read_text())["after"]
    assert learned["entities eval.jsonl"]["model"] == model.version


def test_the_merged_checkpoint_answers_as_base_and_adapter_do(tiny_folder, trained, tmp_path):
    name = f"{tiny_folder}+{trained / 'adapter'}"
    assert main(["--model", name, "--merge", str(tmp_path / "merged")]) == 0
    one, other, base = load(name), load(str(tmp_path / "merged")), load(str(tiny_folder))
    detections = [detect_languages(SENTENCES, model) for model in (one, other, base)]
    assert [d.logprobs for d in detections[0]] == [d.logprobs for d in detections[1]]
    assert [d.logprobs for d in detections[0]] != [d.logprobs for d in detections[2]]
    found = [[item.replies for item in find_entities_batch(SENTENCES, model)] for model in (one, other)]
    assert found[0] == found[1]
    assert main(["--model", name, "--merge", str(tmp_path / "merged")]) == 1, "it is there already"


@pytest.fixture
def adapter(trained, tmp_path):
    """A copy of the adapter that a test may break."""
    return shutil.copytree(trained / "adapter", tmp_path / "adapter")


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def reshape(adapter):
    (adapter / RECIPE).unlink()
    tensors = load_file(adapter / ADAPTER_WEIGHTS)
    save_file(
        {name: t[:, :-1].contiguous() if "lora_A" in name else t for name, t in tensors.items()},
        adapter / ADAPTER_WEIGHTS,
    )


def drop_one(adapter):
    tensors = load_file(adapter / ADAPTER_WEIGHTS)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, adapter / ADAPTER_WEIGHTS)


BREAKS = {
    "another base's revision": (lambda a: change(a / RECIPE, base_revision="00000000"), "base's revision 00000000"),
    "another shape": (reshape, "trained on another base"),
    "more than LoRA": (lambda a: change(a / ADAPTER_CONFIG, use_dora=True), "use_dora = True: only plain LoRA"),
    "another method": (lambda a: change(a / ADAPTER_CONFIG, peft_type="IA3"), "peft_type = 'IA3'"),
    "another rank": (lambda a: change(a / ADAPTER_CONFIG, r=5), "is damaged at"),
    "one matrix less": (drop_one, "is damaged at"),
    "no weights": (lambda a: (a / ADAPTER_WEIGHTS).unlink(), "cannot be read"),
    "junk": (lambda a: (a / ADAPTER_WEIGHTS).write_bytes(b"junk"), "cannot be read"),
    "no config": (lambda a: (a / ADAPTER_CONFIG).unlink(), "cannot be read"),
}


@pytest.mark.parametrize(("damage", "message"), BREAKS.values(), ids=BREAKS)
def test_an_adapter_that_does_not_fit_is_an_error_in_words(tiny_folder, adapter, damage, message):
    damage(adapter)
    with pytest.raises(ModelError, match=message) as caught:
        load(f"{tiny_folder}+{adapter}")
    assert str(adapter) in str(caught.value)


def test_an_adapter_scaled_by_the_root_of_its_rank_is_merged_so(adapter):
    plain = read_adapter(adapter).scale
    change(adapter / ADAPTER_CONFIG, use_rslora=True)
    assert read_adapter(adapter).scale == pytest.approx(plain * 2), "of rank 4"


@pytest.mark.parametrize("name", ["embedded+", "+x", "openai:http://h/v1#m"])
def test_what_is_no_base_is_not_trained(name, gold, tmp_path, capsys):
    assert main(command(name, gold, tmp_path / "run")) == 1
    assert "Error: " in capsys.readouterr().err


def test_with_nothing_left_to_learn_it_is_an_error(tiny_folder, gold, tmp_path, capsys):
    arguments = command(tiny_folder, gold, tmp_path / "run")
    arguments[arguments.index("--data") + 1 : arguments.index("--eval")] = [str(gold / "eval.jsonl")]
    assert main(arguments) == 1
    assert "Nothing is left to learn from" in capsys.readouterr().err


def test_a_table_without_answers_is_an_error_naming_its_columns(tmp_path):
    (tmp_path / "raw.csv").write_text("id,text\n1,a\n")
    with pytest.raises(Exception, match="columns 'id', 'text': expected"):
        read_examples([tmp_path / "raw.csv"])


def test_the_recipes_defaults_are_the_command_lines(monkeypatch, gold, tmp_path):
    seen = []
    monkeypatch.setattr(lora, "train", lambda model, recipe, *_, **__: seen.append(recipe) or {"before": {}})
    main(["--model", "x", "--data", "a", "--eval", "b", "--out", "c"])
    assert seen == [Recipe()]


@pytest.mark.parametrize("option", [["--batch", "0"], ["--rank", "0"], ["--eval-every", "-1"]])
def test_a_count_below_one_is_wrong_use(gold, tmp_path, capsys, option):
    with pytest.raises(SystemExit) as caught:
        main([*command("embedded", gold, tmp_path / "run"), *option])
    assert caught.value.code == 2 and "must be at least 1" in capsys.readouterr().err
