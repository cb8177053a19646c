"""What a visitor finds when the page opens: results of the default recipe, or the recipe or lesson of a link."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import gradio as gr
from anyio import to_thread

from page.html import outputs as texts
from page.html import render
from page.html.abilities import abilities_panel
from page.html.heading import heading
from page.html.results import genres, measures
from page.sections.controls import fit_sliders, picture_and_note
from page.sections.course import PARAMETER, CourseTab, lesson_of_link
from page.sections.events import NOWHERE, Part, Updates, on_event
from page.sections.prune import PruneRequest, Shown, inputs, outputs, request_from, settings_from
from page.sections.recipe_box import open_recipe, recipe_outputs
from page.sections.section import Page
from page.server import links
from page.server.form import CHAT, CONTROLS, FIRST_PROMPTS, prompt_from
from page.server.jobs import recall
from page.server.session import audience, job_name, jobs, results, session_of, visitor_of
from page.server.warm_up import WarmUp
from page.store.packaged import find_packaged, packaged_base
from page.store.values import decode
from page.workers.abilities import AbilitiesTask
from page.workers.messages import Evaluation, Texts
from pruning import Recipe, catalog
from pruning.errors import PruningError
from pruning.evaluation.abilities import Abilities
from pruning.evaluation.answers import AnswersKept

READY = render.status("Ready. Move the slider, or change something else and press Prune.")


def wire(demo: gr.Blocks, tabs: gr.Tabs, page: Page, course: CourseTab, warm_up: WarmUp) -> None:
    """Connect the opening of the page, and the way from a lesson to the Prune tab."""
    controls, pane = page.controls, page.results
    shows_results = fill_in(page)

    async def show_first(request: gr.Request, token: gr.OAuthToken | None) -> AsyncIterator[Updates]:
        while not warm_up.shape_known.is_set():
            progress = warm_up.progress
            line = render.status(progress.text, progress.done, progress.total, "busy")
            yield {pane.job.status: line}
            await asyncio.sleep(0.5)
        yield await to_thread.run_sync(partial(first_updates, request, token))

    def first_updates(request: gr.Request, token: gr.OAuthToken | None) -> Updates:
        model, starts = catalog.DEFAULT_MODEL, [control.start for control in CONTROLS]
        sliders = [value for _, value in controls.sliders]
        updates: dict[Part, object] = dict(zip(sliders, fit_sliders(model, request, token), strict=True))
        picture, note, *_ = picture_and_note(request, token, None, model, *starts)
        if job_name(request) not in jobs:
            updates[pane.job.status] = READY
        if audience.has_moved(session_of(request)):
            return updates
        updates |= {pane.picture: picture, controls.note: note}
        asked = request_from(page, first_values(page))
        if value := request.query_params.get(links.PARAMETER):
            updates |= open_recipe(page, lambda: links.decode(value), FIRST_PROMPTS[CHAT], request, token)
            linked = links.decode_prompt(request.query_params)
            mode, prompt = linked or (CHAT, FIRST_PROMPTS[CHAT])
            if linked:
                updates |= controls.sampling.show_mode(mode, prompt=prompt)
            try:
                recipe = links.decode(value)
                asked = PruneRequest(recipe, prompt_from(prompt, mode), asked.sampling)
            except PruningError:
                return updates
        if job_name(request) in jobs:
            return updates  # The visitor was faster.
        return updates | show_recorded(asked, request, token)

    def show_recorded(
        asked: PruneRequest, request: gr.Request, token: gr.OAuthToken | None
    ) -> dict[Part, object]:
        """Return recorded results; if not all were recorded, whatever else stood in their place goes."""
        run = Shown(page, lambda: asked, request)
        visitor = visitor_of(request, token)
        try:
            done = [recall(task, visitor) for task in run.tasks()]
        except PruningError:
            done = [None]
        updates: dict[Part, object] = {}
        for each in done:
            if each is None:
                return _without_results(page) if shows_results else {}
            updates |= run.show(each)
        return updates | {pane.job.status: READY}

    def show_linked_lesson(request: gr.Request) -> Updates:
        if links.ROOM in request.query_params:
            return {tabs: gr.skip()}  # The room has a lesson.
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
        list(dict.fromkeys([*recipe_outputs(page), *outputs(page)])),
        show_progress="hidden",
        show_progress_on=NOWHERE,
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


def first_values(page: Page) -> list[object]:
    """Return the values of the controls with which the page opens."""
    return [part.value for part in inputs(page)]


def fill_in(page: Page) -> bool:
    """Put the recorded results for the packaged weights on the page, so that they come with its first paint.

    Returns:
        Whether there are any.
    """
    values = first_values(page)
    asked = request_from(page, values)
    _, compare, evaluate = asked.tasks
    found = [find_packaged(results, task) for task in (compare, evaluate)]
    try:
        written, measured = (
            decode(task, entry.value, packaged_base(catalog.DEFAULT_MODEL).revision) if entry else None
            for task, entry in zip((compare, evaluate), found, strict=True)
        )
    except (PruningError, ValueError, TypeError, KeyError):
        return False
    if not (isinstance(written, Texts) and isinstance(measured, Evaluation)):
        return False
    pane, prompt = page.results, asked.prompt
    made = min(entry.made for entry in found if entry is not None)
    pane.texts.value = texts.side_by_side(
        prompt.text, written.before, written.after, chat=prompt.chat is None
    )
    pane.measures.value = measures(measured.report, asked.recipe, _fill_in_abilities(page, asked.recipe))
    pane.genres.value = genres(measured.report, asked.recipe)
    pane.heading.value = heading(asked.recipe, settings_from(page, values), made)
    pane.live.visible = True
    return True


def _fill_in_abilities(page: Page, recipe: Recipe) -> AnswersKept | None:
    """Put what the pruned model can still do on the page, if that was recorded; return the answers it keeps."""
    task = AbilitiesTask(recipe)
    entry = find_packaged(results, task)
    try:
        found = decode(task, entry.value, None) if entry else None
    except (ValueError, TypeError, KeyError):
        return None
    if entry is None or not isinstance(found, Abilities):
        return None
    page.results.abilities.panel.value = abilities_panel(found, recipe, entry.made)
    return found.answers.kept if found.answers else None


def _without_results(page: Page) -> dict[Part, object]:
    pane = page.results
    return {
        pane.texts: texts.texts_placeholder(),
        pane.measures: "",
        pane.genres: "",
        pane.heading: "",
        pane.live: gr.Button(visible=False),
        **pane.abilities.clear(),
    }
