"""Converted, mapped and packed weights are the weights that transformers would have loaded."""

import json
import multiprocessing
import os
import pickle
import re
import shutil
import signal
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BloomConfig, BloomForCausalLM

from chains import registry, weights
from chains.errors import ModelError
from chains.language import detect_language
from chains.registry import MODELS, fingerprint, load
from chains.weights import (
    Int8Linear,
    PackedLinear,
    can_compute_int8,
    can_pack,
    choose_dtype,
    convert,
    holds,
    load_mapped,
    pack,
)

IDS = torch.tensor([[5, 17, 250, 4, 99], [8, 8, 301, 0, 1]])


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    """A data folder of its own for each test, where copies go."""
    monkeypatch.setenv("BLOOM_LENS_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def make_checkpoint(tiny_folder, tmp_path):
    """``make_checkpoint(dtype, prefix=, head=, shard=)``: the tiny BLOOM as others may have stored it."""

    def make(dtype, *, prefix="transformer.", head=False, shard=None):
        folder = tmp_path / "source"
        shutil.copytree(tiny_folder, folder)
        model = BloomForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
        for parameter in model.parameters():  # numbers that need all of fp32
            parameter.data += torch.randn_like(parameter) * 1e-3
        tensors = {name: value.to(dtype).clone() for name, value in model.state_dict().items()}
        vocabulary = tensors["lm_head.weight"]
        tensors = {
            name.replace("transformer.", prefix, 1): value
            for name, value in tensors.items()
            if name != "lm_head.weight"
        }
        if head:
            tensors["lm_head.weight"] = vocabulary
        names = sorted(tensors)
        (folder / "model.safetensors").unlink()
        if shard is None:
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        else:
            weight_map = {name: f"model-{number % shard}.safetensors" for number, name in enumerate(names)}
            for file in set(weight_map.values()):
                part = {name: tensors[name] for name in names if weight_map[name] == file}
                save_file(part, folder / file, metadata={"format": "pt"})
            index = {"metadata": {}, "weight_map": weight_map}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return folder

    return make


def mapped(folder):
    return load_mapped(folder, BloomConfig.from_pretrained(folder))


def same(one, other):
    assert one.keys() == other.keys()
    return all(one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("wanted", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("dtype", "layout"),
    [
        (torch.float16, {}),
        (torch.float16, {"prefix": "", "shard": 3}),
        (torch.float32, {"head": True}),
        (torch.float32, {"prefix": "", "head": True, "shard": 2}),
        (torch.bfloat16, {"shard": 2}),
    ],
)
def test_a_converted_copy_holds_what_transformers_loads(make_checkpoint, tmp_path, monkeypatch, dtype, layout, wanted):
    monkeypatch.setattr(weights, "CHUNK_BYTES", 1000)  # so that tensors take several, and a broken last one
    source = make_checkpoint(dtype, **layout)
    expected = BloomForCausalLM.from_pretrained(source, dtype=wanted).state_dict()
    convert(source, tmp_path / "copy", wanted)
    assert holds(tmp_path / "copy", wanted)
    assert same(mapped(tmp_path / "copy").state_dict(), expected)
    # The copy is a checkpoint like any other.
    assert same(BloomForCausalLM.from_pretrained(tmp_path / "copy").state_dict(), expected)
    assert sorted(file.name for file in (tmp_path / "copy").glob("tokenizer*")) == sorted(
        file.name for file in source.glob("tokenizer*")
    )


@torch.inference_mode()
def test_a_mapped_models_logits_are_exactly_those_of_from_pretrained(tiny_folder):
    model, reference = mapped(tiny_folder), BloomForCausalLM.from_pretrained(tiny_folder).eval()
    assert torch.equal(model(IDS).logits, reference(IDS).logits)
    assert model.lm_head.weight is model.transformer.word_embeddings.weight
    assert model.dtype == torch.bfloat16 and not model.training
    assert model.generation_config.to_dict() == reference.generation_config.to_dict()


@torch.inference_mode()
def test_transformers_own_forward_and_generate_run_over_a_packed_model(tiny_folder):
    model, reference = mapped(tiny_folder), BloomForCausalLM.from_pretrained(tiny_folder).eval()
    pack(model)
    assert sum(isinstance(module, PackedLinear) for module in model.modules()) == 4 * 2
    assert not any(isinstance(module, torch.nn.Linear) for module in model.transformer.modules())
    assert model.num_parameters() == reference.num_parameters()
    # A bf16 number has 8 bits; logits here lie within ±30.
    torch.testing.assert_close(model(IDS).logits, reference(IDS).logits, atol=0.5, rtol=0.02)
    written = model.generate(IDS[:1], max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert written.shape == (1, 10) and torch.equal(written[:, :5], IDS[:1])


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(1, 64), (2048, 64), (3, 7, 64), (0, 64), (2, 0, 64)])
def test_a_packed_product_is_the_plain_one(shape):
    torch.manual_seed(1)
    plain = torch.nn.Linear(64, 192).to(torch.bfloat16)
    x = torch.randn(shape).bfloat16()
    product = PackedLinear(plain)(x)
    assert product.shape == (*shape[:-1], 192) and product.dtype == torch.bfloat16
    torch.testing.assert_close(product, plain(x), atol=0.02, rtol=0.01)


@torch.inference_mode()
@pytest.mark.parametrize(
    "cut", [lambda x: x.transpose(0, 1), lambda x: x[:, ::2], lambda x: x[..., ::2], lambda x: x[:1].expand(9, -1, -1)]
)
def test_a_packed_product_takes_inputs_that_are_not_contiguous(cut):
    torch.manual_seed(1)
    x = cut(torch.randn(6, 5, 128).bfloat16())
    plain = torch.nn.Linear(x.shape[-1], 64).to(torch.bfloat16)
    assert not x.is_contiguous()
    torch.testing.assert_close(PackedLinear(plain)(x), plain(x), atol=0.02, rtol=0.01)


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(1, 64), (200, 64), (3, 7, 64), (0, 64)])
def test_fused_products_are_the_plain_ones(shape):
    torch.manual_seed(1)
    plain = torch.nn.Linear(64, 192).to(torch.bfloat16)
    x, residual = torch.randn(shape).bfloat16(), torch.randn(*shape[:-1], 192).bfloat16()
    packed = PackedLinear(plain)
    gelu = torch.nn.functional.gelu(plain(x), approximate="tanh")
    torch.testing.assert_close(packed.gelu(x), gelu, atol=0.02, rtol=0.01)
    torch.testing.assert_close(packed.plus(x, residual), plain(x) + residual, atol=0.03, rtol=0.01)


