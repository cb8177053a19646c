"""Experts: their saliency is that of the formula, and what remains computes as if the others were never chosen."""

import json
from itertools import permutations

import pytest
import torch

import pruning
from pruning.architectures.anatomy import anatomy_of
from pruning.architectures.tiny_model import random_model
from pruning.calibration.calibrate import windows_of
from pruning.calibration.experts import expert_moments, expert_saliencies
from pruning.cli.importance import importance
from pruning.text.tokens import Windows
from tests.helpers.models import count, save_type, small_config

TEXT = pruning.Calibration(text="general", tokens=640)

KEYS = {
    "mixtral": "num_local_experts",
    "olmoe": "num_experts",
    "deepseek_v3": "n_routed_experts",
    "gpt_oss": "num_local_experts",
}


@pytest.mark.parametrize("name", KEYS)
def test_experts_are_removed_and_the_model_is_read_by_transformers(name, tmp_path):
    base = save_type(tmp_path / "base", name)
    recipe = pruning.Recipe(base=base, steps=[pruning.Experts(fraction=0.5)])
    pruned = pruning.run(recipe, evaluate=False)
    pruned.save(tmp_path / "out")
    assert pruned.report.after.parameters < pruned.report.before.parameters
    again = pruning.load(str(tmp_path / "out")).model.config
    assert getattr(again, KEYS[name]) == 4


SEVERAL = {
    "layers": pruning.Layers(layers=(1,)),
    "experts": pruning.Experts(fraction=0.5, criterion="random"),
    "neurons": pruning.Neurons(fraction=0.3, criterion="random", repair=False),
}


@pytest.mark.parametrize("order", list(permutations(SEVERAL, 2)), ids=" then ".join)
@pytest.mark.parametrize("name", ["deepseek_v3", "afmoe", "qwen3_moe"])
def test_layers_experts_and_neurons_are_removed_one_after_the_other(name, order, tmp_path):
    """The first layers of the first two have no experts. `run` compares the result with the masked base."""
    base = save_type(tmp_path / "base", name)
    recipe = pruning.Recipe(base=base, steps=[SEVERAL[each] for each in order], calibration=TEXT)
    pruned = pruning.run(recipe, evaluate=False)
    pruned.save(tmp_path / "out")
    assert pruned.report.after.parameters < pruned.report.before.parameters


@pytest.mark.parametrize("gone", ["dense", "mixture"])
def test_neurons_remain_when_all_layers_of_a_kind_are_removed(gone, tmp_path):
    base = pruning.load(save_type(tmp_path / "base", "deepseek_v3"))
    is_dense = [not hasattr(layer.mlp, "experts") for layer in base.model.model.layers]
    layers = tuple(number for number, dense in enumerate(is_dense) if dense == (gone == "dense"))
    assert 0 < len(layers) < len(is_dense)
    steps = [SEVERAL["neurons"], pruning.Layers(layers=layers)]
    pruned = pruning.prune(base, steps=steps, calibration=TEXT)
    assert len(pruned.model.model.layers) == len(is_dense) - len(layers)


def what_experts_read(model, ids):
    """Return the mixture in the second layer of a Mixtral, and the states that it is given, `[tokens, channels]`."""
    seen = {}
    block = model.model.layers[1].mlp
    handle = block.register_forward_pre_hook(lambda _module, args: seen.update(states=args[0].detach()[0]))
    with torch.inference_mode():
        model(ids[None], use_cache=False)
    handle.remove()
    return block, seen["states"]


