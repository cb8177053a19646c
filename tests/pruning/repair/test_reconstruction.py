"""Reconstruction brings every layer nearer to the dense model, changes nothing else, and does no harm."""

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
from pruning.repair.reconstruction import layers_kept, reconstruct
from pruning.text.passages import passage
from pruning.text.tokens import Windows
from tests.helpers.models import FAMILIES, loaded, tiny, trained

STORY = Calibration(text="story", tokens=512, window=64)


def cut(base, *steps, calibration=STORY):
    return prune(Recipe(base="base", calibration=calibration, steps=steps), base).model


def with_tensors(model, tensors):
    """A copy of a model with some of its parameters replaced."""
    changed = copy.deepcopy(model)
    for name, value in tensors.items():
        changed.get_parameter(name).data = value
    return changed


def streams(model, window):
    """The residual stream before every layer, `[layers, tokens, channels]`, as transformers gives it."""
    states = model(input_ids=window[None], output_hidden_states=True, use_cache=False).hidden_states
    return torch.stack(states[:-1])[:, 0]


def lost(model, dense, windows, place, goal):
    """The mean over tokens of ‖h − ĥ‖² / max(‖h‖², ‖ĥ‖²), for the stream before a layer of each model."""
    shares = []
    for window in windows:
        ours, theirs = streams(model, window)[place], streams(dense, window)[goal]
        energy = torch.maximum(ours.square().sum(-1), theirs.square().sum(-1))
        shares.append((ours - theirs).square().sum(-1) / energy)
    return float(torch.cat(shares).mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_comes_nearer_to_the_dense_model_and_the_rest_is_left_alone(family):
    base = loaded(family)
    model = cut(base, Neurons(fraction=0.5, repair=False))
    before = {name: value.clone() for name, value in model.named_parameters()}
    dense = {name: value.clone() for name, value in base.model.named_parameters()}
    windows = windows_of(base, STORY)
    made = reconstruct(model, base.model, windows)

    assert [fit.layer for fit in made.layers] == list(range(len(made.layers)))
    assert all(fit.lost_after <= fit.lost_before for fit in made.layers)
    assert made.layers[0].lost_after < made.layers[0].lost_before
    anatomy = anatomy_of(model.config)
    mlp = {spec.name for spec in anatomy.tensors if spec.component == "mlp"}
    writes = {f"{anatomy.output_projection(layer, QUERY)}.weight" for layer in range(anatomy.layers)}
    assert mlp & made.tensors.keys()
    assert made.tensors.keys() <= mlp | writes
    assert all(value.shape == before[name].shape for name, value in made.tensors.items())
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert all(torch.equal(value, dense[name]) for name, value in base.model.named_parameters())

    first = made.layers[0]
    rebuilt = with_tensors(model, made.tensors)
    assert first.lost_before == pytest.approx(lost(model, base.model, windows.heldout, 1, 1), rel=1e-3)
    assert first.lost_after == pytest.approx(lost(rebuilt, base.model, windows.heldout, 1, 1), rel=1e-3)


def test_without_an_epoch_least_squares_alone_are_done():
    base = loaded("llama")
    made = reconstruct(
        cut(base, Neurons(fraction=0.5, repair=False)), base.model, windows_of(base, STORY), epochs=0
    )
    assert [fit.epoch for fit in made.layers] == [0] * 3
    assert made.layers[0].lost_after < made.layers[0].lost_before
    assert {name.split(".")[-2] for name in made.tensors} <= {"down_proj", "o_proj"}
    recipe = Recipe(base="tiny", calibration=STORY, steps=[Neurons(fraction=0.5), Reconstruction(epochs=0)])
    assert prune(recipe, base).report.notes[1]


def test_a_trained_model_is_better_for_it_than_for_repair():
    base = trained()
    calibration = Calibration(tokens=6000, window=64)

    def measured(model):
        return perplexity(model, base.tokenizer, passage("story", "heldout"), 2000, 64).value

    repaired = cut(base, Neurons(fraction=0.5), calibration=calibration)
    bare = cut(base, Neurons(fraction=0.5, repair=False), calibration=calibration)
    made = reconstruct(bare, base.model, windows_of(base, calibration))
    assert measured(base.model) < measured(with_tensors(bare, made.tensors)) < measured(repaired)


@pytest.mark.parametrize(
    "steps",
    [(Heads(groups=1, repair=False),), (Layers(layers=(1,)),), (Layers(layers=(0,)), Heads(groups=1))],
)
def test_it_follows_any_cut(steps):
    base = loaded("llama")
    model = cut(base, *steps)
    windows = windows_of(base, STORY)
    made = reconstruct(model, base.model, windows)
    assert made.tensors
    rebuilt = with_tensors(model, made.tensors)
    before, after = (lost(each, base.model, windows.heldout, 1, -1) for each in (model, rebuilt))
    if isinstance(steps[0], Layers):
        assert after < before


def test_where_layers_went_the_ones_before_take_over_their_work():
    base = loaded("llama")
    windows = windows_of(base, STORY)
    model = cut(base, Layers(layers=(1,)))
    fit = reconstruct(model, base.model, windows).layers[0]
    assert fit.lost_before == pytest.approx(lost(model, base.model, windows.heldout, 1, 2), rel=1e-3)


@pytest.mark.parametrize("gone", [(0,), (1,), (2,), (0, 2), (0, 1)])
def test_the_layers_that_stayed_are_known_by_what_they_share(gone):
    base = loaded("llama")
    model = cut(base, Layers(layers=gone), Neurons(fraction=0.3), Heads(groups=1))
    assert layers_kept(model, base.model) == [layer for layer in range(3) if layer not in gone]


def test_layers_that_share_nothing_are_refused():
    base = loaded("llama")
    with pytest.raises(RecipeError, match="share no tensor"):
        layers_kept(copy.deepcopy(cut(base, Layers(layers=(1,)))), base.model)


def test_the_same_twice_bit_for_bit():
    base = loaded("gemma2")
    model = cut(base, Neurons(fraction=0.5))
    windows = windows_of(base, STORY)
    once, twice = (reconstruct(model, base.model, windows, seed=3) for _ in range(2))
    assert once.layers == twice.layers
    assert once.tensors.keys() == twice.tensors.keys()
    assert all(torch.equal(value, twice.tensors[name]) for name, value in once.tensors.items())


def test_nothing_is_learned_where_nothing_is_lost():
    base = loaded("qwen3")
    made = reconstruct(base.model, base.model, windows_of(base, STORY))
    assert not made.tensors
    assert all(fit.epoch == 0 and fit.lost_after == 0 for fit in made.layers)


def test_a_layer_stays_as_it_was_where_heldout_text_gains_nothing():
    """What is learned of one word says nothing of the others."""
    base = loaded("qwen2")
    model = cut(base, Neurons(fraction=0.1))
    ids = torch.arange(10, 250)
    windows = Windows((torch.full((64,), 5),), tuple(ids.split(60)))
    made = reconstruct(model, base.model, windows)
    assert all(fit.lost_after <= fit.lost_before for fit in made.layers)
    assert any(fit.epoch == 0 for fit in made.layers)


def test_single_weights_that_are_zero_stay_zero():
    base = loaded("mistral")
    model = copy.deepcopy(base.model)
    matrix = model.get_parameter("model.layers.0.mlp.gate_proj.weight")
    matrix.data[:, ::2] = 0
    made = reconstruct(model, base.model, windows_of(base, STORY))
    learned = made.tensors["model.layers.0.mlp.gate_proj.weight"]
    assert bool((learned[:, ::2] == 0).all())
    assert bool((learned[:, 1::2] != matrix[:, 1::2]).all())


def test_it_can_be_stopped_and_leaves_no_hook_behind():
    base = loaded("gpt2")
    model = cut(base, Neurons(fraction=0.5))
    seen = []

    def stop(progress):
        seen.append((progress.done, progress.total))
        if progress.done == 1:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        reconstruct(model, base.model, windows_of(base, STORY), progress=stop)
    assert set(seen) == {(0, 2), (1, 2)}
    for each in (model, base.model):
        assert not any(module._forward_pre_hooks for module in each.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_streams_of_another_width_do_not_compare():
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
        return perplexity(pruned.model, pruned.tokenizer, text, 1024).value

    assert perplexity_of(rebuilt) < perplexity_of(cut_only)
    assert len(rebuilt.report.notes[1]) == base.model.config.num_hidden_layers
    rebuilt.save(tmp_path / "saved")
    ids = torch.arange(3, 23)[None]
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(saved(ids).logits, rebuilt.model(ids).logits)
    again = made(Neurons(fraction=0.5, repair=False), Reconstruction(epochs=1))
    assert torch.equal(again.model(ids).logits, rebuilt.model(ids).logits)


def test_channels_and_vocabulary_are_cut_after_it():
    for step in (Channels(fraction=0.3), Vocabulary(fraction=0.1)):
        recipe = Recipe(base="tiny", steps=[step, Reconstruction()])
        with pytest.raises(RecipeError, match="after it") as error:
            prune(recipe, loaded("llama"))
        assert error.value.place == ("steps", 1)
