"""A user's own criterion: one decorated function, in this process or in a file."""

import pytest
import torch

import pruning
from pruning import CRITERIA, Calibration, Neurons, Recipe, RecipeError
from pruning.criteria import base
from pruning.criteria.own import is_file_name, load_criterion
from tests.helpers.models import loaded, matrices

TEXT = Calibration(text="story", tokens=600, window=128)
FILE = """
import pruning

@pruning.criterion("{name}", source="A test")
def {name}(down):
    return {body}
"""


@pytest.fixture(autouse=True)
def nothing_is_left_behind(monkeypatch):
    monkeypatch.setattr(base, "OWN", dict(base.OWN))
    monkeypatch.setattr("pruning.criteria.OWN", base.OWN)
    monkeypatch.setattr("pruning.criteria.own.OWN", base.OWN)


def prune(criterion, **values):
    step = Neurons(intermediate_size=24, criterion=criterion, **values)
    return pruning.prune(loaded("llama"), steps=step, calibration=TEXT)


def write(folder, name="mine", body="down.norm(dim=0)"):
    file = folder / "file.py"
    file.write_text(FILE.format(name=name, body=body))
    return f"{file}:{name}"


def test_a_criterion_is_given_the_arrays_it_names():
    @pruning.criterion("mine", source="A test")
    def mine(gate, up, down, square):
        assert gate.shape == up.shape == down.T.shape == (48, 32)
        return square.sqrt() * down.norm(dim=0)

    assert mine.needs_calibration
    assert mine.title == "mine"
    by_object, by_name = prune(mine, repair=False), prune("mine", repair=False)
    expected = prune("wanda", repair=False)
    for made in (by_object, by_name):
        assert made.kept == expected.kept
        assert made.recipe.steps[0].criterion == mine.key


def test_the_model_and_the_statistics_are_not_changed_by_a_careless_criterion():
    @pruning.criterion(source="A test")
    def careless(down, square):
        return down.zero_().sum(dim=0) + square.mul_(2)

    before = [matrix.clone() for matrix in matrices(loaded("llama").model, 0)[0]]
    assert prune(careless).kept == prune(careless).kept == prune("activation").kept
    after = matrices(loaded("llama").model, 0)[0]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "down.norm(dim=1)",
            r"gave the shape \[32\] in layer 0; one score for each neuron is needed, \[48\]",
        ),
        ("0.5", "gave float"),
        ("down.sum(dim=0) * float('nan')", "are not finite"),
        ("down.nonsense", "failed in layer 0: AttributeError"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_bad_criterion_is_one_sentence(tmp_path, body, message):
    made = load_criterion(write(tmp_path, body=body))
    with pytest.raises(RecipeError, match=message) as refusal:
        prune(made)
    assert "\n" not in str(refusal.value)


def test_a_gate_is_missing_in_words():
    @pruning.criterion(source="A test")
    def gates(gate):
        return gate.norm(dim=1)

    with pytest.raises(RecipeError, match="needs a gate"):
        pruning.prune(loaded("gpt2"), steps=Neurons(fraction=0.5, criterion=gates))


def test_a_recipe_needs_the_same_criterion_again(tmp_path):
    made = load_criterion(write(tmp_path))
    written = Recipe(base="x", steps=[Neurons(fraction=0.5, criterion=made)]).to_yaml()
    assert f"mine@{made.digest}" in written
    assert Recipe.parse(written).steps[0].criterion == made.key
    load_criterion(write(tmp_path, body="-down.norm(dim=0)"))
    assert Recipe.parse(written)  # The former version is still known to this process.
    base.OWN.clear()
    with pytest.raises(RecipeError, match=r"--criterion FILE\.py:mine"):
        Recipe.parse(written)
    load_criterion(write(tmp_path, body="-down.norm(dim=0)"))
    with pytest.raises(RecipeError, match="another version"):
        Recipe.parse(written)


def test_a_recipe_never_runs_a_file(tmp_path):
    address, known = write(tmp_path), dict(base.OWN)
    with pytest.raises(RecipeError, match="no criterion"):
        Recipe.parse(f"base: x\nsteps:\n- step: neurons\n  fraction: 0.5\n  criterion: {address}\n")
    assert known == base.OWN


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "mine", "There is no file"),
        ("1 / 0", "mine", "cannot be run: ZeroDivisionError"),
        ("def mine(down): return down", "mine", "Decorate the function"),
        ("", "mine", "Check the name"),
        (FILE.format(name="l1", body="down"), "l1", "has a criterion l1 itself"),
        (FILE.format(name="mine", body="down").replace("(down)", "(weights)"), "mine", "may name mlp, gate"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(tmp_path, content, name, message):
    file = tmp_path / "file.py"
    if content is not None:
        file.write_text(content)
    with pytest.raises(RecipeError, match=message) as refusal:
        load_criterion(f"{file}:{name}")
    assert "\n" not in str(refusal.value)


def test_names_of_files_are_recognized():
    assert is_file_name("a/b.py:mine")
    assert not any(is_file_name(name) for name in CRITERIA)
