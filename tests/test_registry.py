import json
import shutil
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BloomConfig, BloomForCausalLM

from chains import registry
from chains.errors import ModelError
from chains.registry import EMBEDDED, MODELS, ModelInfo, find_model, fingerprint, free_memory_bytes, load

SHAPES = {  # hidden size, layers, heads: from each model's config.json on the Hub
    "bloomz-560m": (1024, 24, 16),
    "bloomz-1b1": (1536, 24, 16),
    "bloomz-1b7": (2048, 24, 16),
    "bloomz-3b": (2560, 30, 32),
    "bloomz-7b1": (4096, 30, 32),
}
COMMIT = "0123456789" * 4


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of the tiny checkpoint that a test may break."""
    return shutil.copytree(tiny_folder, tmp_path / "checkpoint")


@pytest.mark.parametrize("name", list(MODELS))
def test_a_model_is_found_by_its_name_and_by_its_source(name):
    assert find_model(name) is MODELS[name] is find_model(MODELS[name].source)


def test_a_hub_id_outside_the_table_is_taken_as_it_is():
    assert find_model("bigscience/bloom-560m") == ModelInfo(
        "bigscience/bloom-560m", "bigscience/bloom-560m", None, 0, "as its page on the Hub says"
    )


@pytest.mark.parametrize("name", ["bloomz-1b1", "bigscience/bloomz-1b1", "nobody/nothing"])
def test_a_commit_may_stand_behind_a_hub_id(name):
    assert find_model(f"{name}@{COMMIT}") == replace(find_model(name), revision=COMMIT)
    assert find_model(f"{name}@{COMMIT}+runs/adapter").revision == COMMIT


@pytest.mark.parametrize("commit", ["main", "", "0" * 39, "0" * 41, "Z" * 40])
def test_a_branch_or_half_a_commit_is_an_error(commit):
    with pytest.raises(ModelError, match="There is no model .* 40 digits of a commit"):
        find_model(f"nobody/nothing@{commit}")


def test_a_folder_is_found_and_its_size_counted(tiny_folder):
    info = find_model(str(tiny_folder))
    assert info.source == str(tiny_folder)
    assert info.parameters == pytest.approx(
        sum(p.numel() for p in load_file(tiny_folder / "model.safetensors").values()), rel=0.1
    )


def test_the_embedded_models_folder_is_the_embedded_model():
    assert find_model(str(registry.EMBEDDED_FOLDER)) is MODELS[EMBEDDED]


@pytest.mark.parametrize("base", [EMBEDDED, "bigscience/bloomz-560m", "nobody/nothing"])
def test_a_base_with_an_adapter_has_all_that_the_base_has(base):
    found, plain = find_model(f"{base}+runs/a+b/adapter"), find_model(base)
    assert (found.name, found.adapter) == (f"{plain.name}+runs/a+b/adapter", "runs/a+b/adapter")
    assert replace(found, name=plain.name, adapter=None) == plain


def test_a_folder_whose_name_holds_a_plus_is_a_folder(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "a+b")
    assert find_model(str(folder)).adapter is None


@pytest.mark.parametrize(
    "name",
    [
        "",
        "bloom",
        "bloom+adapter",
        "embedded+",
        "+adapter",
        "no such model",
        "a/b/c",
        "./missing",
        "/missing",
        "~/missing",
        "~nobody-here/x",
        "x" * 5000,
        "a\0b",
    ],
)
def test_any_other_name_is_an_error_that_lists_the_choices(name):
    with pytest.raises(ModelError, match="There is no model") as caught:
        find_model(name)
    assert all(
        choice in str(caught.value) for choice in (EMBEDDED, "bloomz-560m", "owner/name", "openai:<url>#<model>")
    )


@pytest.mark.parametrize("name", list(SHAPES))
def test_parameters_of_the_table_are_those_of_the_shape(name):
    hidden, layers, heads = SHAPES[name]
    config = BloomConfig(vocab_size=250880, hidden_size=hidden, n_layer=layers, n_head=heads)
    with torch.device("meta"):
        model = BloomForCausalLM(config)
    assert MODELS[name].parameters == sum(parameter.numel() for parameter in model.parameters())
    assert MODELS[name].download_bytes == 2 * MODELS[name].parameters
    assert MODELS[name].vocabulary == model.lm_head.weight.numel()


def test_parameters_of_the_embedded_model_are_those_of_its_recipe():
    from training.mini import Recipe

    recipe = Recipe()
    config = BloomConfig(
        vocab_size=recipe.vocab_size, hidden_size=recipe.hidden_size, n_layer=recipe.layers, n_head=recipe.heads
    )
    with torch.device("meta"):
        model = BloomForCausalLM(config)
    assert MODELS[EMBEDDED].parameters == pytest.approx(sum(p.numel() for p in model.parameters()), rel=0.01)
    assert MODELS[EMBEDDED].vocabulary == pytest.approx(model.lm_head.weight.numel(), rel=0.01)


def cut_off(file):
    file.write_bytes(file.read_bytes()[:-999])


DAMAGES = {
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "junk weights": lambda folder: (folder / "model.safetensors").write_bytes(b"\x08" * 40),
    "half the weights": lambda folder: cut_off(folder / "model.safetensors"),
    "one weight less": lambda folder: drop_weight(folder),
    "another shape": lambda folder: change_config(folder, hidden_size=128),
    "no config": lambda folder: (folder / "config.json").unlink(),
    "half a config": lambda folder: (folder / "config.json").write_text("{"),
    "a word for a number": lambda folder: change_config(folder, n_layer="two"),
    "no tokenizer": lambda folder: [file.unlink() for file in folder.glob("tokenizer*")],
    "junk tokenizer": lambda folder: (folder / "tokenizer.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_broken_checkpoint_is_an_error_naming_it(folder, damage):
    damage(folder)
    with pytest.raises(ModelError, match="could not be loaded") as caught:
        load(str(folder))
    assert str(folder) in str(caught.value)


def test_a_model_of_another_family_is_an_error(folder):
    change_config(folder, model_type="gpt2")
    with pytest.raises(ModelError, match="'gpt2' model. Only BLOOM"):
        load(str(folder))


def change_config(folder, **changes):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **changes}))


def drop_weight(folder):
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(name for name in weights if "h.1.mlp" in name))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(ModelError, match="could not be loaded"):
        load(str(tmp_path))


def test_pickled_weights_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="could not be loaded"):
        load(str(folder))


def test_too_little_memory_is_an_error_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(registry, "free_memory_bytes", lambda: 3_000_000_000)
    with pytest.raises(ModelError, match=r"bloomz-7b1 needs about 12\.1 GB .* 3\.0 GB of memory are free") as caught:
        load("bloomz-7b1")
    assert "smaller model" in str(caught.value)


def test_without_network_a_hub_model_is_an_error_at_once(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    started = time.monotonic()
    with pytest.raises(ModelError, match="nobody/nothing could not be loaded") as caught:
        load(f"nobody/nothing@{COMMIT}")
    assert "network" in str(caught.value) and len(str(caught.value)) < 600
    assert time.monotonic() - started < 5


def test_free_memory_is_that_of_this_machine():
    assert 10_000_000 < free_memory_bytes() < 10**14


def test_the_fingerprint_changes_with_the_weights_and_only_then(folder, tiny_folder, tiny_model):
    assert fingerprint(folder) == fingerprint(tiny_folder) == tiny_model.llm.revision
    (folder / "README.md").write_text("A model card.")
    assert fingerprint(folder) == fingerprint(tiny_folder)
    weights = load_file(folder / "model.safetensors")
    next(iter(weights.values())).flatten()[0] += 1
    save_file(weights, folder / "model.safetensors")
    assert fingerprint(folder) != fingerprint(tiny_folder)


def test_a_results_version_names_model_and_weights(tiny_folder, tiny_model):
    assert tiny_model.version == f"{tiny_folder} · {tiny_model.llm.revision[:8]}"


def test_tokens_are_counted_by_the_models_own_tokenizer(tiny_folder, tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    assert tiny_model.count_tokens("") == 0
    assert tiny_model.count_tokens("Zürich 😀") == len(tokenizer.encode("Zürich 😀", add_special_tokens=False))


def test_a_loaded_model_is_ready_to_answer(tiny_model):
    assert not tiny_model.llm.pipeline.model.training
    assert tiny_model.llm.pipeline.tokenizer.padding_side == "left"


@pytest.mark.parametrize(("free", "row_bytes"), [(10**8, 64 * 10**6), (8 * 10**9, 5 * 10**8), (10**12, 768 * 10**6)])
def test_rows_share_what_memory_is_free(tiny_folder, monkeypatch, free, row_bytes):
    monkeypatch.setattr(registry, "free_memory_bytes", lambda: free)
    assert load(str(tiny_folder)).llm.pipeline.row_bytes == row_bytes
