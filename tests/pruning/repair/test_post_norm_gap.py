"""Behind a norm, a gap is repaired by the projection before it together with the norm."""

import pytest
import torch

import pruning
from pruning import Layers, Recipe
from pruning.architectures.anatomy import TensorSpec, anatomy_of
from pruning.architectures.families import CHANNEL, NEURON
from pruning.repair.post_norm_gap import PostNorm, PostNormGap, post_norm_of
from pruning.text.choice import Calibration
from tests.helpers.models import loaded

CALIBRATION = Calibration(text="general", tokens=2048)


def test_most_of_what_a_norm_and_a_projection_can_write_is_found():
    generator = torch.Generator().manual_seed(0)
    channels, neurons, tokens = 24, 16, 600
    weight, other = torch.randn(2, channels, neurons, generator=generator)
    gain, other_gain = 0.5 + torch.rand(2, channels, generator=generator)
    norm = PostNorm("norm", 1.0, 1e-6, gain)
    gap = PostNormGap(
        (1,),
        TensorSpec("projection.weight", (channels, neurons), (CHANNEL, NEURON), "mlp", 0),
        weight,
        norm=norm,
    )
    for fitting in (True, True, False):
        inputs = torch.randn(tokens, neurons, generator=generator)
        now = gain * norm.direction(inputs @ weight.T)
        wanted = other_gain * norm.direction(inputs @ (weight + 0.5 * other).T)
        gap.update(
            inputs, [torch.zeros(0), torch.ones_like(now), torch.ones_like(now) + wanted - now], fitting
        )
    repair = gap.repair()
    assert set(repair.tensors) == {"projection.weight", "norm.weight"}
    assert repair.lost_after < 0.6 * repair.lost_before
    new = (repair.tensors["norm.weight"] + 1.0) * norm.direction(
        inputs @ repair.tensors["projection.weight"].T
    )
    assert float((new - wanted).square().sum() / (now - wanted).square().sum()) < 0.6


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_layers_of_a_family_with_norms_behind_its_layers_are_repaired(family, tmp_path):
    base = loaded(family, num_hidden_layers=4)
    anatomy = anatomy_of(base.model.config)
    assert post_norm_of(base.model, anatomy, 1).module.endswith("post_feedforward_layernorm")
    recipe = Recipe(base="tiny", calibration=CALIBRATION, steps=[Layers(layers=(2,), repair=True)])
    pruned = pruning.prune(recipe, base)
    ((note,),) = pruned.report.notes
    assert note.lost_after < note.lost_before
    pruned.save(tmp_path / "out")
    again = pruning.load(tmp_path / "out")
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        torch.testing.assert_close(again.model(ids).logits, pruned.model(ids).logits)


def test_a_recipe_of_release_0_1_0_leaves_such_norms_as_they_are():
    text = "base: tiny\nsteps:\n- step: layers\n  layers: [2]\n  repair: true\n"
    old, new = Recipe.parse(text), Recipe.parse(f"format: 2\n{text}")
    assert (old.steps[0].repair_norms, new.steps[0].repair_norms) == (False, True)
    base = loaded("gemma2", num_hidden_layers=4)
    assert not pruning.prune(old, base).report.notes[0]
