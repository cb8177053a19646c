"""Float32 copies in the cache: the same values as without them, and memory that processes share."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import pruning
from pruning.loading import mapped
from tests.helpers.models import FAMILIES, folder_of, save_tiny, tokenizer

LOAD = """
import json, os, sys, torch
import pruning
from pruning.memory import private_memory, release_memory
torch.set_num_threads(1)
pruning.load  # the imports count before
import pruning.loading.load
from transformers import AutoModelForCausalLM, LlamaForCausalLM
release_memory()
before = private_memory(os.getpid())
loaded = pruning.load(sys.argv[1], mapped=sys.argv[2] == "mapped", token=False)
release_memory()
with torch.inference_mode():
    loaded.model(torch.arange(2, 10)[None])
taken = private_memory(os.getpid()) - before
print(json.dumps([taken, sum(p.numel() for p in loaded.model.parameters()) * 4]))
"""


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def copies(tmp_path):
    return sorted((tmp_path / "state" / "secateur").glob("mapped/*/model.safetensors"))


def same(first, second):
    states = first.model.state_dict(), second.model.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(tensor, states[1][name]) for name, tensor in states[0].items()
    )


@pytest.mark.parametrize(
    ("family", "dtype"), [*((family, torch.bfloat16) for family in FAMILIES), ("llama", torch.float16)]
)
def test_values_are_those_of_a_model_that_is_not_mapped(hub, tmp_path, family, dtype):
    hub.add_model("ada/half", files_of(save_tiny(tmp_path / "half", family, dtype=dtype)))
    plain, shared = (pruning.load("ada/half", mapped=mapped, token=False) for mapped in (False, True))
    assert same(plain, shared)
    assert (shared.storage_dtype, shared.source) == (dtype, plain.source)
    assert shared.model.name_or_path == plain.model.name_or_path
    assert shared.model.generation_config.to_dict() == plain.model.generation_config.to_dict()
    assert len(copies(tmp_path)) == 1


def test_tensors_in_more_precision_than_most_are_rounded_alike(tmp_path):
    folder = save_tiny(tmp_path / "mixed", "llama", dtype=torch.bfloat16)
    tensors = load_file(folder / "model.safetensors")
    for name, dtype in (("lm_head.weight", torch.float64), ("model.norm.weight", torch.float32)):
        tensors[name] = torch.randn(tensors[name].shape, dtype=dtype)
    tensors["model.layers.0.mask"] = torch.ones(3, dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    plain, shared = (pruning.load(str(folder), mapped=mapped) for mapped in (False, True))
    assert len(copies(tmp_path)) == 1
    assert same(plain, shared)


def test_sharded_weights_become_one_file(hub, tmp_path):
    base = pruning.load(str(folder_of("llama")))
    base.model.to(torch.bfloat16).save_pretrained(tmp_path / "shards", max_shard_size="30KB")
    files = files_of(folder_of("llama")) | files_of(tmp_path / "shards")
    del files["model.safetensors"]
    hub.add_model("ada/shards", files)
    assert same(*(pruning.load("ada/shards", mapped=mapped, token=False) for mapped in (False, True)))
    assert len(copies(tmp_path)) == 1


def test_a_float32_model_needs_no_copy(hub, tmp_path):
    hub.add_model("ada/full", files_of(folder_of("llama")))
    pruning.load("ada/full", mapped=True, token=False)
    assert copies(tmp_path) == []


def test_a_private_model_is_not_kept_for_others(hub, tmp_path):
    hub.add_model("ada/secret", files_of(save_tiny(tmp_path / "half", "llama", torch.bfloat16)), private=True)
    loaded = pruning.load("ada/secret", mapped=True, token="ada-token")
    assert loaded.storage_dtype == torch.bfloat16
    assert copies(tmp_path) == []


def test_a_copy_is_written_once_and_again_if_it_was_cut_short(hub, tmp_path):
    hub.add_model("ada/half", files_of(save_tiny(tmp_path / "half", "llama", torch.bfloat16)))
    first = pruning.load("ada/half", mapped=True, token=False)
    (copy,) = copies(tmp_path)
    written = copy.stat().st_ino
    pruning.load("ada/half", mapped=True, token=False)
    assert copy.stat().st_ino == written
    os.truncate(copy, 1000)
    assert same(pruning.load("ada/half", mapped=True, token=False), pruning.load("ada/half", token=False))
    assert copy.stat().st_size > 1000
    assert first.source.revision in str(copy)


def test_a_full_disk_leaves_no_half_copy(hub, tmp_path, files_of_at_most):
    hub.add_model("ada/half", files_of(save_tiny(tmp_path / "half", "llama", torch.bfloat16)))
    source = pruning.load("ada/half", token=False).source
    with files_of_at_most(50_000), pytest.raises(pruning.ModelError, match="Make room"):
        pruning.load(source, mapped=True, token=False)
    assert not list((tmp_path / "state" / "secateur").glob("mapped/**/*"))


def test_too_little_disk_is_noticed_before_anything_is_written(hub, tmp_path, monkeypatch):
    import shutil

    hub.add_model("ada/half", files_of(save_tiny(tmp_path / "half", "llama", torch.bfloat16)))
    source = pruning.load("ada/half", token=False).source
    full = shutil.disk_usage("/")._replace(free=10_000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: full)
    with pytest.raises(
        pruning.ModelError, match=r"need 0.\d MB of disk space in float32, and 0.0 MB are free"
    ):
        pruning.load(source, mapped=True, token=False)
    assert copies(tmp_path) == []


def test_copies_are_bounded_and_the_least_recently_used_go_first(tmp_path):
    source = pruning.load(str(save_tiny(tmp_path / "half", "llama", torch.bfloat16))).source
    files = [source.folder / "model.safetensors"]
    for number, name in enumerate("abc"):
        copy = mapped.float32_copy(replace(source, revision=name), files, torch.bfloat16)
        os.utime(copy / "model.safetensors", (number, number))
    mapped.float32_copy(replace(source, revision="a"), files, torch.bfloat16)  # used again
    size = copies(tmp_path)[0].stat().st_size
    mapped.trim(copies(tmp_path)[0].parents[1], 2 * size)
    assert [copy.parent.name[-1] for copy in copies(tmp_path)] == ["a", "c"]


def test_a_cancelled_conversion_leaves_nothing(tmp_path):
    def stop(progress):
        if progress.done == 2:
            raise pruning.Cancelled

    folder = save_tiny(tmp_path / "half", "llama", torch.bfloat16)
    with pytest.raises(pruning.Cancelled):
        pruning.load(str(folder), mapped=True, progress=stop)
    assert copies(tmp_path) == []


@pytest.mark.slow
def test_processes_that_load_a_mapped_model_share_its_memory(tmp_path):
    words = tokenizer()
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=6,
        num_attention_heads=8,
        tie_word_embeddings=True,
    )
    for name, dtype in (("half", torch.bfloat16), ("full", torch.float32)):
        LlamaForCausalLM(config).to(dtype).save_pretrained(tmp_path / name)
        words.save_pretrained(tmp_path / name)

    def taken(name, how):
        command = [sys.executable, "-c", LOAD, str(tmp_path / name), how]
        child = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()}
        )
        assert child.returncode == 0, child.stderr
        private, size = json.loads(child.stdout)
        assert size > 90e6
        return private / size

    pruning.load(str(tmp_path / "half"), mapped=True)  # writes the copy
    assert taken("half", "private") > 0.9
    assert taken("half", "mapped") < 0.5
    assert taken("full", "private") < 0.5
