"""Streaming gives the files that pruning in memory would save, without holding the model."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from accelerate import dispatch_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import pruning
from pruning import (
    Calibration,
    Cancelled,
    Channels,
    Distillation,
    Heads,
    Layers,
    ModelError,
    Neurons,
    Recipe,
    RecipeError,
    Reconstruction,
    SavingError,
    Vocabulary,
    Weights,
    streaming,
)
from pruning.architectures.families import QUERY, family_of
from pruning.architectures.placement import DISK, parameter
from tests.helpers.models import FAMILIES, WITH_BOS, config, folder_of, loaded, save_tiny, tiny, tokenizer

IDS = torch.arange(3, 43).reshape(2, 20)
SMALL = {"max_shard_size": "20KB"}


def steps_of(family):
    """Return every kind of cut that reads weights alone, each on the result of the one before."""
    heads = [] if QUERY in family_of(family).unprunable else [Heads(groups=1, criterion="weights")]
    layers, neurons = Layers(layers=(0,)), Neurons(fraction=0.3, criterion="l2")
    return [neurons, *heads, layers, Neurons(intermediate_size=20, criterion="peak_to_peak")]


def saved(folder, family, dtype=torch.float32, **options):
    """Save a small model in a folder; `max_shard_size` splits it into several files."""
    tiny(family).to(dtype).save_pretrained(folder, **options)
    tokenizer(family in WITH_BOS).save_pretrained(folder)
    return folder


def files_of(folder):
    """Return the files of a folder, without the minute in which the card was made."""
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    return {name: re.sub(rb"(?m)^made: .*$", b"", content) for name, content in files.items()}


def weights_of(folder):
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def both_ways(folder, steps, tmp_path):
    """Return the folders that a recipe gives in memory and streamed, of the same name."""
    recipe = Recipe(base=str(folder), steps=steps)
    in_memory, streamed = tmp_path / "in memory" / "small", tmp_path / "streamed" / "small"
    pruning.prune(recipe, pruning.load(str(folder))).save(in_memory)
    streaming.prune(recipe, streamed)
    return in_memory, streamed


def assert_same_weights(one, other):
    weights, expected = weights_of(one), weights_of(other)
    assert weights.keys() == expected.keys() != set()
    for name, value in weights.items():
        assert value.dtype == expected[name].dtype
        assert torch.equal(value, expected[name])


@pytest.mark.parametrize("family", FAMILIES)
def test_files_are_those_of_pruning_in_memory(family, tmp_path):
    in_memory, streamed = both_ways(folder_of(family), steps_of(family), tmp_path)
    assert files_of(streamed) == files_of(in_memory)


@pytest.mark.parametrize("family", FAMILIES)
def test_several_files_are_written_one_by_one(family, tmp_path):
    base = saved(tmp_path / "base", family, **SMALL)
    before = files_of(base)
    in_memory, streamed = both_ways(base, steps_of(family), tmp_path)
    assert_same_weights(in_memory, streamed)
    files, expected = files_of(streamed), files_of(in_memory)
    assert [name for name in expected if name in files and files[name] != expected[name]] == []
    assert set(expected) - set(files) == {"model.safetensors"}
    largest = max(len(content) for name, content in before.items() if name.endswith(".safetensors"))
    shards = set(files) - set(expected) - {"model.safetensors.index.json"}
    assert len(shards) > 1
    for name in shards:
        assert sum(value.nbytes for value in load_file(streamed / name).values()) <= largest
    assert files_of(base) == before


def test_plain_transformers_loads_it(tmp_path):
    base = saved(tmp_path / "base", "llama", **SMALL)
    recipe = Recipe(base=str(base), steps=steps_of("llama"))
    expected = pruning.prune(recipe, pruning.load(str(base))).model(IDS).logits
    pruned = streaming.prune(recipe, tmp_path / "out")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "out")(IDS).logits, expected)
    assert torch.equal(pruned.model(IDS).logits, expected)
    assert pruned.report.after.parameters == pruning.preview(recipe).after.parameters


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_precision_is_kept(dtype, tmp_path):
    base = saved(tmp_path / "base", "qwen3", dtype, **SMALL)
    in_memory, streamed = both_ways(base, steps_of("qwen3"), tmp_path)
    assert_same_weights(in_memory, streamed)
    assert {value.dtype for value in weights_of(streamed).values()} == {dtype}
    assert json.loads((streamed / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")


def test_mixed_precisions_become_the_most_common_one(tmp_path):
    base, mixed = (saved(tmp_path / name, "llama", torch.bfloat16) for name in ("base", "mixed"))
    weights = load_file(base / "model.safetensors")
    wide = {name: value.float() * 1.0001 if value.ndim == 1 else value for name, value in weights.items()}
    save_file(wide, mixed / "model.safetensors", metadata={"format": "pt"})
    for folder in (base, mixed):
        recipe = Recipe(base=str(folder), steps=steps_of("llama"))
        streaming.prune(recipe, tmp_path / "out" / folder.name)
        pruning.prune(recipe, pruning.load(str(folder))).save(tmp_path / "in memory" / folder.name)
    for way in ("out", "in memory"):
        assert_same_weights(tmp_path / way / "base", tmp_path / way / "mixed")


def renamed(folder, family, rename):
    """Save a small model under other names of its tensors."""
    base = saved(folder, family)
    weights = {rename(name): value for name, value in load_file(base / "model.safetensors").items()}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    return base


def test_tensor_names_may_lack_the_prefix(tmp_path):
    base = renamed(tmp_path / "base", "gpt2", lambda name: name.removeprefix("transformer."))
    in_memory, streamed = both_ways(base, steps_of("gpt2"), tmp_path)
    assert files_of(streamed) == files_of(in_memory)


def test_a_tied_tensor_under_its_other_name_is_refused(tmp_path):
    base = renamed(tmp_path / "base", "qwen2", lambda name: name.replace("model.embed_tokens", "lm_head"))
    with pytest.raises(ModelError, match=r"model\.embed_tokens\.weight .* tied"):
        streaming.prune(Recipe(base=str(base), steps=steps_of("qwen2")), tmp_path / "out")


@pytest.mark.parametrize("family", [name for name in FAMILIES if QUERY not in family_of(name).unprunable])
def test_heads_are_ranked_by_the_norm_of_their_circuits(family):
    base = loaded(family).model
    config = base.config
    width, heads, groups = config.head_dim, config.num_attention_heads, config.num_key_value_heads
    per_group = heads // groups
    recipe = Recipe(base="llama", steps=[Heads(groups=1, criterion="weights")])
    pruned = pruning.prune(recipe, loaded(family)).model
    for before, after in zip(base.model.layers, pruned.model.layers, strict=True):
        attention = before.self_attn
        fused = hasattr(attention, "qkv_proj")
        values = attention.qkv_proj.weight[-groups * width :] if fused else attention.v_proj.weight
        outputs = attention.o_proj.weight.double().split(width, dim=1)
        inputs = values.double().split(width)
        scores = [(outputs[head] @ inputs[head // per_group]).norm() for head in range(heads)]
        best = torch.tensor(scores).view(groups, per_group).sum(dim=1).argmax()
        span = slice(best * per_group * width, (best + 1) * per_group * width)
        assert torch.equal(after.self_attn.o_proj.weight, attention.o_proj.weight[:, span])


@pytest.mark.parametrize(
    "step",
    [
        Neurons(fraction=0.3),
        Neurons(fraction=0.3, criterion="peak_to_peak", repair=True),
        Heads(groups=1),
        Heads(groups=1, criterion="weights", repair=True),
        Layers(count=1, protect=False),
    ],
    ids=lambda step: step.describe(),
)
def test_steps_that_run_the_model_are_refused(step, tmp_path):
    recipe = Recipe(base=str(folder_of("llama")), steps=[Neurons(intermediate_size=40, criterion="l1"), step])
    with pytest.raises(RecipeError, match="do not stream") as refused:
        streaming.prune(recipe, tmp_path / "out")
    assert refused.value.place == ("steps", 1)
    assert not (tmp_path / "out").exists()


def test_a_cancelled_stream_leaves_nothing(tmp_path):
    def stop(progress):
        if "back to check" in progress.text:
            raise Cancelled("stopped")

    recipe = Recipe(base=str(folder_of("llama")), steps=steps_of("llama"))
    with pytest.raises(Cancelled):
        streaming.prune(recipe, tmp_path / "out" / "small", progress=stop)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_with_files_is_not_written_to(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    recipe = Recipe(base=str(folder_of("llama")), steps=steps_of("llama"))
    with pytest.raises(SavingError, match="not empty"):
        streaming.prune(recipe, tmp_path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("mine.txt", "mine")]


def test_a_missing_shard_is_refused(tmp_path):
    base = saved(tmp_path / "base", "llama", **SMALL)
    (shard,) = base.glob("model-00002*")
    shard.unlink()
    with pytest.raises(ModelError, match="model-00002"):
        streaming.prune(Recipe(base=str(base), steps=steps_of("llama")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


DEEP = {"num_hidden_layers": 6}


@pytest.fixture
def little_memory(monkeypatch):
    """A machine with memory for most of a deep Llama, so that accelerate leaves the rest on disk."""
    size = sum(parameter.nbytes for parameter in tiny("llama", **DEEP).parameters())
    real = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: real._replace(available=int(0.9 * size)))


def test_weights_that_do_not_fit_in_memory_stay_on_disk(little_memory, tmp_path):
    lines = []
    loaded = pruning.load(str(save_tiny(tmp_path / "base", "llama", **DEEP)), progress=lines.append)
    assert "disk" in lines[-1].text
    assert {"cpu", DISK} == set(loaded.model.hf_device_map.values())
    expected = tiny("llama", **DEEP)
    for name, value in expected.named_parameters():
        assert torch.equal(parameter(loaded.model, name), value)
    assert torch.equal(loaded.model(IDS).logits, expected(IDS).logits)


def test_a_model_that_cannot_run_is_refused_and_can_be_streamed(tmp_path, monkeypatch):
    base = save_tiny(tmp_path / "base", "llama")
    real = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: real._replace(available=10_000))
    with pytest.raises(ModelError, match="--stream"):
        pruning.load(str(base))
    recipe = Recipe(base=str(base), steps=steps_of("llama"))
    streaming.prune(recipe, tmp_path / "out")
    sizes = [value.numel() for value in weights_of(tmp_path / "out").values()]
    assert sum(sizes) == pruning.preview(recipe).after.parameters


@pytest.mark.parametrize(
    "steps",
    [
        [Layers(layers=(1, 5), repair=True), Neurons(fraction=0.3, criterion="l2"), Heads(queries=1)],
        [Channels(fraction=0.3), Weights(fraction=0.5)],
        [Vocabulary(fraction=0.1), Layers(count=1)],
    ],
    ids=str,
)
def test_a_model_partly_on_disk_is_pruned_and_saved(steps, tmp_path, request):
    base = save_tiny(tmp_path / "base", "llama", **DEEP)
    calibration = Calibration(text="story", tokens=600, window=128)
    recipe = Recipe(base=str(base), calibration=calibration, steps=steps)
    expected = pruning.prune(recipe, pruning.load(str(base))).model
    request.getfixturevalue("little_memory")
    loaded = pruning.load(str(base))
    pruned = pruning.prune(recipe, loaded, share_memory=True)
    assert {"cpu", DISK} == set(pruned.model.hf_device_map.values())
    assert torch.equal(pruned.model(IDS).logits, expected(IDS).logits)
    if isinstance(steps[0], Layers):
        shared = loaded.model.get_parameter("model.embed_tokens.weight")
        assert pruned.model.get_parameter("model.embed_tokens.weight").data_ptr() == shared.data_ptr()
    pruned.save(tmp_path / "out")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(reloaded(IDS).logits, expected(IDS).logits)


@pytest.mark.parametrize("step", [Reconstruction(), Distillation(steps=1, text="story")], ids=str)
def test_training_steps_are_refused_unless_all_is_in_memory(step, tmp_path, little_memory):
    base = pruning.load(str(save_tiny(tmp_path / "base", "llama", **DEEP)))
    calibration = Calibration(text="story", tokens=600, window=128)
    with pytest.raises(RecipeError, match="spread over several devices"):
        pruning.prune(Recipe(base="llama", calibration=calibration, steps=[step]), base)


def test_a_model_that_accelerate_dispatched_is_pruned(tmp_path):
    base = pruning.load(str(save_tiny(tmp_path / "base", "llama", **DEEP)))
    in_memory = pruning.load(base.source.name)
    # accelerate treats this as another device than "cpu", which is where it offloads layers to.
    device = torch.device("cpu")
    others = dict.fromkeys(["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"], device)
    layers = {f"model.layers.{layer}": "cpu" if layer > 3 else device for layer in range(6)}
    dispatch_model(base.model, device_map=others | layers)
    steps = [Layers(layers=(1,)), Neurons(fraction=0.3), Heads(groups=1)]
    recipe = Recipe(base="llama", steps=steps, calibration=Calibration(text="story", tokens=600, window=128))
    expected, pruned = (pruning.prune(recipe, model) for model in (in_memory, base))
    device_map = pruned.model.hf_device_map
    assert [device_map[f"model.layers.{layer}"] for layer in (2, 3, 4)] == [device, "cpu", "cpu"]
    assert {parameter.is_meta for parameter in pruned.model.model.layers[4].parameters()} == {True}
    assert torch.equal(pruned.model(IDS).logits, expected.model(IDS).logits)
    pruned.save(tmp_path / "out")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(reloaded(IDS).logits, expected.model(IDS).logits)


MEASURE = """
import sys
from pathlib import Path
from pruning import Recipe, streaming

