"""Press a layer in the picture of the model to remove it, or to put it back."""

import gradio as gr

from page.html import render
from page.sections.controls import ControlPanel, follow_recipe
from page.sections.events import Part, Updates, on_event
from page.sections.picture import draw_steps, note_of, read_pressed
from page.server.form import Opened, PressedLayers, layers_are_repaired, requested_steps, with_layers
from page.server.look_ups import look_up
from page.server.session import user_message, visitor_of
from pruning import Recipe


def wire(panel: ControlPanel, picture: gr.HTML) -> None:
    """Connect the picture to what Prune carries out."""
    count = panel.value_of("layers-count")

    def press_layer(
        request: gr.Request,
        token: gr.OAuthToken | None,
        event: gr.EventData,
        opened: Opened,
        model: str,
        *values: object,
    ) -> Updates:
        try:
            layers = read_pressed(event)
            base = look_up(model, visitor_of(request, token))
            following = press(opened, model, layers, layers_are_repaired(values))
            # The slider would take the place of the layers.
            others = [
                0 if value is count else given for value, given in zip(panel.values, values, strict=True)
            ]
            steps = requested_steps(following, model, others)
            shown = {picture: draw_steps(base, steps), panel.note: note_of(base.shape, steps)}
            following_is_recipe = isinstance(following, Recipe)
            return shown | _follow(panel, following) | {count: gr.skip() if following_is_recipe else 0}
        except Exception as error:
            return {panel.note: render.message(user_message(error), "warning")}

    on_event(
        [picture.click],
        press_layer,
        [panel.recipe, panel.model, *panel.values],
        [picture, panel.note, panel.recipe, panel.recipe_note, count],
        trigger_mode="always_last",
    )


def press(opened: Opened, model: str, layers: tuple[int, ...], repair: bool) -> Opened:
    """Return the recipe or the layers that Prune uses besides the controls after a press.

    Args:
        opened: What it used before.
        model: The base.
        layers: The numbers of all layers that are removed now, ascending.
        repair: Whether the gaps are repaired, if no step says so already.
    """
    if isinstance(opened, Recipe) and (steps := with_layers(opened.steps, layers, repair)):
        return opened.model_copy(update={"steps": steps, "kept_layers": None, "removed": None})
    return PressedLayers(model, layers) if layers else None


def _follow(panel: ControlPanel, following: Opened) -> dict[Part, object]:
    """Return what the page notes of it."""
    if isinstance(following, Recipe):
        return follow_recipe(panel, following)
    note = "" if following is None else render.pressed_layers_note(following.layers)
    return {panel.recipe: following, panel.recipe_note: note}
