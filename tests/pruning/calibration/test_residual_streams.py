"""The residual streams of a text: read once if they are kept, and the same either way."""

import pytest
import torch

from pruning import Calibration, Layers, Recipe, prune
from pruning.architectures.anatomy import anatomy_of
from pruning.calibration import cache
from pruning.calibration.calibrate import windows_of
from pruning.calibration.residual_streams import ResidualStreams
from tests.helpers.models import FAMILIES, loaded

TEXT = Calibration(tokens=640, window=64)


def streams_of(family, keep):
    base = loaded(family)
    return ResidualStreams(base.model, anatomy_of(base.model.config), windows_of(base, TEXT), keep=keep)


def passes(model, work):
    """Count how often the model reads a window meanwhile."""
    count = []
    handle = model.get_input_embeddings().register_forward_hook(lambda *_: count.append(1))
    try:
        work()
    finally:
        handle.remove()
    return len(count)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_run_alone_gives_its_projection_the_same_inputs(family):
    kept, read = streams_of(family, keep=True), streams_of(family, keep=False)
    modules = {kept.anatomy.output_projection(layer): layer for layer in range(kept.anatomy.layers)}
    for _ in kept:
        pass
    for (states, inputs), (expected_states, expected_inputs) in zip(
        kept.with_inputs(modules), read.with_inputs(modules), strict=True
    ):
        assert all(map(torch.equal, states, expected_states))
        assert inputs.keys() == expected_inputs.keys() == modules.keys()
        assert all(torch.equal(inputs[name], expected_inputs[name]) for name in modules)


def test_layers_are_chosen_and_repaired_in_one_pass_over_the_text():
    base = loaded("llama")
    recipe = Recipe(base="tiny", calibration=TEXT, steps=[Layers(count=1, protect=False)])
    windows = len(windows_of(base, TEXT).fitting + windows_of(base, TEXT).heldout)
    cache.clear()
    assert passes(base.model, lambda: prune(recipe, base, share_memory=True)) == windows


def test_streams_that_do_not_fit_are_read_again(monkeypatch):
    monkeypatch.setattr("pruning.calibration.residual_streams.available_memory", lambda: 1000)
    streams = streams_of("llama", keep=True)
    first = [[each.clone() for each in states] for states in streams]
    assert passes(streams.model, lambda: list(streams)) == len(first)


def test_a_pass_that_was_stopped_is_begun_again():
    streams = streams_of("llama", keep=True)
    next(iter(streams))
    assert len(list(streams)) == len(streams.windows.fitting + streams.windows.heldout)
