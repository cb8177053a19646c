"""A press on a layer of the drawing becomes a recipe that names exactly the layers removed."""

from types import SimpleNamespace

import gradio as gr
import pytest

from page.sections.controls import show_shape
from page.sections.picture import read_pressed
from page.sections.press_layers import press
from page.server.form import CONTROLS, PressedLayers, recipe_from, with_layers
from pruning import Layers, Neurons, Recipe, RecipeError
from pruning.architectures.shape import Shape
from tests.helpers import models

MODEL = "smollm2-135m"
VALUES = [control.start for control in CONTROLS]
CHOICES = [MODEL, "story", "", 512, 3]


@pytest.fixture
def known(monkeypatch):
    """Every model is a small one."""
    loaded = models.loaded("llama")
    found = SimpleNamespace(shape=Shape.of(loaded.model.config), source=loaded.source)
    for module in ("press_layers", "controls"):
        monkeypatch.setattr(f"page.sections.{module}.look_up", lambda *_: found)


def pressed(*layers):
    return gr.EventData(None, {"layers": list(layers)})


def values(**changed):
    fields = {key.replace("_", "-"): value for key, value in changed.items()}
    return [fields.get(control.key, control.start) for control in CONTROLS]


@pytest.fixture
def press_layer(handler, request_of, known):
    def call(event, opened=None, values=VALUES):
        (updates,) = handler("press_layer")(request_of(), None, event, opened, MODEL, *values)
        return updates

    return call


def test_a_pressed_layer_becomes_a_recipe_beside_what_the_controls_say(press_layer):
    updates = press_layer(pressed(1))
    opened = updates["state"]
    assert opened == PressedLayers(MODEL, (1,))
    assert "(1)" in updates["cut-note"]
    assert 'class="layer removed" data-layer="1"' in updates["picture"]
    recipe = recipe_from(opened, *CHOICES, *VALUES)
    layers, neurons = recipe.steps
    assert (layers.layers, layers.count, layers.repair) == ((1,), None, True)
    assert isinstance(neurons, Neurons)
    assert Recipe.parse(recipe.to_yaml()) == recipe


def test_the_last_layer_that_is_put_back_leaves_what_the_controls_say(press_layer):
    updates = press_layer(pressed(), PressedLayers(MODEL, (1,)))
    assert updates["state"] is None
    assert updates["opened-recipe"] == ""
    assert "layer removed" not in updates["picture"]


def test_pressed_layers_take_the_place_of_the_slider(press_layer):
    updates = press_layer(pressed(0, 1), values=values(layers_count=1))
    assert updates["layers-count"] == 0
    assert "layer undecided" not in updates["picture"]


def test_another_slider_keeps_them_and_the_slider_of_layers_replaces_them(request_of, known):
    opened = PressedLayers(MODEL, (1,))
    kept = show_shape(request_of(), None, opened, MODEL, *values(neurons_fraction=50))
    assert kept[2] == opened
    assert 'class="layer removed" data-layer="1"' in kept[0]
    for model, controls in ((MODEL, values(layers_count=1)), ("other", VALUES)):
        shown = show_shape(request_of(), None, opened, model, *controls)
        assert shown[2:] == (None, "")
        assert "layer removed" not in shown[0]


def test_a_press_changes_the_layers_of_an_opened_recipe_in_their_place():
    first = Layers(layers=(4, 5), repair=False, repair_norms=False)
    recipe = Recipe(base=MODEL, steps=(Neurons(fraction=0.5), first, Layers(count=2)), kept_layers=(1, 2))
    after = press(recipe, MODEL, (4, 5, 7), True)
    assert after.steps == (Neurons(fraction=0.5), first.model_copy(update={"layers": (4, 5, 7)}))
    assert after.kept_layers is None
    assert press(Recipe(base=MODEL, steps=(first,)), MODEL, (), True) is None


def test_layers_come_first_if_no_step_removed_any():
    steps = with_layers([Neurons(fraction=0.5)], (3,), repair=False)
    assert steps == (Layers(layers=(3,), repair=False), Neurons(fraction=0.5))
    assert with_layers([Layers(count=2)], (), repair=True) == ()


@pytest.mark.parametrize("layers", [None, "1", [True], [-1], [1.5], ["1"], [[1]], [10**6], list(range(5000))])
def test_a_press_that_the_drawing_does_not_send_is_refused(layers, press_layer):
    event = gr.EventData(None, {"layers": layers})
    with pytest.raises(RecipeError):
        read_pressed(event)
    assert "Press a layer" in press_layer(event)["cut-note"]


def test_a_press_without_data_is_refused():
    with pytest.raises(RecipeError):
        read_pressed(gr.EventData(None, None))


def test_a_layer_that_the_model_does_not_have_is_refused(press_layer):
    updates = press_layer(pressed(999))
    assert "There is no layer 999" in updates["cut-note"]
    assert set(updates) == {"cut-note"}
