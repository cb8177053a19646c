"""Cutting is proven equal to masking, for every family and its options; a wrong entry of the table is caught."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pruning
from pruning.architectures import prove
from pruning.architectures.anatomy import anatomy_of
from pruning.architectures.families import CHANNEL, GATE, KEY_VALUE, NEURON, QUERY, UNITS, UP
from pruning.architectures.lookup import family_for
from pruning.architectures.masks import masked
from pruning.architectures.probe import default_config
from pruning.architectures.prove import proof_failure, small_config
from pruning.architectures.shape import Shape
from pruning.architectures.tiny_model import random_model
from tests.helpers.models import CONFIGS, FAMILIES, config

OPTIONS = {
    "llama": {"attention_bias": [True, False], "mlp_bias": [True, False], "head_dim": [None, 12]},
    "mistral": {"sliding_window": [None, 4, 64]},
    "qwen2": {"use_sliding_window": [True, False], "max_window_layers": [0, 1, 2]},
    "qwen3": {"attention_bias": [True, False]},
    "gemma2": {"attn_logit_softcapping": [None, 5.0], "query_pre_attn_scalar": [4, 16]},
    "gemma3_text": {"attention_bias": [True, False], "final_logit_softcapping": [None, 3.0]},
    "phi3": {"sliding_window": [None, 4]},
    "gpt2": {"scale_attn_by_inverse_layer_idx": [False], "activation_function": ["relu", "gelu_new"]},
    "opt": {"enable_bias": [True, False], "do_layer_norm_before": [True, False]},
    "gpt_neox": {"attention_bias": [True, False], "use_parallel_residual": [True, False]},
    "smollm3": {"attention_bias": [True, False], "mlp_bias": [True, False]},
    "granite": {
        "attention_bias": [True, False],
        "logits_scaling": [1.0, 4.0],
        "residual_multiplier": [0.5, 1.0],
    },
    "olmo2": {"attention_bias": [True, False]},
    "stablelm": {
        "use_qkv_bias": [True, False],
        "qk_layernorm": [True, False],
        "use_parallel_residual": [True, False],
    },
    "glm4": {"attention_bias": [True, False]},
    "cohere": {"use_qk_norm": [True, False], "attention_bias": [True, False]},
    "falcon": {"alibi": [True, False], "new_decoder_architecture": [True, False], "bias": [True, False]},
    "starcoder2": {"use_bias": [True, False], "sliding_window": [None, 4]},
}
"""Options that decide which tensors a model has, or what it computes of them, with values of each."""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("unit", [unit for unit in UNITS if unit != "experts"])
def test_a_line_of_the_table_is_proven(family, unit):
    reason = proof_failure(config(family), unit)
    kind = QUERY if unit == "groups" else UNITS[unit]
    assert (reason is None) == (kind not in family_for(config(family)).unprunable), reason


@pytest.mark.parametrize("family", OPTIONS)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_options_of_a_config_change_nothing_about_it(family, data):
    drawn = {key: data.draw(st.sampled_from(values), label=key) for key, values in OPTIONS[family].items()}
    drawn["tie_word_embeddings"] = data.draw(st.booleans(), label="tie_word_embeddings")
    base = config(family, **drawn) if family in CONFIGS else type(default_config(family))(**drawn)
    for unit in ("neurons", "layers"):
        assert proof_failure(base, unit) is None


def _with_mlp(family, name, *labels):
    return replace(family, mlp={**family.mlp, name: labels})


def test_a_wrong_entry_of_the_table_is_caught():
    small = small_config(config("phi3"), family_for(config("phi3")))
    right = family_for(small)
    interleaved = _with_mlp(right, "mlp.gate_up_proj.weight", NEURON, CHANNEL)
    assert prove.prove(small, "neurons") is None
    assert "computes something else" in prove.prove(small, "neurons", interleaved)
    values_first = (KEY_VALUE, QUERY, KEY_VALUE)
    attention = {**right.attention, "self_attn.qkv_proj.weight": (values_first, CHANNEL)}
    assert "computes something else" in prove.prove(small, "groups", replace(right, attention=attention))


def test_a_table_that_takes_the_gate_for_the_output_is_caught():
    small = small_config(config("llama"), family_for(config("llama")))
    wrong = _with_mlp(family_for(small), "mlp.gate_proj.weight", None, CHANNEL)
    assert "does not run" in prove.prove(small, "neurons", wrong)


def test_a_cut_that_takes_other_neurons_than_the_mask_is_caught(monkeypatch):
    small = small_config(config("llama"), family_for(config("llama")))
    cut = prove.cut

    def shifted(model, shape, kept):
        return cut(
            model, shape, {kind: [(each + 1) % 48 for each in layers] for kind, layers in kept.items()}
        )

    monkeypatch.setattr(prove, "cut", shifted)
    assert "computes something else" in prove.prove(small, "neurons")


def test_neurons_are_masked_as_by_zero_columns():
    small = small_config(config("llama"), family_for(config("llama")))
    model, anatomy = random_model(small), anatomy_of(small)
    ids = torch.arange(2, 20)[None]
    kept = [torch.arange(0, 48, 2)] * anatomy.layers
    with torch.inference_mode(), masked(model, anatomy, {NEURON: kept}):
        by_hook = model(ids).logits
    whole = {name: values.clone() for name, values in model.named_parameters()}
    for layer in range(anatomy.layers):
        model.model.layers[layer].mlp.down_proj.weight[:, 1::2] = 0
    with torch.inference_mode():
        by_hand = model(ids).logits
    for name, values in model.named_parameters():
        values.copy_(whole[name])
    torch.testing.assert_close(by_hook, by_hand)


def test_gates_are_told_from_what_they_multiply():
    family = family_for(default_config("smollm3"))
    assert family.gated
    assert family.mlp["mlp.gate_proj.weight"] == (GATE, CHANNEL)
    assert family.mlp["mlp.up_proj.weight"] == (UP, CHANNEL)


def test_a_reason_names_what_stands_in_the_way():
    heads = proof_failure(default_config("bloom"), "heads")
    assert "no head size of its own" in heads
    assert "computes something else" in proof_failure(default_config("olmo2"), "groups")
    assert "counts MLP neurons" in proof_failure(default_config("bloom"), "neurons")


def test_layers_whose_number_says_what_they_are_are_not_removed():
    """DiffLlama scales attention by the number of the layer, which no config can hold."""
    assert "lambda_init" in proof_failure(default_config("diffllama"), "layers")
    base = config("gpt2", n_layer=4, scale_attn_by_inverse_layer_idx=True)
    assert "scaling of layer" in proof_failure(base, "layers")


def test_a_step_refuses_what_is_not_proven():
    shape = Shape.of(small_config(default_config("olmo2"), family_for(default_config("olmo2"))))
    with pytest.raises(
        pruning.RecipeError, match=r"groups of Olmo2 cannot be cut: .* computes something else"
    ):
        pruning.Heads(groups=1).reshape(shape)
