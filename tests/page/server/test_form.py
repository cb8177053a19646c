"""The visitor's choices are validated, and a recipe becomes choices again."""

import pytest

from page.server.form import CONTROLS, calibration_from, recipe_from, steps_from, values_of
from pruning import Calibration, Heads, Layers, Neurons, Recipe, RecipeError

START = {control.key: control.start for control in CONTROLS}
CHOICES = ["smollm2-135m", "story", "", 512, 3]


def values(**changed):
    return list((START | {key.replace("_", "-"): value for key, value in changed.items()}).values())


def test_the_start_cuts_a_fifth_of_the_neurons():
    (step,) = steps_from(values())
    assert isinstance(step, Neurons)
    assert step.fraction == 0.2


def test_every_moved_slider_becomes_a_step():
    steps = steps_from(values(neurons_fraction=25, heads_groups=1, layers_count=2))
    assert {type(step) for step in steps} == {Neurons, Heads, Layers}


@pytest.mark.parametrize("value", [-1, 99.5, 100, 1e12, float("nan"), True, "20", None, [20]])
def test_an_amount_out_of_range_is_refused(value):
    with pytest.raises(RecipeError, match=r"Enter a number from 0 to 99\."):
        steps_from(values(neurons_fraction=value))


@pytest.mark.parametrize("value", [-1, 0.5, 1e10, True, "1", None])
def test_a_count_out_of_range_is_refused(value):
    with pytest.raises(RecipeError, match=r"Enter a (whole )?number"):
        steps_from(values(layers_count=value))


@pytest.mark.parametrize("value", ["nothing", 5, None])
def test_a_choice_that_is_not_offered_is_refused(value):
    with pytest.raises(RecipeError, match="Choose one of"):
        steps_from(values(neurons_criterion=value))


def test_nothing_to_cut_says_what_to_do():
    with pytest.raises(RecipeError, match="Nothing to cut yet: move the slider"):
        recipe_from(None, *CHOICES, *values(neurons_fraction=0))


@pytest.mark.parametrize("place", [0, 1, 3, 4], ids=["model", "text", "tokens", "seed"])
def test_other_values_than_the_controls_send_are_refused(place):
    choices = [*CHOICES]
    choices[place] = {"a": 1}
    with pytest.raises(RecipeError):
        recipe_from(None, *choices, *values())


def test_a_recipe_becomes_the_values_that_ask_for_it():
    recipe = recipe_from(None, *CHOICES, *values(neurons_fraction=35, layers_count=2))
    assert steps_from(values_of(recipe)) == recipe.steps


def test_a_recipe_that_holds_more_than_the_controls_has_no_values():
    assert values_of(Recipe(base="smollm2-135m", steps=(Layers(layers=(4, 5)),))) is None


def test_an_opened_recipe_is_followed_whatever_the_controls_say():
    recipe = Recipe(base="smollm2-135m", steps=(Layers(layers=(4, 5)),))
    assert recipe_from(recipe, *CHOICES, *values()) is recipe


def test_an_opened_recipe_takes_back_the_custom_text_that_it_lacks():
    calibration = Calibration.custom("text " * 300, tokens=256)
    recipe = Recipe(base="smollm2-135m", calibration=calibration, steps=(Neurons(fraction=0.2),))
    lacking = Recipe.parse(recipe.to_yaml())
    filled = recipe_from(lacking, "smollm2-135m", "custom", "text " * 300, 256, 0, *values())
    assert filled.calibration.content == "text " * 300


@pytest.mark.parametrize("text", ["", "  ", None, 5, "x" * 200_001])
def test_a_custom_text_must_be_there_and_not_too_long(text):
    with pytest.raises(RecipeError, match=r"Paste the text|at most 200,000"):
        calibration_from("custom", text, 256)
