"""The picture of the model: what steps lead to, and the layers that are pressed in it."""

from collections.abc import Sequence

import gradio as gr

from page.html import model_map
from page.workers.messages import FoundModel, PrunedSummary
from pruning.architectures.families import LAYER
from pruning.architectures.shape import Shape
from pruning.errors import RecipeError
from pruning.recipe import Recipe, removed_layers
from pruning.steps import AnyStep, Layers
from pruning.steps.base import Step, most

PRESS = """element.addEventListener("click", ({target}) => {
    const layers = window.secateur?.pressLayer(target);
    if (layers) trigger("click", {layers});
});"""
"""Tells the server which layers are removed after a press on one of them."""
MOST_LAYERS = 4096


def build() -> gr.HTML:
    """Lay the picture out, at the top of the right column."""
    return gr.HTML(elem_id="picture", min_height=230, js_on_load=PRESS)


def draw_steps(base: FoundModel, steps: Sequence[AnyStep]) -> str:
    """Return the picture of the model that steps lead to.

    Raises:
        RecipeError: A step does not fit.
    """
    after, _ = apply_to_shape(base.shape, steps)
    removed = removed_layers(steps, base.shape.count(LAYER))
    origin, zeros = model_map.weights_origin(base.source), model_map.zeros_of(steps)
    return model_map.draw_model(base.shape, after, origin, zeros, removed, _are_removable(base.shape))


def draw_pruned(pruned: PrunedSummary) -> str:
    """Return the picture of a model that was pruned: now it is known which layers were removed."""
    before, recipe = pruned.before, pruned.recipe
    origin, zeros = model_map.weights_origin(pruned.source), model_map.zeros_of(recipe.steps)
    pressable = _are_removable(before)
    return model_map.draw_model(before, pruned.after, origin, zeros, _removed_by(recipe, before), pressable)


def draw_recipe(before: Shape, recipe: Recipe) -> str:
    """Return the picture of a recipe that was carried out, in a lesson: nothing in it can be pressed."""
    after, _ = apply_to_shape(before, recipe.steps)
    zeros = model_map.zeros_of(recipe.steps)
    return model_map.draw_model(
        before, after, zeros=zeros, removed=_removed_by(recipe, before), prefix="lesson"
    )


def _removed_by(recipe: Recipe, before: Shape) -> frozenset[int] | None:
    """Return the layers that a recipe removed, which its run recorded; None for one that recorded none."""
    layers = range(before.count(LAYER))
    if recipe.kept_layers is not None:
        return frozenset(layers).difference(recipe.kept_layers)
    return removed_layers(recipe.steps, len(layers))


def note_of(before: Shape, steps: Sequence[AnyStep]) -> str:
    """Return the note on what steps cut.

    Raises:
        RecipeError: A step does not fit.
    """
    after, unseen = apply_to_shape(before, steps)
    return model_map.cut_note(before, after, unseen, removed_by_name(steps))


def removed_by_name(steps: Sequence[AnyStep]) -> tuple[int, ...]:
    """Return the layers that the first step which names layers removes."""
    return next((step.layers for step in steps if isinstance(step, Layers) and step.layers), ())


def apply_to_shape(before: Shape, steps: Sequence[Step]) -> tuple[Shape, list[str]]:
    """Return the shape after steps, and a line on each step that does not change it."""
    after, unseen = before, []
    for step in steps:
        shape = step.reshape(after)
        if shape == after:
            unseen.append(step.describe())
        after = shape
    return after, unseen


def read_pressed(event: gr.EventData) -> tuple[int, ...]:
    """Return the numbers of the layers that are removed after a press.

    Raises:
        RecipeError: They are anything else.
    """
    try:
        layers = event.layers
    except (AttributeError, TypeError):
        layers = None
    if not isinstance(layers, list) or len(layers) > MOST_LAYERS or not all(map(_is_layer, layers)):
        raise RecipeError("Press a layer in the drawing.")
    return tuple(sorted(set(layers)))


def _is_layer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_LAYERS


def _are_removable(shape: Shape) -> bool:
    return most(shape, "layers", shape.count(LAYER) - 1) > 0
