"""The chosen model is within the budget, and the best of those that were measured within it."""

import json
import math
from dataclasses import replace

import pytest

from pruning import Calibration, RecipeError
from pruning.architectures.families import CHANNEL, KEY_VALUE
from pruning.architectures.shape import Shape
from pruning.calibration import cache
from pruning.calibration.calibrate import windows_of
from pruning.cost.passes import Sizes
from pruning.cost.plan import Plan
from pruning.cost.reading import Reading
from pruning.errors import Cancelled
from pruning.pipeline import prune
from pruning.previews import preview
from pruning.shape_search.budget import Budget, cache_bytes
from pruning.shape_search.candidates import PRUNABLE_UNITS, Candidate
from pruning.shape_search.gaps import gaps_cost
from pruning.shape_search.result import Trial
from pruning.shape_search.search import RECONSTRUCTED, iter_search, search
from pruning.shape_search.sweep import FRACTIONS, iter_sweep
from pruning.steps import Layers
from pruning.text.likelihood import mean_loss
from tests.helpers.models import config, count, loaded, trained

TEXT = Calibration(tokens=1280, window=64)


def shape_of(base):
    return Shape.of(base.model.config)


@pytest.fixture(scope="module")
def searched():
    base = trained()
    budget = Budget.parse("25%", shape_of(base), 4)
    return base, budget, search(base, budget, calibration=TEXT)


def test_the_chosen_model_is_within_the_budget(searched):
    base, budget, result = searched
    assert result.chosen.candidate.parameters <= budget.parameters
    model = prune(result.chosen.recipe, base).model
    assert count(model) == result.chosen.candidate.parameters
    assert mean_loss(model, windows_of(base, TEXT).heldout) == pytest.approx(result.chosen.loss)


def test_no_trial_within_the_budget_is_better(searched):
    _, budget, result = searched
    within = [point for point in result.trials if point.candidate.parameters <= budget.parameters]
    assert result.chosen.loss == min(point.loss for point in within)
    # The best of each kind that can keep the budget alone is among them.
    alone = {point.candidate.single for point in within} - {None}
    assert "neurons" in alone


def test_every_kind_is_tried_alone_and_sizes_are_those_of_a_preview(searched):
    _, _, result = searched
    # The base has two layers, and both are protected.
    expected = {kind.title for kind in PRUNABLE_UNITS} - {"layers"}
    assert {trial.candidate.single for trial in result.trials} == expected | {None}
    for trial in result.trials:
        assert preview(trial.recipe).after.parameters == trial.candidate.parameters
    assert result.shapes_considered > 100
    for sizes in ([size for size, _ in result.curve], [t.candidate.parameters for t in result.trials]):
        assert sizes == sorted(sizes, reverse=True)
    assert all(math.isfinite(value) for _, value in result.curve)


def test_a_thorough_search_reconstructs_the_best(searched):
    base, budget, result = searched
    reconstructed = {trial.title for trial in result.trials if "reconstructed" in trial.title}
    assert 1 <= len(reconstructed) <= RECONSTRUCTED
    quick = search(base, budget, calibration=TEXT, thorough=False)
    assert {t.title for t in result.trials} - reconstructed == {t.title for t in quick.trials}
    assert result.chosen.loss <= quick.chosen.loss


def test_a_quick_search_reads_less_text_and_its_recipes_name_all_of_it(monkeypatch):
    base = trained()
    monkeypatch.setattr("pruning.shape_search.search.QUICK_TOKENS", 640)
    quick = search(base, Budget.parse("10%", shape_of(base), 4), calibration=TEXT, thorough=False)
    assert {trial.recipe.calibration for trial in quick.trials} == {TEXT}
    short = windows_of(base, TEXT.model_copy(update={"tokens": 640})).heldout
    assert quick.base_loss == pytest.approx(mean_loss(base.model, short))


def test_trials_come_as_they_are_measured_until_the_search_is_cancelled():
    base, trials = trained(), []
    budget = Budget.parse("10%", shape_of(base), 4)

    def stop(progress):
        if progress.done == 1 and progress.text.startswith("Probing"):
            raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        trials.extend(iter_search(base, budget, calibration=TEXT, progress=stop))
    assert len(trials) == 1
    assert isinstance(trials[0], Trial)


def test_a_search_is_deterministic(searched):
    base, budget, result = searched
    *trials, again = iter_search(base, budget, calibration=TEXT)
    assert again == result
    assert tuple(sorted(trials, key=lambda trial: -trial.candidate.parameters)) == result.trials


def test_kinds_that_a_family_cannot_lose_are_left_out():
    base = loaded("gpt2")
    result = search(base, Budget.parse("5%", shape_of(base), 4), calibration=TEXT)
    unprunable = [place for place, kind in enumerate(PRUNABLE_UNITS) if kind.unit in (CHANNEL, KEY_VALUE)]
    assert len(unprunable) == 2
    assert all(trial.candidate.amounts[place] == 0 for trial in result.trials for place in unprunable)
    assert any(trial.candidate.amounts[-1] for trial in result.trials)


