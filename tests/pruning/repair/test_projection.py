"""Repair is the documented least-squares solution, and never makes held-out text worse."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning import Calibration, Neurons, Recipe, load, perplexity, prune
from pruning.calibration.statistics import PRIOR_TOKENS, InputGram
from pruning.repair.projection import repair_projection
from pruning.text.passages import passage
from tests.helpers.models import FAMILIES, loaded, matrices, save_tiny, trained


def problem(seed=0, neurons=24, channels=5, rows=200, heldout=60, sources=10):
    """Make up neurons that are partly redundant, and a projection that reads them."""
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(sources, neurons))
    inputs = random.normal(size=(rows + heldout, sources)) @ mixing
    inputs = np.maximum(inputs + 0.3 * random.normal(size=inputs.shape), 0)
    weight = random.normal(size=(channels, neurons))
    kept = np.sort(random.choice(neurons, neurons // 2, replace=False))
    return inputs[:rows], inputs[rows:], weight, kept


def repaired(fitting, heldout, weight, kept):
    moments = InputGram(
        torch.tensor(fitting.T @ fitting, dtype=torch.float32),
        torch.tensor(heldout, dtype=torch.float32),
        len(fitting),
    )
    return repair_projection(moments, torch.tensor(weight, dtype=torch.float32), torch.tensor(kept))


def by_hand(inputs, weight, kept):
    """Solve argmin ‖X_k V − X Wᵀ‖² + λ̄ ‖V − W_kᵀ‖² as one ordinary least-squares problem in numpy."""
    median = np.quantile(np.mean(inputs**2, axis=0), 0.5, method="lower")
    scale = np.sqrt(PRIOR_TOKENS * median)
    system = np.vstack([inputs[:, kept], scale * np.eye(len(kept))])
    right_side = np.vstack([inputs @ weight.T, scale * weight[:, kept].T])
    return np.linalg.lstsq(system, right_side, rcond=None)[0].T


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 60), st.floats(0.1, 0.9))
def test_repair_solves_the_documented_objective(seed, neurons, share):
    """It equals the direct solution for few or many removed neurons, and for few or many rows."""
    fitting, _, weight, _ = problem(seed, neurons=neurons, rows=neurons + seed % 90)
    fitting += 0.01
    random = np.random.default_rng(seed)
    kept = np.sort(random.choice(neurons, min(max(round(share * neurons), 1), neurons - 1), replace=False))
    change = repaired(fitting, fitting, weight, kept).weight.numpy() - weight[:, kept]
    expected = by_hand(fitting, weight, kept) - weight[:, kept]
    rounding = 1e-6 * np.linalg.norm(weight)
    assert np.linalg.norm(change - expected) < 1e-3 * np.linalg.norm(expected) + rounding


def test_neurons_with_massive_activations_do_not_spoil_the_solution():
    fitting, _, weight, kept = problem(rows=400)
    for massive in (kept[3], np.setdiff1d(np.arange(24), kept)[2]):
        inputs = fitting.copy()
        inputs[:, massive] *= 1000
        repair = repaired(inputs, inputs, weight, kept)
        expected = by_hand(inputs, weight, kept)
        error = inputs[:, kept] @ (repair.weight.numpy() - expected).T
        assert np.linalg.norm(error) < 1e-4 * np.linalg.norm(inputs @ weight.T)


@pytest.mark.parametrize("seed", range(5))
def test_the_reported_errors_are_those_on_heldout_rows(seed):
    fitting, heldout, weight, kept = problem(seed)

    def lost(solution):
        output = heldout @ weight.T
        return np.sum((heldout[:, kept] @ solution.T - output) ** 2) / np.sum(output**2)

    repair = repaired(fitting, heldout, weight, kept)
    assert repair.damping == PRIOR_TOKENS / len(fitting)
    assert repair.error_before == pytest.approx(lost(weight[:, kept]), rel=1e-4)
    assert repair.error_after == pytest.approx(lost(by_hand(fitting, weight, kept)), rel=1e-3)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 20), st.integers(2, 30))
def test_repair_is_never_worse_than_none_on_heldout_rows(seed, rows, heldout, neurons):
    repair = repaired(*problem(seed, rows=rows, heldout=heldout, neurons=neurons))
    assert repair.error_after <= repair.error_before
    assert (repair.weight is None) == (repair.damping is None)
    assert repair.weight is None or torch.isfinite(repair.weight).all()


def test_there_is_no_repair_if_heldout_rows_do_not_gain():
    fitting, heldout, weight, kept = problem()
    removed = np.setdiff1d(np.arange(24), kept)
    heldout[:, removed] *= -1
    repair = repaired(fitting, heldout, weight, kept)
    assert repair.weight is None
    assert repair.damping is None
    assert repair.error_after == repair.error_before


def test_dead_neurons_do_not_spoil_the_solution():
    silent = np.zeros((40, 24))
    _, _, weight, kept = problem()
    assert repaired(silent, silent, weight, kept).weight is None
    fitting, heldout, weight, kept = problem()
    fitting[:, kept[0]] = heldout[:, kept[0]] = 0
    repair = repaired(fitting, heldout, weight, kept)
    np.testing.assert_allclose(repair.weight[:, 0].numpy(), weight[:, kept[0]], rtol=1e-5)


@pytest.mark.parametrize("share", [0.2, 0.8])
def test_damaged_statistics_give_no_repair(share):
    fitting, heldout, weight, _ = problem()
    fitting[:, 3] = np.nan
    assert repaired(fitting, heldout, weight, np.arange(round(24 * share))).weight is None


def test_neurons_too_similar_for_single_precision_are_repaired_in_double():
    fitting, _, weight, _ = problem(rows=400)
    fitting[:, :2] = 1e5 * fitting[:, 2:3]
    repair = repaired(fitting, fitting, weight, np.arange(1, 24))
    assert repair.error_after < 1e-3 * repair.error_before


@pytest.mark.parametrize("family", FAMILIES)
def test_repair_makes_no_layer_worse_and_some_layer_better(family):
    recipe = Recipe(
        base=family,
        calibration=Calibration(text="story", tokens=512, window=64),
        steps=[Neurons(fraction=0.5)],
    )
    (notes,) = prune(recipe, loaded(family)).report.notes
    assert [note.layer for note in notes] == list(range(len(notes)))
    assert all(0 <= note.lost_after <= note.lost_before for note in notes)
    assert any(note.lost_after < note.lost_before for note in notes)


def test_repair_lowers_the_perplexity_of_a_trained_model():
    base = trained()
    calibration = Calibration(tokens=6000, window=64)

    def measured(**step):
        recipe = Recipe(base="trained", calibration=calibration, steps=[Neurons(fraction=0.5, **step)])
        model = prune(recipe, base).model
        return perplexity(model, base.tokenizer, passage("story", "heldout"), tokens=2000, window=64).value

    original = perplexity(
        base.model, base.tokenizer, passage("story", "heldout"), tokens=2000, window=64
    ).value
    bare, repaired = measured(repair=False), measured()
    assert original < repaired < bare


def test_repaired_weights_have_the_precision_of_the_file(tmp_path):
    base = load(str(save_tiny(tmp_path / "base", "llama", dtype=torch.bfloat16)))
    calibration = Calibration(text="story", tokens=512, window=64)
    recipe = Recipe(base="llama", calibration=calibration, steps=[Neurons(fraction=0.3)])
    pruned = prune(recipe, base)
    assert any(note.damping for note in pruned.report.notes[0])
    assert pruned.storage_dtype == torch.bfloat16
    for parameter in pruned.model.parameters():
        assert torch.equal(parameter, parameter.bfloat16().to(parameter.dtype))
    kept = matrices(pruned.model, 0)[1].shape[1]
    assert pruned.report.after.bytes == 2 * pruned.report.after.parameters
    assert kept == 34
