"""Every pruned model is compared with its base in which the removed units are masked."""

import importlib.util
from dataclasses import replace

import pytest
import torch

import pruning
from pruning import catalog
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
    assert compared[0][2:5] == (pruned.layers, pruned.units, pruned.changed)


UNITS = {
    "neurons": pruning.Neurons(fraction=0.2, criterion="l2"),
    "layers": pruning.Layers(count=2, method="last"),
    "channels": pruning.Channels(fraction=0.1, repair=False),
    "vocabulary": pruning.Vocabulary(fraction=0.2),
}
"""Kinds of units that both real models have, cut in the cheapest way."""

HEADS = {
    "smollm2-135m": {"heads": {"queries": 1}, "groups": {"groups": 1}},
    "gemma-3-270m": {"heads": {"queries": 2}},
}
"""Their heads: SmolLM2 has three groups of three, and Gemma one group of four."""


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_real_models_without_units_compute_what_they_do_with_them_masked(name, need, user_cache, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(user_cache))
    offline = catalog.MODELS[name].offline
    need(all(importlib.util.find_spec(module) for module, _ in offline.parts), f"{name} is not installed")
    base = pruning.load(name, revision=offline.revision)
    # The masked base gets the repaired weights as they are, so little text is enough to fit them on.
    text = pruning.Calibration(text="general", tokens=256)
    heads = {
        unit: pruning.Heads(criterion="weights", repair=False, **kept) for unit, kept in HEADS[name].items()
    }
    for unit, step in (UNITS | heads).items():
        # Refused with a `SavingError` if they differ.
        pruned = pruning.prune(base, steps=step, calibration=text)
        assert pruned.report.after.parameters < pruned.report.before.parameters, unit