def test_plain_values_have_the_keys_of_0_1_too(searched):
    base, _, result = searched
    values = json.loads(json.dumps(result.to_dict()))
    assert values.keys() >= {
        "recipe",
        "parameters",
        "perplexity",
        "perplexity_dense",
        "points",
        "curve",
        "previewed",
    }
    assert values["recipe"] == result.chosen.recipe.to_dict()
    assert values["recipe"]["base"] == base.source.name
    assert values["perplexity_dense"] == values["perplexity_base"] == math.exp(result.base_loss)
    assert values["previewed"] == values["shapes_considered"] == result.shapes_considered
    assert [point["cut"] for point in values["points"]] == [trial.title for trial in result.trials]
    assert {tuple(point) for point in values["points"]} == {("cut", "parameters", "perplexity", "recipe")}


@pytest.mark.parametrize(
    ("amounts", "title", "description", "single"),
    [
        ((5, 0, 0, 384), "5 layers, 384 neurons", "5 layers and 384 neurons per layer", None),
        ((1, 0, 0, 0), "1 layer", "1 layer", "layers"),
        ((0, 0, 0, 1024), "1,024 neurons", "1,024 neurons per layer", "neurons"),
        (
            (2, 1, 64, 16),
            "2 layers, 1 key-value head, 64 channels, 16 neurons",
            "2 layers, 1 key-value head per layer, 64 channels and 16 neurons per layer",
            None,
        ),
        ((0, 0, 0, 0), "nothing", "nothing", None),
    ],
)
def test_a_candidate_in_words(amounts, title, description, single):
    candidate = Candidate(amounts, 1_000)
    assert (candidate.title, candidate.description, candidate.single) == (title, description, single)


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


@pytest.mark.parametrize("text", ["", "small", "-5%", "1e3", None, "nan%", "5 apples", "1.2.3M"])
def test_texts_that_are_not_budgets_are_refused(text):
    with pytest.raises(RecipeError, match=r"^'.*' is not a size\. Write 100M for parameters"):
        Budget.parse(text, shape_of(trained()), 4)


@pytest.mark.parametrize("text", ["0%", "100%", "120%", "0", "900M", "5GB"])
def test_budgets_of_nothing_or_more_than_the_model_are_refused(text):
    with pytest.raises(RecipeError, match=rf"The budget {text} comes to .*Choose a size above 0"):
        Budget.parse(text, shape_of(trained()), 4)


def test_a_budget_below_every_shape_is_refused_with_the_smallest_size():
    base = trained()
    with pytest.raises(RecipeError, match=r"at most 10 parameters: the smallest that is searched has \d"):
        search(base, Budget(10), calibration=TEXT)


def test_a_sweep_removes_more_and_more_under_every_criterion():
    points = list(iter_sweep(trained(), ["activation", "l2"], calibration=TEXT))
    assert len(points) == 2 * len(FRACTIONS)
    for criterion in ("activation", "l2"):
        row = [point for point in points if point.criterion == criterion]
        assert [point.fraction for point in row] == list(FRACTIONS)
        assert all(preview(point.recipe).after.parameters == point.parameters for point in row)
        sizes = [point.parameters for point in row]
        assert sizes == sorted(set(sizes), reverse=True)


def test_a_sweep_measures_a_score_besides_the_loss():
    def width(model):
        return model.model.config.intermediate_size

    base = trained()
    points = list(iter_sweep(base, ["l2"], calibration=TEXT, score=width))
    assert [point.score for point in points] == [width(prune(point.recipe, base)) for point in points]
    assert {point.score for point in iter_sweep(base, ["l2"], calibration=TEXT)} == {None}
    with pytest.raises(RecipeError, match="Choose loss, answers, skills"):
        next(iter_sweep(base, ["l2"], calibration=TEXT, score="taste"))


def quick(base, budget="25%", **more):
    return search(base, budget, calibration=TEXT, thorough=False, top_k=2, **more)


def test_a_search_chooses_by_a_score_of_ones_own():
    base = trained()

    def most_layers_then_channels(model):
        return model.model.config.hidden_size

    result = quick(base, score=most_layers_then_channels)
    scored = [trial for trial in result.trials if trial.score is not None]
    assert result.chosen.score == max(trial.score for trial in scored)
    assert {trial.candidate.parameters for trial in scored} <= set(
        range(Budget.parse("25%", shape_of(base), 4).parameters + 1)
    )
    assert result.to_dict()["points"]


