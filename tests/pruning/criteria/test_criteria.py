"""Each score is the formula that the criterion states."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pruning.criteria
from pruning import Neurons, Recipe, RecipeError
from pruning.architectures.families import GATE, NEURON, UP
from pruning.architectures.shape import Shape
from pruning.calibration.statistics import InputMoments, Statistics
from pruning.criteria import CRITERIA, DEFAULT_CRITERION, MLP, criterion_named
from pruning.criteria.base import criterion
from pruning.steps.base import StepContext
from tests.helpers.models import FAMILIES, folder_of, loaded, matrices, output_projection


def numbers(*shape, seed=0, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def by_hand(name, neuron, input_weights, output_weight, seen):
    """The score of one neuron in plain Python; `seen`: the activations of the layer, window by window."""
    rows = [read[neuron].tolist() for read in input_weights]
    windows = [window[:, neuron].tolist() for window in seen]
    values = [value for window in windows for value in window]
    match name:
        case "l1":
            return sum(abs(x) for row in rows for x in row)
        case "l2":
            return sum(math.sqrt(sum(x * x for x in row)) for row in rows)
        case "peak_to_peak":
            return sum(max(row) + abs(min(row)) for row in rows)
        case "variance":
            means = [sum(row) / len(row) for row in rows]
            return sum(
                sum((x - mean) ** 2 for x in row) / (len(row) - 1)
                for row, mean in zip(rows, means, strict=True)
            )
        case "activation":
            return math.sqrt(sum(value * value for value in values) / len(values))
        case "activation_prior":
            neurons = range(len(input_weights[0]))
            energy = [mean([x * x for window in seen for x in window[:, j].tolist()]) for j in neurons]
            predicted = [
                math.prod(sum(x * x for x in read[j].tolist()) for read in input_weights) for j in neurons
            ]
            return math.sqrt(energy[neuron] / middle(energy) + 0.5 * predicted[neuron] / middle(predicted))
        case "wanda":
            written = math.sqrt(sum(x * x for x in output_weight[:, neuron].tolist()))
            return math.sqrt(sum(value * value for value in values) / len(values)) * written
        case "minitron":
            return math.sqrt(sum((sum(map(abs, window)) / len(window)) ** 2 for window in windows))
    raise AssertionError(f"{name} has no formula in this test")


def mean(values):
    return sum(values) / len(values)


def middle(values):
    """The median of what is not zero, as torch has it: the lower of the two in the middle."""
    positive = sorted(value for value in values if value > 0)
    return positive[(len(positive) - 1) // 2]


def inputs_by_hand(model, site, windows):
    """The inputs of a projection, from a hook of the test's own on the whole model."""
    seen = []
    handle = model.get_submodule(site).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for window in windows:
        model(input_ids=window[None])
    handle.remove()
    return [inputs.reshape(len(window), -1) for inputs, window in zip(seen, windows, strict=True)]


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "phi3", "gemma3_text"])
@pytest.mark.parametrize("name", [name for name in CRITERIA if name not in ("random", "gate_up_unpaired")])
def test_score_is_its_formula(name, family):
    model, layer = loaded(family).model, 1
    windows = [torch.arange(start, start + length) for start, length in ((5, 30), (70, 30), (150, 7))]
    site = output_projection(model, layer)
    statistics = Statistics(model, [site], windows[:2], windows[2:])
    reads, write = matrices(model, layer)
    scores = CRITERIA[name].score(MLP(tuple(reads), write), statistics.moments[site], None)
    seen = inputs_by_hand(model, site, windows)
    expected = [by_hand(name, neuron, reads, write, seen) for neuron in range(write.shape[1])]
    torch.testing.assert_close(scores, torch.tensor(expected), rtol=1e-4, atol=1e-6)


def test_gate_up_unpaired_scores_each_matrix_apart():
    reads = numbers(6, 4), numbers(6, 4, seed=1)
    scores = CRITERIA["gate_up_unpaired"].score(MLP(reads, numbers(4, 6)), None, None)
    torch.testing.assert_close(scores, torch.stack([read.abs().sum(dim=1) for read in reads]))