needs_vnni = pytest.mark.skipif(not can_compute_int8(), reason="this processor has no VNNI")


@needs_vnni
@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(1, 64), (300, 64), (3, 7, 64), (0, 64)])
def test_a_product_in_int8_is_that_of_the_rounded_numbers(shape, dtype):
    torch.manual_seed(1)
    plain = torch.nn.Linear(64, 192)
    x = torch.randn(shape).to(dtype) * torch.randint(1, 50, (*shape[:-1], 1))
    scales = plain.weight.abs().amax(1, keepdim=True) / 127
    weight = (plain.weight / scales).round() * scales
    size = x.float().abs().amax(-1, keepdim=True) / 126
    expected = torch.nn.functional.linear((x / size).round() * size, weight, plain.bias)
    product = Int8Linear(plain)(x.to(dtype))
    assert product.shape == expected.shape
    # Half a step of one input may round the other way.
    torch.testing.assert_close(
        product.float(), expected, atol=0.02 * float(size.max()) * 126 if len(x) else 1, rtol=0.02
    )


@needs_vnni
@torch.inference_mode()
def test_a_product_in_int8_depends_on_no_neighbour_and_takes_zeros():
    layer = Int8Linear(torch.nn.Linear(64, 32).to(torch.bfloat16))
    x = torch.cat([torch.randn(4, 64), 1000 * torch.randn(1, 64), torch.zeros(1, 64)]).bfloat16()
    assert torch.equal(layer(x)[:4], layer(x[:4]))
    assert torch.equal(layer(x)[5], layer.bias)


@needs_vnni
def test_int8_is_chosen_by_the_environment_and_named_in_the_version(tiny_folder, monkeypatch):
    exact = load(str(tiny_folder))
    monkeypatch.setenv("BLOOM_LENS_PRECISION", "int8")
    model = load(str(tiny_folder))
    assert isinstance(model.llm.pipeline.model.transformer.h[1].mlp.dense_4h_to_h, Int8Linear)
    assert model.version == f"{exact.version} · int8" and model.llm.revision == f"int8-{exact.llm.revision}"
    text = "Nadia Okafor left Siemens for Porto in 1998."
    ours, theirs = (detect_language(text, one).probabilities for one in (model, exact))
    assert ours == pytest.approx(theirs, abs=0.1) and ours != theirs


@pytest.mark.parametrize("value", ["fp4", "int8"])
def test_a_precision_that_this_machine_has_not_is_an_error(tiny_folder, monkeypatch, value):
    monkeypatch.setenv("BLOOM_LENS_PRECISION", value)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(ModelError, match=f"BLOOM_LENS_PRECISION is '{value}'"):
        load(str(tiny_folder))


