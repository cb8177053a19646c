"""Start from a recipe: one that is pasted, that a link holds, or that a lesson ended with."""

from collections.abc import Callable
from dataclasses import dataclass

import gradio as gr

from page.html import render
from page.sections.controls import show_recipe
from page.sections.events import Part, Updates, on_event
from page.sections.picture import draw_steps
from page.sections.section import Page
from page.server import links
from page.server.look_ups import look_up
from page.server.session import user_message, visitor_of
from pruning import Recipe


@dataclass(frozen=True)
class RecipeBox:
    """Where a recipe is pasted."""

    text: gr.Textbox
    use: gr.Button


def build() -> RecipeBox:
    """Lay the box out."""
    with gr.Accordion("Start from a recipe", open=False, elem_id="from-recipe"):
        text = gr.Textbox(
            label="Recipe",
            info="YAML or JSON, as shown with every result",
            lines=6,
            max_lines=14,
            max_length=links.MAX_LENGTH,
            elem_id="recipe-text",
        )
        use = gr.Button("Use this recipe", elem_id="use-recipe")
    return RecipeBox(text, use)


def wire(page: Page, box: RecipeBox) -> None:
    """Connect the button."""

    def open_pasted_recipe(
        text: object, prompt: object, request: gr.Request, token: gr.OAuthToken | None
    ) -> Updates:
        return open_recipe(page, lambda: links.read(text), prompt, request, token)

    inputs = [box.text, page.controls.sampling.prompt]
    on_event([box.use.click], open_pasted_recipe, inputs, recipe_outputs(page))


def recipe_outputs(page: Page) -> list[Part]:
    """Return what `open_recipe` changes."""
    return [*page.controls.recipe_outputs, page.results.picture, page.results.job.status]


def open_recipe(
    page: Page,
    read: Callable[[], Recipe],
    prompt: object,
    request: gr.Request,
    token: gr.OAuthToken | None,
) -> dict[Part, object]:
    """Set the page to a recipe.

    Args:
        page: The page.
        read: Returns the recipe; it may raise what the visitor is then told.
        prompt: What stands in the box for the prompt.
        request: The visitor's request.
        token: The visitor's token, if they are signed in.
    """
    status = page.results.job.status
    try:
        recipe = read()
        base = look_up(recipe.base, visitor_of(request, token))
        return show_recipe(page.controls, recipe, base.shape, prompt) | {
            page.results.picture: draw_steps(base, recipe.steps),
            status: render.status("The recipe is set. Press Prune."),
        }
    except Exception as error:
        return {status: render.status(user_message(error), kind="failed")}
