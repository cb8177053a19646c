"""Channels of the residual stream: what carries nothing can go, and what is left is as it was."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import pruning
from pruning import Channels, Recipe, RecipeError
from pruning.architectures.anatomy import anatomy_of
from pruning.architectures.families import CHANNEL, QUERY
from pruning.architectures.shape import Shape
from pruning.calibration.calibrate import windows_of
from pruning.calibration.norm_moments import norm_moments
from pruning.text.likelihood import mean_loss
from pruning.text.passages import passage
from pruning.text.tokens import Windows, split_into_windows, token_ids
from tests.helpers.models import FAMILIES, GATED, config, count, folder_of, loaded, matrices, trained

FIXED = [family for family in FAMILIES if family not in GATED]
SCALED_EMBEDDINGS = ("gemma2", "gemma3_text")
LIVE = [channel for channel in range(32) if channel % 4 != 1]
TEXT = pruning.Calibration(tokens=1280, window=64)
IDS = torch.arange(3, 23)[None]


def recipe(*steps):
    return Recipe(base="tiny", calibration=TEXT, steps=steps)


def hushed(family, **overrides):
    """A model of which a quarter of the channels carries nothing, in tensors written down by hand."""
    base = loaded(family, **overrides)
    model = copy.deepcopy(base.model)
    dead = [channel for channel in range(32) if channel not in LIVE]
    model.get_input_embeddings().weight[:, dead] = 0
    for layer in range(model.config.num_hidden_layers):
        block = model.model.layers[layer]
        for write in (block.self_attn.o_proj, block.mlp.down_proj):
            write.weight[dead] = 0
            if write.bias is not None:
                write.bias[dead] = 0
    return pruning.LoadedModel(model, base.tokenizer, base.source, base.storage_dtype)


@pytest.mark.parametrize("repair", [True, False], ids=["repaired", "plain"])
@pytest.mark.parametrize("criterion", ["minitron", "energy"])
@pytest.mark.parametrize("family", GATED)
def test_channels_that_carry_nothing_can_go(family, criterion, repair):
    """The norms are scaled by what the hidden size changes, and so are the embeddings of Gemma."""
    base = hushed(family, rms_norm_eps=1e-9)
    pruned = pruning.prune(recipe(Channels(hidden_size=24, criterion=criterion, repair=repair)), base).model
    torch.testing.assert_close(pruned(IDS).logits, base.model(IDS).logits, rtol=1e-4, atol=1e-4)
    read = matrices(pruned, 0)[0][0]
    assert torch.equal(read, matrices(base.model, 0)[0][0][:, LIVE])
    assert pruned.config.hidden_size == 24
    assert pruned.config.head_dim == base.model.config.head_dim


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", GATED)
def test_tied_embeddings_stay_tied(family, tied, tmp_path):
    base = loaded(family, tie_word_embeddings=tied)
    pruned = pruning.prune(recipe(Channels(fraction=0.2)), base).model
    inputs, outputs = pruned.get_input_embeddings().weight, pruned.get_output_embeddings().weight
    assert (inputs.data_ptr() == outputs.data_ptr()) == tied
    assert inputs.shape == outputs.shape == (base.model.config.vocab_size, 24)
    pruned.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(IDS).logits, pruned(IDS).logits)
    assert count(again) == count(pruned)


@pytest.mark.parametrize("family", SCALED_EMBEDDINGS)
def test_what_gemma_keeps_beside_its_weights(family):
    base = loaded(family)
    scale = float(base.model.model.embed_tokens.embed_scale)
    pruned = pruning.prune(recipe(Channels(hidden_size=24)), base).model
    assert float(pruned.model.embed_tokens.embed_scale) == pytest.approx(math.sqrt(24))
    assert pruned.config.query_pre_attn_scalar == base.model.config.query_pre_attn_scalar == 8
    assert float(base.model.model.embed_tokens.embed_scale) == scale == pytest.approx(math.sqrt(32))


@pytest.mark.parametrize("family", GATED)
def test_moments_are_those_of_all_windows_read_at_once(family):
    """What a norm sees does not depend on how the text is batched, nor on the order of its windows."""
    base = loaded(family)
    anatomy = anatomy_of(base.model.config)
    windows = Windows(tuple(torch.randint(3, 300, (4, 32))), tuple(torch.randint(3, 300, (2, 32))))
    moments = norm_moments(base.model, anatomy, windows)
    seen = {}
    handles = [
        base.model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: (inputs[0], output)})
        )
        for name in moments
    ]
    base.model.base_model(input_ids=torch.stack(windows.fitting + windows.heldout), use_cache=False)
    for handle in handles:
        handle.remove()
    assert len(moments) == (4 if family in SCALED_EMBEDDINGS else 2) * anatomy.layers + 1
    for name, (inputs, output) in seen.items():
        share = inputs.square() / inputs.square().mean(dim=-1, keepdim=True)
        torch.testing.assert_close(moments[name].share, share.mean(dim=(0, 1)), rtol=1e-4, atol=1e-5)
        sequence = output.abs().mean(dim=1).square().sum(dim=0).sqrt()
        torch.testing.assert_close(moments[name].sequence, sequence, rtol=1e-4, atol=1e-5)
    turned = Windows(windows.fitting[::-1], windows.heldout[::-1])
    for name, again in norm_moments(base.model, anatomy, turned).items():
        torch.testing.assert_close(again.sequence, moments[name].sequence)


def test_norms_are_scaled_by_what_they_see():
    base = loaded("llama")
    windows = windows_of(base, TEXT)
    moments = norm_moments(base.model, anatomy_of(base.model.config), windows)
    kept = sum(norm.sequence for norm in moments.values()).topk(24).indices.sort().values
    pruned = pruning.prune(recipe(Channels(hidden_size=24, criterion="minitron")), base).model
    for name, norm in moments.items():
        expected = base.model.get_submodule(name).weight[kept] * norm.share[kept].mean().sqrt()
        torch.testing.assert_close(pruned.get_submodule(name).weight, expected)


def test_repair_wins_back_what_a_cut_costs():
    base = trained()
    calibration = pruning.Calibration(text="story", tokens=4096, window=128)
    heldout = split_into_windows(
        base.tokenizer, token_ids(base.model, base.tokenizer, passage("story", "heldout")), 128
    )

    def loss(repair):
        steps = [Channels(fraction=0.25, repair=repair)]
        return mean_loss(
            pruning.prune(Recipe(base="x", calibration=calibration, steps=steps), base).model, heldout
        )

    whole, plain, repaired = mean_loss(base.model, heldout), loss(False), loss(True)
    assert whole < repaired
    assert repaired - whole < 0.9 * (plain - whole)


@pytest.mark.parametrize("family", FIXED)
def test_families_with_a_derived_head_size_are_refused_before_any_work(family):
    with pytest.raises(RecipeError, match=r"cannot be cut: .* it follows from the embedding size"):
        pruning.preview(Recipe(base=str(folder_of(family)), steps=[Channels(fraction=0.2)]))


@settings(max_examples=60, deadline=None)
@given(
    family=st.sampled_from(GATED),
    heads=st.sampled_from([1, 2, 3, 4, 6]),
    channels=st.integers(2, 12),
    fraction=st.floats(0.01, 0.99),
    multiple=st.sampled_from([1, 4, 8]),
)
def test_no_more_is_removed_than_asked_and_the_config_loads(family, heads, channels, fraction, multiple):
    size = heads * channels
    small = config(family, hidden_size=size, num_attention_heads=heads, num_key_value_heads=1)
    step = Channels(fraction=fraction, multiple_of=multiple)
    largest = (size - 1) // math.lcm(heads, multiple) * math.lcm(heads, multiple)
    if size - int(fraction * size) > largest:
        with pytest.raises(RecipeError, match="This removes none"):
            step.reshape(Shape.of(small))
        return
    shape = step.reshape(Shape.of(small))
    kept = shape.count(CHANNEL)
    assert size > kept >= size - int(fraction * size)
    assert kept % shape.count(QUERY) == kept % multiple == 0
    assert anatomy_of(shape.config).units[CHANNEL] == kept
    assert shape.parameters == Shape.of(shape.config).parameters


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (
            {"fraction": 0.02, "multiple_of": 1},
            r"a multiple of the number of heads, 4; cut at least 12.5 %, down to 28",
        ),
        ({"hidden_size": 32}, r"This removes none of the 32 channels"),
        ({"fraction": 0.3, "multiple_of": 64}, r"4 and of 64, as requested; no smaller size is"),
    ],
)
def test_what_was_possible_is_said(step, says):
    with pytest.raises(RecipeError, match=says):
        recipe(Channels(**step)).check(Shape.of(loaded("llama").model.config))


def test_a_config_that_would_not_load_is_refused_before_any_work():
    factors = {"rope_type": "longrope", "factor": 1.0, "short_factor": [1.0] * 4, "long_factor": [1.0] * 4}
    long = config("phi3", rope_parameters=factors | {"rope_theta": 1e4})
    with pytest.raises(RecipeError, match="A model with 24 channels would not load"):
        Channels(hidden_size=24).reshape(Shape.of(long))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "either fraction or hidden_size"),
        ({"fraction": 0.2, "hidden_size": 24}, "either fraction or hidden_size"),
        ({"fraction": 1.0}, "greater than 0 and less than 1"),
        ({"fraction": [0.1, 0.2]}, "all layers share the channels"),
        ({"fraction": 0.2, "criterion": "l1"}, "criterion"),
    ],
)
def test_senseless_settings_are_refused(values, says):
    with pytest.raises(RecipeError, match=says):
        Channels(**values)


@pytest.mark.real
def test_channels_of_smollm2(smollm2):
    """576 → 540, on little text; on 8,192 tokens of WikiText-2 it is 1.2 times the dense model's."""
    text = passage("encyclopedia", "heldout")
    calibration = pruning.Calibration(text="encyclopedia", tokens=1024)
    step = Channels(hidden_size=540)
    cut = pruning.prune(Recipe(base="smollm2-135m", calibration=calibration, steps=[step]), smollm2)
    dense, pruned = (
        pruning.perplexity(model, smollm2.tokenizer, text, tokens=512).value
        for model in (smollm2.model, cut.model)
    )
    assert pruned < 1.75 * dense