def test_the_type_is_chosen_by_device_and_processor_and_is_never_fp16_on_a_cpu(monkeypatch):
    assert choose_dtype("cuda") == torch.bfloat16
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert choose_dtype("cpu") == torch.bfloat16 and can_pack(torch.bfloat16) and not can_pack(torch.float32)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert choose_dtype("cpu") == torch.float32 and not can_pack(torch.bfloat16)


def test_without_the_packed_product_layers_stay_plain(monkeypatch, tiny_folder):
    class Operators:
        _is_mkldnn_bf16_supported = staticmethod(lambda: True)

    monkeypatch.setattr(torch.ops, "mkldnn", Operators())
    model = load(str(tiny_folder)).llm.pipeline.model
    assert isinstance(model.transformer.h[0].mlp.dense_h_to_4h, torch.nn.Linear)


def test_a_loaded_model_is_packed_where_it_can_be(tiny_model):
    block = tiny_model.llm.pipeline.model.transformer.h[0]
    assert isinstance(block.self_attention.dense, PackedLinear) == can_pack(tiny_model.llm.pipeline.model.dtype)


def test_an_fp16_folder_is_converted_once_and_answers_from_the_copy(make_checkpoint, data_folder, monkeypatch):
    source = make_checkpoint(torch.float16)
    model = load(str(source))
    (copy,) = (data_folder / "models").iterdir()
    kept = model.llm.pipeline.model.dtype
    assert copy.name == f"source-{fingerprint(source)[:8]}-{str(kept).removeprefix('torch.')}"
    assert kept in {torch.bfloat16, torch.float32} and model.llm.revision == fingerprint(source)[:8]
    monkeypatch.setattr(weights, "_safetensors", None)  # a second conversion would fail
    assert load(str(source)).version == model.version


def test_a_checkpoint_in_the_wanted_type_is_not_copied(tiny_folder, data_folder):
    assert holds(tiny_folder, torch.bfloat16)
    load(str(tiny_folder))
    assert data_folder.exists() == (choose_dtype("cpu") != torch.bfloat16)


@pytest.mark.parametrize(("name", "known"), [("bloomz-560m", True), ("owner/name", False)])
def test_a_hub_model_is_converted_at_its_first_use_and_needs_no_network_after_it(
    make_checkpoint, data_folder, tmp_path, monkeypatch, name, known
):
    import huggingface_hub.constants

    revision = MODELS[name].revision if known else "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "hub"
    repository = cache / ("models--" + registry.find_model(name).source.replace("/", "--"))
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    shutil.copytree(make_checkpoint(torch.float16), repository / "snapshots" / revision)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(cache))
    if not known:
        with pytest.raises(ModelError, match=r"No commit of 'owner/name' is pinned.*BLOOM_LENS_UNPINNED=1"):
            load(name)
        assert not (data_folder / "models").exists()
        monkeypatch.setenv("BLOOM_LENS_UNPINNED", "1")
    first = load(name)
    assert first.version == f"{name} · {revision[:8]}"
    shutil.rmtree(cache)
    assert load(name).version == first.version
    assert len(list((data_folder / "models").iterdir())) == 1


def test_a_copy_of_another_revision_or_of_a_longer_name_is_not_taken(monkeypatch, data_folder):
    for other in ("bloomz-560m-00000000-bfloat16", "bloomz-560m-mt-a2845d7e-bfloat16"):
        (data_folder / "models" / other).mkdir(parents=True)
    monkeypatch.setattr(
        "transformers.BloomConfig.from_pretrained", lambda *_, **__: (_ for _ in ()).throw(OSError("asked the Hub"))
    )
    with pytest.raises(OSError, match="asked the Hub"):
        registry._checkpoint(MODELS["bloomz-560m"], torch.bfloat16)


def test_pickled_weights_are_never_opened(make_checkpoint, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    folder = make_checkpoint(torch.float16)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelError, match="could not be loaded .* pickled weights are not read"):
        load(str(folder))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("transformer.h.1.mlp.dense_4h_to_h.bias"), "lack 'transformer.h.1.mlp.dense_4h"),
        (lambda tensors: tensors.update({"score.weight": torch.zeros(2)}), "hold 'transformer.score.weight', which"),
        (lambda tensors: tensors.update({"transformer.ln_f.bias": torch.zeros(3)}), r"ln_f.bias' has the shape \(3,\)"),
        (lambda tensors: tensors.update({"transformer.ln_f.bias": torch.zeros(64).int()}), "is stored as I32"),
    ],
)
def test_weights_that_are_not_the_models_are_an_error_naming_them(make_checkpoint, change, message):
    folder = make_checkpoint(torch.float32)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=message):
        load(str(folder))


