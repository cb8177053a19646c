"""What a visitor finds when the page opens: the default model, or the recipe or lesson of a link."""

from collections.abc import Iterator

import gradio as gr

from page.html import render
from page.sections.controls import fit_sliders, show_shape
from page.sections.course import PARAMETER, CourseTab, lesson_of_link
from page.sections.events import Updates, on_event
from page.sections.recipe_box import open_recipe, recipe_outputs
from page.sections.section import Page
from page.server import links
from page.server.form import CHAT, CONTROLS, FIRST_PROMPTS
from page.server.warm_up import WarmUp
from pruning import Recipe, catalog


def wire(demo: gr.Blocks, tabs: gr.Tabs, page: Page, course: CourseTab, warm_up: WarmUp) -> None:
    """Connect the opening of the page, and the way from a lesson to the Prune tab."""
    controls, results = page.controls, page.results

    def show_first(request: gr.Request, token: gr.OAuthToken | None) -> Iterator[Updates]:
        while not warm_up.shape_known.wait(timeout=0.5):
            progress = warm_up.progress
            line = render.status(progress.text, progress.done, progress.total, "busy")
            yield {results.job.status: line}
        model, starts = catalog.DEFAULT_MODEL, [control.start for control in CONTROLS]
        picture, note, *_ = show_shape(request, token, model, *starts)
        sliders = [value for _, value in controls.sliders]
        yield {
            results.picture: picture,
            controls.note: note,
            results.job.status: render.status("Ready. Move the slider, then press Prune."),
            **dict(zip(sliders, fit_sliders(model, request, token), strict=True)),
        }
        if value := request.query_params.get(links.PARAMETER):
            updates = open_recipe(page, lambda: links.decode(value), FIRST_PROMPTS[CHAT], request, token)
            if asked := links.decode_prompt(request.query_params):
                mode, prompt = asked
                updates |= controls.sampling.show_mode(mode, prompt=prompt)
            yield updates

    def show_linked_lesson(request: gr.Request) -> Updates:
        key = lesson_of_link(request.query_params.get(PARAMETER, ""))
        return {tabs: gr.Tabs(selected="course"), course.chosen: key} if key else {tabs: gr.skip()}

    def open_result(
        recipe: object, prompt: object, request: gr.Request, token: gr.OAuthToken | None
    ) -> Updates:
        if not isinstance(recipe, Recipe):
            return {tabs: gr.skip()}
        return {tabs: gr.Tabs(selected="prune")} | open_recipe(page, lambda: recipe, prompt, request, token)

    demo.load(
        show_first,
        None,
        recipe_outputs(page),
        show_progress="hidden",
        concurrency_limit=None,
        api_visibility="private",
    )
    on_event([demo.load], show_linked_lesson, outputs=[tabs, course.chosen])
    on_event(
        [course.open_result.click],
        open_result,
        [course.recipe, controls.sampling.prompt],
        [tabs, *recipe_outputs(page)],
    )
