"""Reconstruction brings every layer closer to the base model, changes nothing else, and makes none worse."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from pruning import (
    Calibration,
    Cancelled,
    Channels,
    Heads,
    Layers,
    Neurons,
    Recipe,
    RecipeError,
    Reconstruction,
    Vocabulary,
    perplexity,
    prune,
)
from pruning.architectures.anatomy import anatomy_of
from pruning.architectures.families import CHANNEL, QUERY
from pruning.calibration.calibrate import windows_of
from pruning.repair.reconstruction import reconstruct
from pruning.text.passages import passage
from pruning.text.tokens import Windows
from tests.helpers.models import FAMILIES, loaded, tiny, trained

STORY = Calibration(text="story", tokens=512, window=64)


def cut(base, *steps, calibration=STORY):
    return prune(Recipe(base="base", calibration=calibration, steps=steps), base, share_memory=True).model


def with_tensors(model, tensors):
    """Return a copy of a model with some of its parameters replaced."""
    changed = copy.deepcopy(model)
    for name, value in tensors.items():
        changed.get_parameter(name).data = value
    return changed


def streams(model, window):
    """Return the residual stream before every layer, `[layers, tokens, channels]`, from transformers."""
    states = model(input_ids=window[None], output_hidden_states=True, use_cache=False).hidden_states
    return torch.stack(states[:-1])[:, 0]


def lost(model, base, windows, place, base_place):
    """Return the mean over tokens of ‖h − ĥ‖² / max(‖h‖², ‖ĥ‖²), before a layer of each model."""
    shares = []
    for window in windows:
        state, target = streams(model, window)[place], streams(base, window)[base_place]
        energy = torch.maximum(state.square().sum(-1), target.square().sum(-1))
        shares.append((state - target).square().sum(-1) / energy)
    return float(torch.cat(shares).mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_comes_closer_to_the_base_model_and_nothing_else_changes(family):
    base = loaded(family)
    model = cut(base, Neurons(fraction=0.5, repair=False))
    before = {name: value.clone() for name, value in model.named_parameters()}
    base_before = {name: value.clone() for name, value in base.model.named_parameters()}
    windows = windows_of(base, STORY)
    made = reconstruct(model, base.model, windows)

    assert [fit.layer for fit in made.layers] == list(range(len(made.layers)))
    assert all(fit.lost_after <= fit.lost_before for fit in made.layers)
    assert made.layers[0].lost_after < made.layers[0].lost_before
    anatomy = anatomy_of(model.config)
    mlp = {spec.name for spec in anatomy.tensors if spec.component == "mlp"}
    outputs = {f"{anatomy.output_projection(layer, QUERY)}.weight" for layer in range(anatomy.layers)}
    assert len(mlp & made.tensors.keys()) > 0
    assert made.tensors.keys() <= mlp | outputs
    assert all(value.shape == before[name].shape for name, value in made.tensors.items())
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert all(torch.equal(value, base_before[name]) for name, value in base.model.named_parameters())

    first = made.layers[0]
    rebuilt = with_tensors(model, made.tensors)
    assert first.lost_before == pytest.approx(lost(model, base.model, windows.heldout, 1, 1), rel=1e-3)
    assert first.lost_after == pytest.approx(lost(rebuilt, base.model, windows.heldout, 1, 1), rel=1e-3)


def test_with_zero_epochs_only_least_squares_are_solved():
    base = loaded("llama")
    made = reconstruct(
        cut(base, Neurons(fraction=0.5, repair=False)), base.model, windows_of(base, STORY), epochs=0
    )
    assert [fit.epoch for fit in made.layers] == [0] * 3
    assert made.layers[0].lost_after < made.layers[0].lost_before
    assert {name.split(".")[-2] for name in made.tensors} <= {"down_proj", "o_proj"}
    recipe = Recipe(base="tiny", calibration=STORY, steps=[Neurons(fraction=0.5), Reconstruction(epochs=0)])
    assert len(prune(recipe, base).report.notes[1]) == 3


def test_reconstruction_helps_a_trained_model_more_than_repair():
    base = trained()
    calibration = Calibration(tokens=6000, window=64)

    def measured(model):
        return perplexity(model, base.tokenizer, passage("story", "heldout"), tokens=2000, window=64).value

    repaired = cut(base, Neurons(fraction=0.5), calibration=calibration)
    bare = cut(base, Neurons(fraction=0.5, repair=False), calibration=calibration)
    made = reconstruct(bare, base.model, windows_of(base, calibration))
    assert measured(base.model) < measured(with_tensors(bare, made.tensors)) < measured(repaired)


@pytest.mark.parametrize(
    ("steps", "kept_layers"),
    [
        ((Heads(groups=1, repair=False),), None),
        ((Layers(layers=(1,)),), (0, 2)),
        ((Layers(layers=(0,)), Heads(groups=1)), (1, 2)),
    ],
)
def test_reconstruction_brings_a_model_closer_after_any_cut(steps, kept_layers):
    base = loaded("llama")
    model = cut(base, *steps)
    windows = windows_of(base, STORY)
    made = reconstruct(model, base.model, windows, kept_layers)
    rebuilt = with_tensors(model, made.tensors)
    before, after = (lost(network, base.model, windows.heldout, -1, -1) for network in (model, rebuilt))
    assert after < before
    assert all(fit.lost_after < fit.lost_before for fit in made.layers)


def test_the_layer_before_a_gap_follows_the_base_behind_it():
    base = loaded("llama")
    windows = windows_of(base, STORY)
    model = cut(base, Layers(layers=(1,)))
    fit = reconstruct(model, base.model, windows, kept_layers=(0, 2)).layers[0]
    assert fit.lost_before == pytest.approx(lost(model, base.model, windows.heldout, 1, 2), rel=1e-3)


def test_a_model_whose_layers_are_not_known_is_refused():
    base = loaded("llama")
    with pytest.raises(RecipeError, match="it is not known which of the base's 3 they were"):
        reconstruct(cut(base, Layers(layers=(1,))), base.model, windows_of(base, STORY))


def test_two_runs_are_equal_bit_for_bit():
    base = loaded("gemma2")
    model = cut(base, Neurons(fraction=0.5))
    windows = windows_of(base, STORY)
    once, twice = (reconstruct(model, base.model, windows, seed=3) for _ in range(2))
    assert once.layers == twice.layers
    assert once.tensors.keys() == twice.tensors.keys()
    assert all(torch.equal(value, twice.tensors[name]) for name, value in once.tensors.items())


def test_an_unpruned_model_is_left_unchanged():
    base = loaded("qwen3")
    made = reconstruct(base.model, base.model, windows_of(base, STORY))
    assert made.tensors == {}
    assert all(fit.epoch == 0 and fit.lost_after == 0 for fit in made.layers)


def test_a_layer_is_left_unchanged_if_heldout_text_gains_nothing():
    """Fitting to a single repeated token does not help on others."""
    base = loaded("qwen2")
    model = cut(base, Neurons(fraction=0.1))
    ids = torch.arange(10, 250)
    windows = Windows((torch.full((64,), 5),), tuple(ids.split(60)))
    made = reconstruct(model, base.model, windows)
    assert all(fit.lost_after <= fit.lost_before for fit in made.layers)
    assert any(fit.epoch == 0 for fit in made.layers)


def test_weights_that_are_zero_remain_zero():
    base = loaded("mistral")
    model = copy.deepcopy(base.model)
    matrix = model.get_parameter("model.layers.0.mlp.gate_proj.weight")
    matrix.data[:, ::2] = 0
    made = reconstruct(model, base.model, windows_of(base, STORY))
    new_values = made.tensors["model.layers.0.mlp.gate_proj.weight"]
    assert bool((new_values[:, ::2] == 0).all())
    assert bool((new_values[:, 1::2] != matrix[:, 1::2]).all())


def test_a_stopped_reconstruction_removes_its_hooks():
    base = loaded("gpt2")
    model = cut(base, Neurons(fraction=0.5))
    reports = []

    def stop(progress):
        reports.append((progress.done, progress.total))
        if progress.done == 1:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        reconstruct(model, base.model, windows_of(base, STORY), progress=stop)
    assert set(reports) >= {(0, 2), (1, 2)}
    for network in (model, base.model):
        assert not any(module._forward_pre_hooks for module in network.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_residual_streams_of_another_width_are_refused():
    narrow = tiny("llama", hidden_size=24, num_attention_heads=3, num_key_value_heads=3)
    windows = Windows((torch.arange(40),), (torch.arange(40),))
    with pytest.raises(RecipeError, match=CHANNEL):
        reconstruct(narrow, loaded("llama").model, windows)


def test_the_step_reconstructs_a_cut_model_and_reloads(tmp_path):
    base = trained()
    calibration = Calibration(tokens=2048, window=64)

    def made(*steps):
        return prune(Recipe(base="tiny", calibration=calibration, steps=list(steps)), base)

    cut_only = made(Neurons(fraction=0.5, repair=False))
    rebuilt = made(Neurons(fraction=0.5, repair=False), Reconstruction(epochs=1))
    text = passage("story", "heldout")

    def perplexity_of(pruned):
        return perplexity(pruned.model, pruned.tokenizer, text, tokens=1024).value

    assert perplexity_of(rebuilt) < perplexity_of(cut_only)
    assert len(rebuilt.report.notes[1]) == base.model.config.num_hidden_layers
    rebuilt.save(tmp_path / "saved")
    ids = torch.arange(3, 23)[None]
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(saved(ids).logits, rebuilt.model(ids).logits)
    again = made(Neurons(fraction=0.5, repair=False), Reconstruction(epochs=1))
    assert torch.equal(again.model(ids).logits, rebuilt.model(ids).logits)


def test_channels_and_vocabulary_have_to_be_cut_after_it():
    for step in (Channels(fraction=0.3), Vocabulary(fraction=0.1)):
        recipe = Recipe(base="tiny", steps=[step, Reconstruction()])
        with pytest.raises(RecipeError, match="after it") as error:
            prune(recipe, loaded("llama"))
        assert error.value.place == ("steps", 1)