def test_gate_up_unpaired_leaves_nothing_to_repair():
    shape = Shape.of(loaded("llama").model.config)
    with pytest.raises(RecipeError, match="Switch repair off"):
        Neurons(fraction=0.2, criterion="gate_up_unpaired", repair=True).reshape(shape)


@pytest.mark.parametrize("name", CRITERIA)
def test_criterion_explains_itself(name):
    criterion, file = CRITERIA[name], Path(pruning.criteria.__file__).with_name(f"{name}.py")
    assert criterion.name == name
    assert f"\ndef {name}(" in file.read_text(encoding="utf-8")
    assert [other.title for other in CRITERIA.values()].count(criterion.title) == 1
    assert 5 < len(criterion.title) < 50
    assert not criterion.title.endswith(".")
    # A formula names the activation or the weights of neuron j.
    assert name == "random" or re.search("aⱼ|Wⱼ|,j", criterion.formula)
    # Where it was published, or that it comes from the course.
    assert name == "random" or re.search(r"\d{4}|Course", criterion.source)
    assert criterion.url.startswith("https://") == (name != "random")
    assert criterion.warning == "" or criterion.warning.endswith(".")


def test_files_are_the_criteria():
    """So that a criterion that is not named in the table is noticed."""
    files = {file.stem for file in Path(pruning.criteria.__file__).parent.glob("*.py")}
    assert files - {"__init__", "base", "own"} == set(CRITERIA)


def test_wrong_ways_carry_a_warning():
    for name in ("gate_up_unpaired", "l1", "l2"):
        assert re.search("[Ww]rong on purpose|ruins the model|loses far more", CRITERIA[name].warning)
    assert CRITERIA[DEFAULT_CRITERION].warning == ""
    assert DEFAULT_CRITERION == "activation_prior"


def test_criteria_that_name_the_moments_need_calibration():
    read_text = {"activation_prior", "activation", "wanda", "minitron"}
    weights_alone = {"peak_to_peak", "variance", "l1", "l2", "random", "gate_up_unpaired"}
    assert {CRITERIA[name].needs_calibration for name in read_text} == {True}
    assert {CRITERIA[name].needs_calibration for name in weights_alone} == {False}


def test_a_criterion_is_given_what_it_names():
    @criterion(title="A test", formula="aⱼ", source="A test, 2026", warning="Made up.")
    def made_up(generator: torch.Generator, mlp: MLP) -> torch.Tensor:
        """Return as many draws as there are neurons."""
        return torch.rand(len(mlp.input_weights[0]), generator=generator)

    assert (made_up.name, made_up.title, made_up.formula) == ("made_up", "A test", "aⱼ")
    assert (made_up.source, made_up.url, made_up.warning) == ("A test, 2026", "", "Made up.")
    assert not made_up.needs_calibration
    scores = made_up.score(MLP((numbers(6, 4),), numbers(4, 6)), None, torch.Generator().manual_seed(1))
    assert torch.equal(scores, torch.rand(6, generator=torch.Generator().manual_seed(1)))


def test_a_criterion_that_names_something_else_is_refused():
    with pytest.raises(TypeError, match="made_up names 'statistics'; a criterion may name mlp, gate, up, "):

        @criterion(title="A test", formula="aⱼ", source="A test, 2026")
        def made_up(statistics) -> torch.Tensor:
            """Return nothing of use."""


def test_neurons_that_never_fire_are_ranked_by_their_weights():
    """As in an OPT whose neurons are silent on most texts: no division by a median of zero."""
    reads = (numbers(6, 4),)
    silent = InputMoments(square=torch.zeros(6), sequence=torch.zeros(6))
    scores = CRITERIA["activation_prior"].score(MLP(reads, numbers(4, 6)), silent, None)
    assert scores.argsort().tolist() == reads[0].norm(dim=1).argsort().tolist()
    one = silent.square.clone()
    one[2] = 1e-12
    scores = CRITERIA["activation_prior"].score(
        MLP((torch.zeros(6, 4),), numbers(4, 6)), InputMoments(one, one), None
    )
    assert scores.tolist() == [0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)
