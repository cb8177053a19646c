"""Streaming: the files that pruning in memory would have saved, without holding the model."""

import json
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
    """Every kind of cut that looks at weights alone, each on what the last one left."""
    heads = [] if QUERY in family_of(family).unprunable else [Heads(groups=1, criterion="weights")]
    layers, neurons = Layers(layers=(0,)), Neurons(fraction=0.3, criterion="l2")
    return [neurons, *heads, layers, Neurons(intermediate_size=20, criterion="ppm")]


def saved(folder, family, dtype=torch.float32, **options):
    """A small model in a folder, in several files if asked for."""
    tiny(family).to(dtype).save_pretrained(folder, **options)
    tokenizer(family in WITH_BOS).save_pretrained(folder)
    return folder


def files_of(folder):
    """The files of a folder, but for the minute that the card was made in."""
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    return {name: re.sub(rb"(?m)^made: .*$", b"", content) for name, content in files.items()}


def weights_of(folder):
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def both_ways(folder, steps, tmp_path):
    """The folders that a recipe gives in memory and streamed, of the same name."""
    recipe = Recipe(base=str(folder), steps=steps)
    held, streamed = tmp_path / "held" / "small", tmp_path / "streamed" / "small"
    pruning.prune(recipe, pruning.load(str(folder))).save(held)
    streaming.prune(recipe, streamed)
    return held, streamed


