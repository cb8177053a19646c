"""Repair is the least-squares solution it says it is, and never makes held-out text worse."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import FAMILIES, loaded, matrices, save_tiny, trained

from pruning import Calibration, Neurons, Recipe, load, perplexity, prune
from pruning.repair import DAMPINGS, repair_projection
from pruning.statistics import SiteGram
from pruning.texts import passage


def problem(seed=0, neurons=24, channels=5, rows=200, heldout=60, sources=10):
    """Neurons that partly say the same, and a projection that reads them."""
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(sources, neurons))
    inputs = random.normal(size=(rows + heldout, sources)) @ mixing
    inputs = np.maximum(inputs + 0.3 * random.normal(size=inputs.shape), 0)
    weight = random.normal(size=(channels, neurons))
    kept = np.sort(random.choice(neurons, neurons // 2, replace=False))
    return inputs[:rows], inputs[rows:], weight, kept


def repaired(fitting, heldout, weight, kept):
    site = SiteGram(
        torch.tensor(fitting.T @ fitting, dtype=torch.float32),
        torch.tensor(heldout, dtype=torch.float32),
        len(fitting),
    )
    return repair_projection(site, torch.tensor(weight, dtype=torch.float32), torch.tensor(kept))


def by_hand(inputs, weight, kept, damping):
    """argmin ‖X_k V − X Wᵀ‖² + λ̄ ‖V − W_kᵀ‖², as one ordinary least-squares problem in numpy."""
    scale = np.sqrt(damping * np.mean(np.sum(inputs**2, axis=0)))
    system = np.vstack([inputs[:, kept], scale * np.eye(len(kept))])
    wanted = np.vstack([inputs @ weight.T, scale * weight[:, kept].T])
    return np.linalg.lstsq(system, wanted, rcond=None)[0].T


@pytest.mark.parametrize("seed", range(5))
def test_repair_solves_the_documented_objective(seed):
    fitting, heldout, weight, kept = problem(seed)
    repair = repaired(fitting, heldout, weight, kept)
    expected = by_hand(np.vstack([fitting, heldout]), weight, kept, repair.damping)
    np.testing.assert_allclose(repair.weight.numpy(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_heldout_rows_choose_the_damping(seed):
    fitting, heldout, weight, kept = problem(seed, rows=30)

    def lost(solution):
        wanted = heldout @ weight.T
        return np.sum((heldout[:, kept] @ solution.T - wanted) ** 2) / np.sum(wanted**2)

    errors = {damping: lost(by_hand(fitting, weight, kept, damping)) for damping in DAMPINGS}
    errors[None] = lost(weight[:, kept])
    repair = repaired(fitting, heldout, weight, kept)
    assert repair.damping == min(errors, key=errors.get)
    assert repair.error_before == pytest.approx(errors[None], rel=1e-4)
    assert repair.error_after == pytest.approx(errors[repair.damping], rel=1e-3)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 20), st.integers(2, 30))
def test_never_worse_than_no_repair_on_heldout_rows(seed, rows, heldout, neurons):
    repair = repaired(*problem(seed, rows=rows, heldout=heldout, neurons=neurons))
    assert repair.error_after <= repair.error_before
    assert (repair.weight is None) == (repair.damping is None)
    assert repair.weight is None or torch.isfinite(repair.weight).all()


def test_no_repair_where_it_does_not_help():
    fitting, heldout, weight, kept = problem()
    removed = np.setdiff1d(np.arange(24), kept)
    heldout[:, removed] *= -1
    repair = repaired(fitting, heldout, weight, kept)
    assert repair.weight is None
    assert repair.damping is None
    assert repair.error_after == repair.error_before


def test_dead_neurons_do_no_harm():
    silent = np.zeros((40, 24))
    _, _, weight, kept = problem()
    assert repaired(silent, silent, weight, kept).weight is None
    fitting, heldout, weight, kept = problem()
    fitting[:, kept[0]] = heldout[:, kept[0]] = 0
    repair = repaired(fitting, heldout, weight, kept)
    np.testing.assert_allclose(repair.weight[:, 0].numpy(), weight[:, kept[0]], rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_repair_loses_no_more_of_any_layer(family):
    recipe = Recipe(
        base=family,
        calibration=Calibration(text="story", tokens=512, window=64),
        steps=[Neurons(fraction=0.5)],
    )
    (notes,) = prune(recipe, loaded(family)).report.notes
    assert [note["layer"] for note in notes] == list(range(len(notes)))
    assert all(0 <= note["lost_after"] <= note["lost_before"] for note in notes)


def test_repair_brings_a_trained_model_nearer():
    base = trained()
    calibration = Calibration(tokens=6000, window=64)

    def measured(**step):
        recipe = Recipe(base="trained", calibration=calibration, steps=[Neurons(fraction=0.5, **step)])
        model = prune(recipe, base).model
        return perplexity(model, base.tokenizer, passage("story", "heldout"), 2000, 64).value

    dense = perplexity(base.model, base.tokenizer, passage("story", "heldout"), 2000, 64).value
    bare, repaired = measured(repair=False), measured()
    assert dense < repaired < bare


def test_what_is_repaired_fits_the_precision_of_the_file(tmp_path):
    base = load(str(save_tiny(tmp_path / "base", "llama", dtype=torch.bfloat16)))
    calibration = Calibration(text="story", tokens=512, window=64)
    recipe = Recipe(base="llama", calibration=calibration, steps=[Neurons(fraction=0.3)])
    pruned = prune(recipe, base)
    assert any(note["damping"] for note in pruned.report.notes[0])
    assert pruned.storage_dtype == torch.bfloat16
    for parameter in pruned.model.parameters():
        assert torch.equal(parameter, parameter.bfloat16().to(parameter.dtype))
    kept = matrices(pruned.model, 0)[1].shape[1]
    assert pruned.report.bytes_after == 2 * pruned.report.parameters_after
    assert kept == 48 - int(0.3 * 48)
