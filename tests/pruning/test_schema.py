"""Errors in values are told in plain words, and never in those of the library that checks them."""

import pytest

import pruning
from pruning import Calibration, Heads, Layers, Neurons, Recipe

LAYERS = Layers(count=1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Calibration(tokens=5), "tokens: enter 256 or more, not '5'."),
        (lambda: Recipe(base="a", steps=()), "steps: give at least 1, not '()'."),
        (lambda: Recipe(base="", steps=(LAYERS,)), "base: write at least 1 characters, not ''."),
        (lambda: Recipe(base="x" * 5000, steps=(LAYERS,)), "base: write at most 4096 characters"),
        (lambda: Layers(count="1"), "count: enter a whole number, not '1'."),
        (lambda: Neurons(fraction="a"), "fraction: enter a number, not 'a'."),
        (lambda: Layers(count=1, method="no"), "method: choose 'influence'"),
        (lambda: Heads(groups=1, repair="yes"), "repair: "),
        (lambda: Recipe(base=None, steps=(LAYERS,)), "base: write a text, not 'None'."),
        (lambda: Recipe(base="a", steps={"step": "layers"}), "steps: it should be a valid tuple"),
    ],
)
def test_a_value_that_is_refused_is_explained(make, says):
    with pytest.raises(pruning.errors.RecipeError) as error:
        make()
    assert str(error.value).startswith(says)
    assert "Input" not in str(error.value)
    assert "should have at" not in str(error.value)