def test_saliency_is_the_mean_of_weight_times_size_over_the_tokens_sent():
    base = small_config("mixtral")
    model, anatomy = random_model(base), anatomy_of(base)
    ids = torch.arange(2, 50)
    block, states = what_experts_read(model, ids)
    weights = torch.softmax(states @ block.gate.weight.T, dim=1)
    values, chosen = weights.topk(2, dim=1)
    values = values / values.sum(dim=1, keepdim=True)
    expected = torch.zeros(8, dtype=torch.float64)
    for expert in range(8):
        token, place = torch.where(chosen == expert)
        gate, up = (states[token] @ block.experts.gate_up_proj[expert].T).chunk(2, dim=1)
        outputs = (torch.nn.functional.silu(gate) * up) @ block.experts.down_proj[expert].T
        sizes = values[token, place] * outputs.norm(dim=1)
        expected[expert] = sizes.double().mean() if len(sizes) else 0
    windows = Windows((ids,), ())
    found = expert_saliencies(model, anatomy, windows, weighted=True)[1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    counts = expert_saliencies(model, anatomy, windows, weighted=False)[1]
    assert torch.equal(counts, torch.bincount(chosen.flatten(), minlength=8).double())


def test_as_many_experts_are_removed_of_each_group(tmp_path):
    base = save_type(tmp_path / "base", "deepseek_v3", topk_group=2)
    pruned = pruning.run(
        pruning.Recipe(base=base, steps=[pruning.Experts(num_experts=4, criterion="random")]), evaluate=False
    )
    assert pruned.model.config.n_routed_experts == 4
    before = random_model(small_config("deepseek_v3", topk_group=2)).model.layers[-1].mlp.gate.weight
    after = pruned.model.model.layers[-1].mlp.gate.weight
    places = [int((before == row).all(dim=1).nonzero()) for row in after]
    assert sum(place < 4 for place in places) == 2


def test_the_importance_of_neurons_inside_experts_is_refused(tmp_path):
    base = pruning.load(save_type(tmp_path / "base", "mixtral"))
    with pytest.raises(pruning.RecipeError, match="The neurons of Mixtral are inside experts"):
        pruning.neuron_importance(base, TEXT)
    assert len(pruning.layer_importance(base, TEXT)) == 3


def test_the_shell_shows_the_importance_of_layers_and_says_why_that_of_neurons_is_missing(tmp_path, capsys):
    folder = save_type(tmp_path / "base", "mixtral")
    importance(folder, calibration="general", tokens=640)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[-1].startswith("The neurons of Mixtral are inside experts")
    importance(folder, calibration="general", tokens=640, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert (len(shown["layers"]), shown["neurons"]) == (3, None)


def test_no_fewer_experts_remain_than_read_a_token(tmp_path):
    base = save_type(tmp_path / "base", "mixtral")
    with pytest.raises(pruning.RecipeError, match="Each token is read by 2 experts"):
        pruning.preview(pruning.Recipe(base=base, steps=[pruning.Experts(num_experts=1)]))


def test_a_model_without_experts_is_refused(tmp_path):
    base = save_type(tmp_path / "base", "smollm3")
    with pytest.raises(pruning.RecipeError, match="experts of SmolLM3 cannot be cut"):
        pruning.preview(pruning.Recipe(base=base, steps=[pruning.Experts(fraction=0.5)]))


@pytest.mark.parametrize("name", KEYS)
def test_neurons_inside_experts_are_ranked_by_their_activations(name, tmp_path):
    base = pruning.load(save_type(tmp_path / "base", name))
    steps = pruning.Neurons(fraction=0.25, criterion="activation", repair=False)
    pruned = pruning.prune(base, steps=steps, calibration=TEXT)
    assert pruned.shape.count("neuron") < anatomy_of(base.model.config).units["neuron"]
    pruned.save(tmp_path / "out")


@pytest.mark.parametrize(("neurons", "channels"), [(24, 64), (160, 64)])
def test_moments_of_experts_are_those_of_their_activations_on_the_tokens_sent(neurons, channels):
    base = small_config("mixtral", intermediate_size=neurons, hidden_size=channels)
    model, anatomy = random_model(base), anatomy_of(base)
    ids = torch.arange(2, 50)
    block, states = what_experts_read(model, ids)
    chosen = (states @ block.gate.weight.T).topk(2, dim=1).indices
    found = expert_moments(model, anatomy, Windows((ids,), ()))[1]
    assert len(found) == 8
    for expert, moments in enumerate(found):
        token, _ = torch.where(chosen == expert)
        gate, up = (states[token] @ block.experts.gate_up_proj[expert].T).chunk(2, dim=1)
        activations = torch.nn.functional.silu(gate) * up
        if len(token):
            torch.testing.assert_close(moments.square, activations.square().mean(dim=0), rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(moments.sequence, activations.abs().mean(dim=0), rtol=1e-4, atol=1e-6)
        assert moments.square.shape == (neurons,)


def test_a_width_that_grouped_products_cannot_read_is_refused(tmp_path):
    base = save_type(tmp_path / "base", "mixtral", intermediate_size=64)
    step = pruning.Neurons(intermediate_size=42, criterion="l2", repair=False)
    with pytest.raises(pruning.RecipeError, match=r"42 neurons would be kept in each expert.* multiple of 8"):
        pruning.prune(base, steps=step)


def test_weights_inside_experts_become_zero_by_their_size_times_that_of_their_input(tmp_path):
    base = pruning.load(save_type(tmp_path / "base", "mixtral"))
    pruned = pruning.prune(base, steps=pruning.Weights(fraction=0.5), calibration=TEXT)
    assert {note.component: note.sparsity for note in pruned.report.notes[-1]}["mlp"] == 0.5
    windows = windows_of(base, TEXT, 0)
    read = [what_experts_read(base.model, ids) for ids in (*windows.fitting, *windows.heldout)]
    block, states = read[0][0], torch.cat([each for _, each in read])
    chosen = torch.softmax(states @ block.gate.weight.T, dim=1).topk(2, dim=1).indices
    after = pruned.model.model.layers[1].mlp.experts
    for expert in range(8):
        sent = states[(chosen == expert).any(dim=1)]
        gate, up = (sent @ block.experts.gate_up_proj[expert].T).chunk(2, dim=1)
        for name, inputs in (("gate_up_proj", sent), ("down_proj", torch.nn.functional.silu(gate) * up)):
            before, new = getattr(block.experts, name)[expert], getattr(after, name)[expert]
            scores = before.abs() * inputs.square().mean(dim=0).sqrt()
            half = scores.shape[1] // 2
            kept = torch.where(new != 0, scores, torch.inf).amin(dim=1)
            removed = torch.where(new == 0, scores, 0).amax(dim=1)
            assert ((new == 0).sum(dim=1) == half).all()
            assert (removed <= kept * 1.0001).all()


def test_the_neurons_of_a_mixture_are_searched_and_swept_without_repair(tmp_path):
    base = pruning.load(save_type(tmp_path / "base", "mixtral"))
    found = pruning.search(base, "15%", calibration=TEXT, thorough=False, steps=["neurons"])
    (step,) = found.chosen.recipe.steps
    assert (step.step, step.repair, step.intermediate_size % 8) == ("neurons", False, 0)
    point = next(pruning.iter_sweep(base, ["activation"], calibration=TEXT))
    assert not point.recipe.steps[0].repair
    assert point.parameters < count(base.model)
