"""Every pruned model is compared with its base in which the removed units are masked."""

from dataclasses import replace

import pytest
import torch

import pruning
from pruning.errors import SavingError
from pruning.pipeline import apply_steps, check_pruned
from tests.helpers.models import FAMILIES, loaded

TEXT = pruning.Calibration(tokens=640, window=64)
TOGETHER = (
    pruning.Layers(count=1),
    pruning.Neurons(fraction=0.3),
    pruning.Heads(groups=1),
    pruning.Channels(fraction=0.25),
)


def pruned_llama(*steps):
    base = loaded("llama")
    recipe = pruning.Recipe(base="tiny", calibration=TEXT, steps=steps or TOGETHER)
    return apply_steps(recipe, base), base


def wrong_neurons(pruned):
    everything = torch.arange(48)
    return {"units": {**pruned.units, "neuron": [everything[: len(each)] for each in pruned.units["neuron"]]}}


def wrong_layers(pruned):
    return {"layers": (1, 2) if pruned.layers == (0, 2) else (0, 2)}


def wrong_heads(pruned):
    return {
        "units": {**pruned.units, "query head": [3 - each.flip(0) for each in pruned.units["query head"]]}
    }


def wrong_channels(pruned):
    return {"units": {**pruned.units, "channel": [torch.arange(24)] * 2}}


def unsaid_repair(pruned):
    return {"changed": frozenset()}


def test_all_steps_together_compute_what_the_masked_base_does():
    pruned, base = pruned_llama()
    before = {name: values.clone() for name, values in base.model.named_parameters()}
    check_pruned(pruned, base)
    assert all(torch.equal(values, before[name]) for name, values in base.model.named_parameters())


@pytest.mark.parametrize("wrong", [wrong_neurons, wrong_layers, wrong_heads, wrong_channels, unsaid_repair])
def test_a_model_that_was_cut_elsewhere_than_it_says_is_refused(wrong):
    pruned, base = pruned_llama()
    with pytest.raises(SavingError, match="does not compute what its base does"):
        check_pruned(replace(pruned, **wrong(pruned)), base)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tensor_that_was_cut_wrongly_is_refused(family):
    base = loaded(family)
    recipe = pruning.Recipe(base="tiny", steps=[pruning.Neurons(fraction=0.3, criterion="l2")])
    pruned = apply_steps(recipe, base)
    check_pruned(pruned, base)
    anatomy = pruned.shape.anatomy
    output = pruned.model.get_parameter(f"{anatomy.output_projection(1)}.weight")
    spec = anatomy.tensor(f"{anatomy.output_projection(1)}.weight")
    output.data = output.data.roll(1, spec.labels.index("neuron"))
    with pytest.raises(SavingError, match="does not compute what its base does"):
        check_pruned(pruned, base)


@pytest.mark.parametrize(
    "change",
    [
        {"rms_norm_eps": 0.5},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
        {"hidden_act": "relu"},
    ],
)
def test_a_config_that_computes_something_else_is_refused(change):
    pruned, base = pruned_llama()
    config = type(pruned.model.config).from_dict(pruned.model.config.to_dict() | change)
    other = type(pruned.model)(config).eval()
    other.load_state_dict(pruned.model.state_dict())
    with pytest.raises(SavingError, match="does not compute what its base does"):
        check_pruned(replace(pruned, model=other), base)


def test_prune_itself_compares(monkeypatch):
    compared = []
    monkeypatch.setattr("pruning.pipeline.check_against_masked_base", lambda *given: compared.append(given))
    base = loaded("llama")
    pruned = pruning.prune(base, steps=pruning.Neurons(fraction=0.3, criterion="l2"))
    assert [given[1] for given in compared] == [base.model]
    assert compared[0][2:] == (pruned.layers, pruned.units, pruned.changed)
