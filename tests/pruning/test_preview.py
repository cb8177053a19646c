"""Sizes before and after a cut, from the config alone."""

import json
import os

import psutil
import pytest
from transformers import CONFIG_MAPPING

import pruning
from tests.helpers.model_files import asked_for, tiny_llama
from tests.helpers.models import _build, count

DISTILGPT2 = {"model_type": "gpt2", "n_layer": 6, "n_embd": 768, "n_head": 12, "vocab_size": 50257}
LLAMA_3B = {
    "model_type": "llama",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
}
LLAMA_1B = LLAMA_3B | {
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "head_dim": 64,
}


def preview(tmp_path, values, fraction):
    (tmp_path / "config.json").write_text(json.dumps(values))
    steps = [pruning.Neurons(fraction=fraction, multiple_of=1)]
    result = pruning.preview(pruning.Recipe(base=str(tmp_path), steps=steps))
    return result.before.parameters, result.after.parameters


def test_preview_from_a_config_alone(tmp_path):
    memory = psutil.Process(os.getpid()).memory_info().rss
    assert preview(tmp_path, DISTILGPT2, 0.2) == (81_912_576, 76_250_268)
    assert preview(tmp_path, LLAMA_1B, 0.2) == (1_235_814_400, 1_074_792_448)
    assert preview(tmp_path, LLAMA_1B, 0.4)[1] / 1e6 == pytest.approx(913.77, abs=0.005)
    whole = {fraction: preview(tmp_path, LLAMA_3B, fraction) for fraction in (0.2, 0.4, 0.6)}
    assert [after / 1e6 for _, after in whole.values()] == pytest.approx(
        [2790.07, 2367.38, 1944.44], abs=0.005
    )
    assert {before for before, _ in whole.values()} == {3_212_749_824}
    assert psutil.Process(os.getpid()).memory_info().rss - memory < 200e6


def test_preview_of_a_hub_model_downloads_no_weights(hub):
    hub.add_model("ada/tiny", tiny_llama())
    shape = pruning.preview(pruning.Recipe(base="ada/tiny", steps=[pruning.Neurons(fraction=0.5)]))
    assert shape.after.parameters < shape.before.parameters
    assert not asked_for(hub, ".safetensors")


def test_a_preview_counts_the_layers_that_are_named(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    experts = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "mlp_only_layers": [0],
    }
    mixture = CONFIG_MAPPING["qwen3_moe"](**sizes, **experts, vocab_size=320, num_key_value_heads=2)
    mixture.save_pretrained(tmp_path)
    for layers, dense in (((0,), []), ((1,), [0]), ((0, 2), [])):
        after = pruning.preview(str(tmp_path), steps=[pruning.Layers(layers=layers)]).after
        assert after.config.mlp_only_layers == dense
        assert after.parameters == count(_build(after.config))