def test_an_old_checkpoints_causal_mask_is_left_out(make_checkpoint, tmp_path):
    folder = make_checkpoint(torch.float16)
    tensors = load_file(folder / "model.safetensors")
    tensors["h.0.self_attention.scale_mask_softmax.causal_mask"] = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    save_file(tensors, folder / "model.safetensors")
    convert(folder, tmp_path / "copy", torch.bfloat16)
    assert holds(tmp_path / "copy", torch.bfloat16)


def test_too_little_disk_space_is_an_error_before_anything_is_written(make_checkpoint, data_folder, monkeypatch):
    source = make_checkpoint(torch.float16)
    usage = namedtuple("usage", "total used free")(10**12, 10**12, 40_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        ModelError, match=r"needs 0\.05 GB in .*models', and 0\.04 GB are free there\. .* BLOOM_LENS_DATA"
    ):
        load(str(source))
    assert list((data_folder / "models").iterdir()) == []


def test_a_disk_that_fills_up_in_mid_conversion_leaves_nothing_and_the_next_try_works(
    make_checkpoint, tmp_path, monkeypatch
):
    source = make_checkpoint(torch.float16)

    def full(file):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            convert(source, tmp_path / "copies" / "copy", torch.bfloat16)
    assert list((tmp_path / "copies").iterdir()) == []
    convert(source, tmp_path / "copies" / "copy", torch.bfloat16)
    assert holds(tmp_path / "copies" / "copy", torch.bfloat16)


def start(function, *arguments):
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def convert_and_die(source, target):
    pieces = weights._safetensors

    def dying(*arguments):
        for number, piece in enumerate(pieces(*arguments)):
            yield piece
            if number == 5:
                os.kill(os.getpid(), signal.SIGKILL)

    weights._safetensors = dying  # in the forked process only
    convert(source, target, torch.bfloat16)


def convert_at(barrier, source, target):
    barrier.wait()
    convert(source, target, torch.bfloat16)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_conversion_killed_half_way_is_done_again(make_checkpoint, tmp_path):
    source, target = make_checkpoint(torch.float16), tmp_path / "copies" / "copy"
    process = start(convert_and_die, source, target)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert [file.name for file in target.parent.iterdir()] == ["copy.partial"]
    convert(source, target, torch.bfloat16)
    assert [file.name for file in target.parent.iterdir()] == ["copy"]
    assert same(
        mapped(target).state_dict(), BloomForCausalLM.from_pretrained(source, dtype=torch.bfloat16).state_dict()
    )


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_processes_that_convert_at_once_all_end_with_the_one_copy(make_checkpoint, tmp_path):
    source, target = make_checkpoint(torch.float16), tmp_path / "copies" / "copy"
    barrier = multiprocessing.get_context("fork").Barrier(3)
    processes = [start(convert_at, barrier, source, target) for _ in range(3)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [file.name for file in target.parent.iterdir()] == ["copy"]
    assert holds(target, torch.bfloat16)


def mappings(path):
    """For each mapping of a file into this process its fields in /proc/self/smaps, in KB."""
    blocks = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    return [
        {name: int(size) for name, size in re.findall(r"^(\w+): +(\d+) kB", block, re.MULTILINE)}
        for block in blocks
        if str(path) in block.split("\n", 1)[0]
    ]


def test_each_layer_is_freed_before_the_next_is_packed(tiny_folder, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_folder, tmp_path / "checkpoint")
    model, left = mapped(folder), []
    reorder = torch.ops.mkldnn._reorder_linear_weight

    def watched(*arguments):
        left.append(len(mappings(folder / "model.safetensors")))
        return reorder(*arguments)

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", watched)
    pack(model)
    # A weight and a bias go with each layer, one layer later at most; the system shows neighbours as one.
    assert len(left) == 8 and left[0] > left[4] > left[7] >= 1
    assert len(mappings(folder / "model.safetensors")) == 1


@torch.inference_mode()
def test_only_the_vocabulary_stays_mapped_and_only_touched_rows_are_resident(tiny_folder, tmp_path):
    folder, rows = tmp_path / "big", 100_000
    config = BloomConfig.from_pretrained(tiny_folder, vocab_size=rows)
    BloomForCausalLM(config).save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", folder, torch.bfloat16)
    model = mapped(folder)
    pack(model)
    (vocabulary,) = mappings(folder / "model.safetensors")
    assert vocabulary["Size"] * 1024 == pytest.approx(rows * 64 * 2, rel=0.01)  # 12.8 MB
    # The file was just written, so that all of it was in the system's cache: still one page per touched row.
    model.transformer.word_embeddings(torch.arange(0, rows, 1000))
    (vocabulary,) = mappings(folder / "model.safetensors")
    assert 4 * 90 <= vocabulary["Rss"] <= 4 * 150
    assert vocabulary["Private_Dirty"] == vocabulary["Anonymous"] == 0
    del model
    assert mappings(folder / "model.safetensors") == []
