"""A budget is kept, what is chosen was measured, and nothing measured within the budget is better."""

import math

import pytest

from pruning import Calibration, RecipeError
from pruning.architectures.families import CHANNEL, QUERY
from pruning.architectures.shape import Shape
from pruning.calibration.calibrate import windows_of
from pruning.errors import Cancelled
from pruning.pipeline import preview, prune
from pruning.shape_search.search import (
    PRUNABLE_UNITS,
    RECONSTRUCTED,
    Budget,
    SearchResult,
    Trial,
    iter_search,
    search,
)
from pruning.shape_search.sweep import FRACTIONS, iter_sweep
from pruning.text.likelihood import mean_loss
from tests.helpers.models import count, loaded, trained

TEXT = Calibration(tokens=1280, window=64)


def shape_of(base):
    return Shape.of(base.model.config)


@pytest.fixture(scope="module")
def found():
    base = trained()
    budget = Budget.parse("25%", shape_of(base), 4)
    return base, budget, search(base, budget, TEXT)


def test_the_chosen_model_keeps_the_budget(found):
    base, budget, result = found
    assert result.chosen.mix.parameters <= budget.parameters
    model = prune(result.chosen.recipe, base).model
    assert count(model) == result.chosen.mix.parameters
    assert mean_loss(model, windows_of(base, TEXT).heldout) == pytest.approx(result.chosen.loss)


def test_nothing_measured_within_the_budget_is_better(found):
    _, budget, result = found
    within = [point for point in result.points if point.mix.parameters <= budget.parameters]
    assert result.chosen.loss == min(point.loss for point in within)
    # The best of each kind that can keep the budget alone is among them.
    alone = {point.mix.single for point in within} - {None}
    assert "neurons" in alone


def test_every_kind_is_tried_alone_and_every_size_is_what_it_says(found):
    _, _, result = found
    # Of two layers, both of which are protected, none can go.
    wanted = {kind.title for kind in PRUNABLE_UNITS} - {"layers"}
    assert {point.mix.single for point in result.points} == wanted | {None}
    for point in result.points:
        assert preview(point.recipe).after.parameters == point.mix.parameters
    assert result.shapes_considered > 100
    sizes = [size for size, _ in result.curve]
    assert sizes == sorted(sizes, reverse=True)
    assert all(math.isfinite(value) for _, value in result.curve)


def test_the_best_are_reconstructed_where_there_is_time(found):
    base, budget, result = found
    said = {point.title for point in result.points if "reconstructed" in point.title}
    assert 1 <= len(said) <= RECONSTRUCTED
    short = search(base, budget, TEXT, thorough=False)
    assert {point.title for point in result.points} - said == {point.title for point in short.points}
    assert result.chosen.loss <= short.chosen.loss


def test_a_quick_search_reads_less_and_says_the_whole_text(monkeypatch):
    base = trained()
    monkeypatch.setattr("pruning.shape_search.search.QUICK_TOKENS", 640)
    quick = search(base, Budget.parse("10%", shape_of(base), 4), TEXT, thorough=False)
    assert {point.recipe.calibration for point in quick.points} == {TEXT}
    short = windows_of(base, TEXT.model_copy(update={"tokens": 640})).heldout
    assert quick.dense == pytest.approx(mean_loss(base.model, short))


def test_points_come_as_they_are_measured_and_it_can_be_stopped():
    base, told, seen = trained(), [], []
    budget = Budget.parse("10%", shape_of(base), 4)

    def stop(progress):
        seen.append(progress)
        if progress.done == 1 and progress.text.startswith("Trying"):
            raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        told.extend(iter_search(base, budget, TEXT, progress=stop))
    assert len(told) == 1
    assert isinstance(told[0], Trial)


def test_a_family_whose_heads_and_channels_are_fixed_is_searched_without_them():
    base = loaded("gpt2")
    result = search(base, Budget.parse("5%", shape_of(base), 4), TEXT)
    assert isinstance(result, SearchResult)
    fixed = [place for place, kind in enumerate(PRUNABLE_UNITS) if kind.unit in (CHANNEL, QUERY)]
    assert all(point.mix.amounts[place] == 0 for point in result.points for place in fixed)
    assert result.to_dict()["recipe"]["base"] == base.source.name


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("30%", 0.7),
        ("30 % smaller", 0.7),
        ("12.5%", 0.875),
        ("60k", 60_000),
        ("60,000 parameters", 60_000),
        ("0.06M", 60_000),
        ("240kB", 60_000),
        ("0.24 MB on disk", 60_000),
    ],
)
def test_budgets_in_every_unit(text, parameters):
    shape = shape_of(trained())
    expected = parameters * shape.parameters if parameters < 1 else parameters
    assert Budget.parse(text, shape, 4).parameters == int(expected)


@pytest.mark.parametrize("text", ["", "small", "-5%", "0%", "100%", "900M", "1e3", None, "nan%", "5 apples"])
def test_budgets_that_say_nothing_are_refused(text):
    with pytest.raises(RecipeError, match="budget"):
        Budget.parse(text, shape_of(trained()), 4)


def test_a_budget_that_no_shape_fits_says_what_the_smallest_has():
    base = trained()
    with pytest.raises(RecipeError, match="the smallest that is tried has"):
        search(base, Budget(10), TEXT)


def test_a_sweep_goes_deeper_under_every_criterion():
    points = list(iter_sweep(trained(), ["activation", "l2"], TEXT))
    assert len(points) == 2 * len(FRACTIONS)
    for criterion in ("activation", "l2"):
        row = [point for point in points if point.criterion == criterion]
        assert [point.fraction for point in row] == list(FRACTIONS)
        sizes = [point.parameters for point in row]
        assert sizes == sorted(sizes, reverse=True)