def resident(which):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))

warm, base, output = map(Path, sys.argv[1:])
recipe = "steps: [{step: neurons, fraction: 0.2, criterion: ppm}, {step: layers, count: 1, method: last}]"
for folder in (warm, base):
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    streaming.prune(Recipe.parse(f"base: {folder}\\n{recipe}"), output / folder.name)
print(resident("VmHWM") - before)
"""


RETURN_WHAT_IS_FREED = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""glibc returns freed blocks of this size to the system. By default it keeps some, more or less of them each time."""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak is measured with /proc, which only Linux has"
)
def test_the_memory_peak_is_little_more_than_a_file(tmp_path):
    sizes = {"hidden_size": 256, "intermediate_size": 8192, "num_hidden_layers": 12}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config("llama", **sizes), dtype=torch.bfloat16)
    model.to_empty(device="cpu").save_pretrained(tmp_path / "base", max_shard_size="20MB")
    for file in (tmp_path / "base").glob("*.safetensors"):
        weights = {name: torch.rand(value.shape).to(value) for name, value in load_file(file).items()}
        save_file(weights, file, metadata={"format": "pt"})
    tokenizer().save_pretrained(tmp_path / "base")
    sizes = [file.stat().st_size for file in (tmp_path / "base").glob("*.safetensors")]
    run = [sys.executable, "-c", MEASURE, folder_of("llama"), tmp_path / "base", tmp_path / "out"]
    environment = os.environ | RETURN_WHAT_IS_FREED
    done = subprocess.run(
        run, stdout=subprocess.PIPE, check=True, text=True, cwd=Path(__file__).parents[2], env=environment
    )
    assert int(done.stdout.splitlines()[-1]) < 2.5 * max(sizes) < sum(sizes) / 3