@pytest.mark.parametrize("value", [math.nan, "a word", ValueError("no such thing")])
def test_a_score_that_fails_once_keeps_what_was_found(value):
    calls = []

    def score(_model):
        calls.append(1)
        if len(calls) != 2:
            return 1.0
        if isinstance(value, Exception):
            raise value
        return value

    result = quick(trained(), score=score)
    assert result.chosen.score == 1.0
    (failed,) = [trial for trial in result.trials if trial.problem]
    assert failed.score is None
    assert failed.problem.startswith("it ")


def test_a_score_that_never_gives_a_number_is_named_at_the_end():
    with pytest.raises(RecipeError, match=r"gave no number for any of the \d+ models: it raised KeyError"):
        quick(trained(), score=lambda model: {}["nothing"])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"score": "beauty"}, "The score is 'beauty'. Choose loss, answers, skills, or give a function"),
        ({"steps": ["vocabulary"]}, "A search has no step 'vocabulary'. Choose from layers, heads"),
        ({"top_k": 0}, "At least one shape"),
    ],
)
def test_what_a_search_cannot_do_is_refused_before_any_work(values, says):
    with pytest.raises(RecipeError, match=says):
        search(loaded("llama"), "25%", **values)


def test_a_search_goes_on_where_it_was_stopped(tmp_path):
    base, file, calls = trained(), tmp_path / "scores.json", []

    def score(_model):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return float(len(calls))

    with pytest.raises(KeyboardInterrupt):
        quick(base, score=score, scores=file)
    assert file.is_file()
    first = quick(base, score=score, scores=file)
    measured = len(calls)
    assert quick(base, score=score, scores=file) == first
    assert len(calls) == measured
    assert 1.0 in [trial.score for trial in first.trials]
    file.write_text("[1, 2]")
    with pytest.raises(RecipeError, match="does not hold the scores of a search"):
        quick(base, scores=file)


def test_only_the_steps_and_widths_that_are_asked_for_are_searched():
    result = quick(trained(), "10%", steps=["neurons"], multiple_of=16)
    for trial in result.trials:
        *others, neurons = trial.candidate.amounts
        assert not any(others)
        assert neurons % 16 == 0


def test_memory_counts_weights_and_the_cache_at_a_context():
    base = trained()
    shape = shape_of(base)
    config = base.model.config
    heads = config.num_key_value_heads * config.head_dim
    assert cache_bytes(shape, 100, 4) == 2 * config.num_hidden_layers * heads * 100 * 4
    whole = 4 * shape.parameters + cache_bytes(shape, 5000, 4)
    budget = Budget(memory_bytes=int(0.6 * whole), context=5000)
    chosen = quick(base, budget).chosen
    after = preview(chosen.recipe).after
    assert 4 * after.parameters + cache_bytes(after, 5000, 4) <= budget.memory_bytes
    # The cache is most of it, and only fewer key/value heads make it smaller.
    assert after.count(KEY_VALUE) < shape.count(KEY_VALUE)
    with pytest.raises(
        RecipeError, match="No shape has at most 10 bytes of memory with 2,048 tokens of context"
    ):
        quick(base, Budget(memory_bytes=10))


def test_latency_is_predicted_from_the_bases(monkeypatch):
    base = trained()
    monkeypatch.setattr("pruning.shape_search.search.tokens_per_second", lambda *_, **__: (100.0,))
    chosen = quick(base, Budget(latency=0.008)).chosen
    assert chosen.candidate.parameters <= 0.8 * shape_of(base).parameters


@pytest.mark.parametrize("thorough", [False, True])
def test_trials_that_remove_layers_are_repaired_from_one_reading_of_the_base(monkeypatch, thorough):
    """They are the same, bit for bit, as if each had read the text itself."""
    base = loaded("llama", num_hidden_layers=8)
    budget, windows = Budget.parse("15%", shape_of(base), 4), windows_of(base, TEXT)
    texts = len(windows.fitting) + len(windows.heldout)

    def searched_once():
        cache.clear()
        read = []
        handle = base.model.get_input_embeddings().register_forward_hook(lambda *_: read.append(1))
        try:
            found = search(base, budget, calibration=TEXT, thorough=thorough, steps=["layers"])
        finally:
            handle.remove()
        return found, len(read)

    found, together = searched_once()
    assert cache.total_bytes() == 0
    monkeypatch.setattr("pruning.shape_search.gaps.available_memory", lambda: 1000)
    alone, apart = searched_once()
    assert found == alone
    assert len({trial.candidate.amounts for trial in found.trials}) > 2
    assert apart - together >= texts


def test_gaps_of_a_search_are_counted_if_they_are_kept():
    shape = Shape.of(config("llama", num_hidden_layers=12))
    plan = Plan(shape, shape, Reading.of(TEXT, Sizes(shape)), free=10**9)
    cost = gaps_cost(Layers(count=6), plan)
    assert cost.held == 6 * 4 * 48 * 32
    assert cost.memory > cost.held
    assert gaps_cost(Layers(count=6), replace(plan, free=cost.held)) is None