def test_half_precision_does_not_overflow(criterion, dtype):
    largest = 60_000
    reads = numbers(12, 64, scale=15_000), numbers(12, 64, seed=1, scale=15_000)
    write = numbers(64, 12, seed=2, scale=15_000)
    reads, write = [read.clamp(-largest, largest).to(dtype) for read in reads], write.to(dtype)
    moments = InputMoments(square=numbers(12).square() * 1e8, sequence=numbers(12).abs())

    def score(precision):
        mlp = MLP(tuple(read.to(precision) for read in reads), write.to(precision))
        return criterion.score(mlp, moments, torch.Generator().manual_seed(3))

    assert torch.isfinite(score(dtype)).all()
    torch.testing.assert_close(score(dtype).double(), score(torch.float64).double(), rtol=1e-5, atol=0)


def context(base, seed=0):
    return StepContext(base.model, base.tokenizer, Shape.of(base.model.config), base, seed=seed)


def test_random_depends_on_the_seed_alone():
    def drawn(family, seed):
        return Neurons(intermediate_size=20, criterion="random").rank(context(loaded(family), seed))[NEURON]

    assert all(map(torch.equal, drawn("gpt2", 7), drawn("qwen2", 7)))
    assert not any(map(torch.equal, drawn("gpt2", 7), drawn("gpt2", 11)))
    assert not torch.equal(*drawn("gpt2", 7))
    before = torch.get_rng_state()
    drawn("gpt2", 2**63 - 1)
    assert torch.equal(torch.get_rng_state(), before)


@settings(max_examples=50, deadline=None)
@given(
    family=st.sampled_from(FAMILIES),
    width=st.integers(1, 47),
    criterion=st.sampled_from(["l1", "variance", "peak_to_peak", "random", "gate_up_unpaired"]),
)
def test_kept_are_ascending_unique_and_enough(family, width, criterion):
    base = loaded(family)
    shape = Shape.of(base.model.config)
    if criterion == "gate_up_unpaired" and not shape.anatomy.family.gated:
        criterion = "l2"
    kept = Neurons(intermediate_size=width, criterion=criterion).rank(context(base))
    assert set(kept) == ({NEURON, GATE, UP} if criterion == "gate_up_unpaired" else {NEURON})
    for layers in kept.values():
        assert len(layers) == shape.anatomy.layers
        for indices in map(torch.Tensor.tolist, layers):
            assert indices == sorted(set(indices))
            assert len(indices) == width
            assert 0 <= indices[0] <= indices[-1] < shape.count(NEURON)


def test_highest_stay_and_the_first_of_equals_wins(monkeypatch):
    scores = torch.zeros(48)
    scores[[40, 7]] = 1.0
    monkeypatch.setitem(CRITERIA, "l1", _scoring(scores))
    kept = Neurons(intermediate_size=4, criterion="l1").rank(context(loaded("gpt2")))
    assert kept[NEURON][0].tolist() == [0, 1, 7, 40]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_refused(monkeypatch, value):
    monkeypatch.setitem(CRITERIA, "l1", _scoring(torch.full((48,), value)))
    with pytest.raises(RecipeError, match=r"layer 0 are not finite.*Load the model again"):
        Neurons(intermediate_size=4, criterion="l1").rank(context(loaded("gpt2")))


def _scoring(scores):
    return replace(CRITERIA["l1"], score=lambda mlp, moments, generator: scores)


def test_unknown_criterion_lists_the_known_ones():
    with pytest.raises(RecipeError, match="no criterion 'taylor'") as error:
        criterion_named("taylor")
    assert all(name in str(error.value) for name in CRITERIA)
    with pytest.raises(RecipeError, match="no criterion 'taylor'"):
        Recipe(base=str(folder_of("gpt2")), steps=[Neurons(fraction=0.2, criterion="taylor")])