def assert_same_weights(one, other):
    ours, theirs = weights_of(one), weights_of(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype
        assert torch.equal(value, theirs[name])


@pytest.mark.parametrize("family", FAMILIES)
def test_gives_the_files_of_a_cut_in_memory(family, tmp_path):
    held, streamed = both_ways(folder_of(family), steps_of(family), tmp_path)
    assert files_of(streamed) == files_of(held)


@pytest.mark.parametrize("family", FAMILIES)
def test_goes_file_by_file(family, tmp_path):
    base = saved(tmp_path / "base", family, **SMALL)
    before = files_of(base)
    held, streamed = both_ways(base, steps_of(family), tmp_path)
    assert_same_weights(held, streamed)
    ours, theirs = files_of(streamed), files_of(held)
    assert [name for name in theirs if name in ours and ours[name] != theirs[name]] == []
    assert set(theirs) - set(ours) == {"model.safetensors"}
    largest = max(len(content) for name, content in before.items() if name.endswith(".safetensors"))
    for name in set(ours) - set(theirs) - {"model.safetensors.index.json"}:
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
def test_keeps_the_precision(dtype, tmp_path):
    base = saved(tmp_path / "base", "qwen3", dtype, **SMALL)
    held, streamed = both_ways(base, steps_of("qwen3"), tmp_path)
    assert_same_weights(held, streamed)
    assert {value.dtype for value in weights_of(streamed).values()} == {dtype}
    assert json.loads((streamed / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")


def test_mixed_precisions_become_the_commonest(tmp_path):
    base, mixed = (saved(tmp_path / name, "llama", torch.bfloat16) for name in ("base", "mixed"))
    weights = load_file(base / "model.safetensors")
    wide = {name: value.float() * 1.0001 if value.ndim == 1 else value for name, value in weights.items()}
    save_file(wide, mixed / "model.safetensors", metadata={"format": "pt"})
    for folder in (base, mixed):
        recipe = Recipe(base=str(folder), steps=steps_of("llama"))
        streaming.prune(recipe, tmp_path / "out" / folder.name)
        pruning.prune(recipe, pruning.load(str(folder))).save(tmp_path / "held" / folder.name)
    for way in ("out", "held"):
        assert_same_weights(tmp_path / way / "base", tmp_path / way / "mixed")


def renamed(folder, family, rename):
    """A small model whose files use other names."""
    base = saved(folder, family)
    weights = {rename(name): value for name, value in load_file(base / "model.safetensors").items()}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    return base


def test_reads_names_without_the_prefix(tmp_path):
    base = renamed(tmp_path / "base", "gpt2", lambda name: name.removeprefix("transformer."))
    held, streamed = both_ways(base, steps_of("gpt2"), tmp_path)
    assert files_of(streamed) == files_of(held)


def test_says_so_where_a_tied_name_is_in_the_way(tmp_path):
    base = renamed(tmp_path / "base", "qwen2", lambda name: name.replace("model.embed_tokens", "lm_head"))
    with pytest.raises(ModelError, match=r"model\.embed_tokens\.weight .* tied"):
        streaming.prune(Recipe(base=str(base), steps=steps_of("qwen2")), tmp_path / "out")


@pytest.mark.parametrize("family", [name for name in FAMILIES if QUERY not in family_of(name).unprunable])
def test_heads_go_by_what_their_weights_can_move(family):
    base = loaded(family).model
    config = base.config
    width, heads, groups = config.head_dim, config.num_attention_heads, config.num_key_value_heads
    each = heads // groups
    recipe = Recipe(base="llama", steps=[Heads(groups=1, criterion="weights")])
    pruned = pruning.prune(recipe, loaded(family)).model
    for whole, cut in zip(base.model.layers, pruned.model.layers, strict=True):
        attention = whole.self_attn
        fused = hasattr(attention, "qkv_proj")
        values = attention.qkv_proj.weight[-groups * width :] if fused else attention.v_proj.weight
        writes = attention.o_proj.weight.double().split(width, dim=1)
        reads = values.double().split(width)
        scores = [(writes[head] @ reads[head // each]).norm() for head in range(heads)]
        best = torch.tensor(scores).view(groups, each).sum(dim=1).argmax()
        span = slice(best * each * width, (best + 1) * each * width)
        assert torch.equal(cut.self_attn.o_proj.weight, attention.o_proj.weight[:, span])


@pytest.mark.parametrize(
    "step",
    [
        Neurons(fraction=0.3),
        Neurons(fraction=0.3, criterion="ppm", repair=True),
        Heads(groups=1),
        Heads(groups=1, criterion="weights", repair=True),
        Layers(count=1, protect=False),
    ],
    ids=lambda step: step.describe(),
)
def test_refuses_what_runs_the_model(step, tmp_path):
    recipe = Recipe(base=str(folder_of("llama")), steps=[Neurons(intermediate_size=40, criterion="l1"), step])
    with pytest.raises(RecipeError, match="do not stream") as refused:
        streaming.prune(recipe, tmp_path / "out")
    assert refused.value.place == ("steps", 1)
    assert not (tmp_path / "out").exists()


def test_a_stopped_stream_leaves_nothing(tmp_path):
    def stop(progress):
        if "back to check" in progress.text:
            raise Cancelled("stopped")

    recipe = Recipe(base=str(folder_of("llama")), steps=steps_of("llama"))
    with pytest.raises(Cancelled):
        streaming.prune(recipe, tmp_path / "out" / "small", progress=stop)
    assert list((tmp_path / "out").iterdir()) == []


def test_writes_into_no_folder_that_is_used(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    recipe = Recipe(base=str(folder_of("llama")), steps=steps_of("llama"))
    with pytest.raises(SavingError, match="not empty"):
        streaming.prune(recipe, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_missing_file_is_an_error(tmp_path):
    base = saved(tmp_path / "base", "llama", **SMALL)
    next(iter(base.glob("model-00002*"))).unlink()
    with pytest.raises(ModelError):
        streaming.prune(Recipe(base=str(base), steps=steps_of("llama")), tmp_path / "out")


DEEP = {"num_hidden_layers": 6}


@pytest.fixture
def little_memory(monkeypatch):
    """A machine that has room for most of a deep Llama: accelerate leaves the rest on disk."""
    size = sum(each.nbytes for each in tiny("llama", **DEEP).parameters())
    real = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: real._replace(available=int(0.9 * size)))


def test_what_memory_cannot_hold_stays_on_disk(little_memory, tmp_path):
    told = []
    loaded = pruning.load(str(save_tiny(tmp_path / "base", "llama", **DEEP)), progress=told.append)
    assert "disk" in told[-1]
    assert {"cpu", DISK} == set(loaded.model.hf_device_map.values())
    whole = tiny("llama", **DEEP)
    for name, value in whole.named_parameters():
        assert torch.equal(parameter(loaded.model, name), value)
    assert torch.equal(loaded.model(IDS).logits, whole(IDS).logits)


def test_what_cannot_run_is_refused(tmp_path, monkeypatch):
    base = save_tiny(tmp_path / "base", "llama")
    real = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: real._replace(available=10_000))
    with pytest.raises(ModelError, match="--stream"):
        pruning.load(str(base))
    streaming.prune(Recipe(base=str(base), steps=steps_of("llama")), tmp_path / "out")


@pytest.mark.parametrize(
    "steps",
    [
        [Layers(layers=(1, 5), repair=True), Neurons(fraction=0.3, criterion="l2"), Heads(queries=1)],
        [Channels(fraction=0.3), Weights(fraction=0.5)],
        [Vocabulary(fraction=0.1), Layers(count=1)],
    ],
    ids=str,
)
def test_cuts_and_saves_what_is_partly_on_disk(steps, tmp_path, request):
    base = save_tiny(tmp_path / "base", "llama", **DEEP)
    calibration = Calibration(text="story", tokens=600, window=128)
    recipe = Recipe(base=str(base), calibration=calibration, steps=steps)
    expected = pruning.prune(recipe, pruning.load(str(base))).model
    request.getfixturevalue("little_memory")
    loaded = pruning.load(str(base))
    pruned = pruning.prune(recipe, loaded)
    assert {"cpu", DISK} == set(pruned.model.hf_device_map.values())
    assert torch.equal(pruned.model(IDS).logits, expected(IDS).logits)
    if isinstance(steps[0], Layers):
        held = loaded.model.get_parameter("model.embed_tokens.weight")
        assert pruned.model.get_parameter("model.embed_tokens.weight").data_ptr() == held.data_ptr()
    pruned.save(tmp_path / "out")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(reloaded(IDS).logits, expected(IDS).logits)


@pytest.mark.parametrize("step", [Reconstruction(), Distillation(steps=1, text="story")], ids=str)
def test_what_trains_is_refused_where_not_all_is_in_memory(step, tmp_path, little_memory):
    base = pruning.load(str(save_tiny(tmp_path / "base", "llama", **DEEP)))
    calibration = Calibration(text="story", tokens=600, window=128)
    with pytest.raises(RecipeError, match="spread over several devices"):
        pruning.prune(Recipe(base="llama", calibration=calibration, steps=[step]), base)


def test_cuts_what_accelerate_spread(tmp_path):
    base = pruning.load(str(save_tiny(tmp_path / "base", "llama", **DEEP)))
    whole = pruning.load(base.source.name)
    # accelerate takes this for a device of its own, beside which it leaves layers in main memory.
    main = torch.device("cpu")
    outside = dict.fromkeys(["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"], main)
    inside = {f"model.layers.{layer}": "cpu" if layer > 3 else main for layer in range(6)}
    dispatch_model(base.model, device_map=outside | inside)
    steps = [Layers(layers=(1,)), Neurons(fraction=0.3), Heads(groups=1)]
    recipe = Recipe(base="llama", steps=steps, calibration=Calibration(text="story", tokens=600, window=128))
    expected, pruned = (pruning.prune(recipe, each) for each in (whole, base))
    places = pruned.model.hf_device_map
    assert [places[f"model.layers.{layer}"] for layer in (2, 3, 4)] == [main, "cpu", "cpu"]
    assert {each.is_meta for each in pruned.model.model.layers[4].parameters()} == {True}
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


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are measured as Linux does")
def test_holds_little_more_than_a_file(tmp_path):
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
    done = subprocess.run(run, stdout=subprocess.PIPE, check=True, text=True, cwd=Path(__file__).parents[2])
    assert int(done.stdout.splitlines()[-1]) < 2.5 * max(sizes) < sum(sizes) / 3
