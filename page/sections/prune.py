"""Prune, generate, evaluate: what happens between the button and the results, shown as it comes."""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date

import gradio as gr
from gradio.components import Component

from page.html import render
from page.html.outputs import side_by_side
from page.sections.events import Part, Updates, on_event, on_start
from page.sections.picture import draw_pruned
from page.sections.section import Page
from page.server.form import CONTINUE, PressedLayers, prompt_from, recipe_from, to_integer, to_number
from page.server.jobs import recall_from, run_job, watch_job
from page.server.session import job_name, jobs, visitor_of
from page.store.keys import Base
from page.workers.abilities import AbilitiesTask
from page.workers.messages import Done, Evaluation, Partial, Prompt, PrunedSummary, Texts
from page.workers.tasks import CompareTask, EvaluateTask, PruneTask, Task
from pruning import Recipe, Sampling
from pruning.evaluation.abilities import Abilities
from pruning.evaluation.answers import AnswersKept


@dataclass(frozen=True)
class PruneRequest:
    """A recipe, and the prompt that both models answer or continue.

    Attributes:
        recipe: The recipe.
        prompt: The prompt.
        sampling: How they answer it.
        settings: The values of the controls that asked for it, as `settings_from` returns them.
    """

    recipe: Recipe
    prompt: Prompt
    sampling: Sampling
    settings: Sequence[object] = ()

    @property
    def tasks(self) -> list[Task]:
        return [
            PruneTask(self.recipe, self.prompt),
            CompareTask(self.recipe, self.prompt, self.sampling),
            EvaluateTask(self.recipe),
        ]


def wire(page: Page) -> None:
    """Connect Prune, Run it live, and Stop."""

    async def prune(
        request: gr.Request, token: gr.OAuthToken | None, *values: object
    ) -> AsyncIterator[Updates]:
        async for updates in prune_and_watch(page, values, request, token):
            yield updates

    async def run_live(
        request: gr.Request, token: gr.OAuthToken | None, *values: object
    ) -> AsyncIterator[Updates]:
        async for updates in prune_and_watch(page, values, request, token, live=True):
            yield updates

    def stop(request: gr.Request) -> None:
        # The job itself reports its end, so that nothing it had still to show comes after.
        jobs.stop(job_name(request))

    panel, pane = page.controls, page.results
    job = pane.job
    assert job.start is not None
    assert job.stop is not None
    given, changed = inputs(page), outputs(page)
    # Pressed again, it replaces the run under way.
    on_start([job.start.click, panel.sampling.prompt.submit], prune, given, changed, "multiple")
    on_start([pane.live.click], run_live, given, changed, "multiple")
    on_event([job.stop.click], stop)


def inputs(page: Page) -> list[Component]:
    """Return the arguments of `request_from`."""
    return [*page.controls.sampling_inputs, *page.controls.recipe_inputs]


def compared_parts(page: Page) -> list[Component]:
    """Return what a browser compares with the settings of the results: see `settings_from`."""
    return [page.controls.recipe_note, *(part for part in inputs(page) if _is_compared(page, part))]


def settings_from(page: Page, values: Sequence[object]) -> list[object]:
    """Return the values of the controls that a browser compares with its own later, to tell whether they changed.

    A recipe that was opened and layers that were pressed are told by the note on them. The visitor's own text does
    not come back to the page.
    """
    parts, note = inputs(page), ""
    match values[parts.index(page.controls.recipe)]:
        case Recipe(steps=steps):
            note = render.recipe_note([step.describe() for step in steps])
        case PressedLayers(layers=layers):
            note = render.pressed_layers_note(layers)
    return [note, *(value for part, value in zip(parts, values, strict=True) if _is_compared(page, part))]


def _is_compared(page: Page, part: Component) -> bool:
    return part not in (page.controls.recipe, page.controls.calibration.custom_text)


def request_from(page: Page, values: Sequence[object]) -> PruneRequest:
    """Return what the values of `inputs` ask for.

    Raises:
        RecipeError: A value is out of range, or nothing is to be cut.
    """
    prompt, mode, length, temperature, opened, *others = values
    recipe = recipe_from(opened if isinstance(opened, Recipe | PressedLayers) else None, *others)
    sampling = sampling_from(length, temperature, recipe.seed)
    return PruneRequest(recipe, prompt_from(prompt, mode), sampling, settings_from(page, values))


def outputs(page: Page) -> list[Part]:
    """Return what `prune_and_show` and `prune_and_watch` change."""
    sections = (part for section in page.sections for part in section.result_outputs)
    return [*page.results.outputs, *page.controls.sampling.mode_outputs, *sections]


def sampling_from(length: object, temperature: object, seed: object) -> Sampling:
    """Return how to answer or continue the prompt.

    Raises:
        RecipeError: A value is out of range.
    """
    return Sampling(
        to_integer(length, "number of new tokens"),
        to_number(temperature, "temperature"),
        to_integer(seed, "seed"),
    )


async def prune_and_watch(
    page: Page,
    values: Sequence[object],
    request: gr.Request,
    token: gr.OAuthToken | None,
    *,
    live: bool = False,
    waits: bool = True,
) -> AsyncIterator[Updates]:
    """Prune, give both models the prompt, and evaluate them; or show what was recorded of that.

    Args:
        page: Where the results are shown.
        values: The values of `inputs`.
        request: The visitor's request.
        token: The visitor's token, if they are signed in.
        live: Whether everything is made now, even if it was recorded.
        waits: Whether work is begun although others wait for theirs.
    """
    run = Shown(page, lambda: request_from(page, values), request)
    events = watch_job(run.tasks, visitor_of(request, token), job_name(request), live=live, waits=waits)
    async for updates in page.results.job.watch(events, run.show):
        yield updates


def prune_and_show(
    page: Page, plan: Callable[[], PruneRequest], request: gr.Request, token: gr.OAuthToken | None
) -> Iterator[Updates]:
    """Prune, give both models the prompt, and evaluate them, for this visitor alone.

    Args:
        page: Where the results are shown.
        plan: Returns what to do; it may raise what the visitor is then told.
        request: The visitor's request.
        token: The visitor's token, if they are signed in.
    """
    run = Shown(page, plan, request)
    yield from page.results.job.follow(
        run_job(run.tasks, visitor_of(request, token), job_name(request)), run.show
    )
    if run.is_complete:
        yield {page.results.job.status: render.status("Done.", kind="done")}


@dataclass
class Shown:
    """What one run shows on the page.

    Attributes:
        page: The page.
        plan: Returns what to do; it may raise what the visitor is then told.
        request: The visitor's request.
        planned: What is done, as soon as that is known.
        pruned: The pruned model, as soon as there is one.
        recorded: The day on which the results were made, if they were made before.
        is_complete: Whether all is measured.
    """

    page: Page
    plan: Callable[[], PruneRequest]
    request: gr.Request
    planned: PruneRequest | None = field(default=None, init=False)
    pruned: PrunedSummary | None = field(default=None, init=False)
    recorded: date | None = field(default=None, init=False)
    is_complete: bool = field(default=False, init=False)

    def tasks(self) -> list[Task]:
        """Return the tasks."""
        self.planned = self.plan()
        return self.planned.tasks

    def show(self, event: Partial | Done) -> Updates:
        """Return what the page shows of a result or a part of it."""
        assert self.planned is not None
        pane, recipe, prompt = self.page.results, self.planned.recipe, self.planned.prompt.text
        chat = self.pruned is not None and self.pruned.is_chat
        updates: dict[Part, object] = {}
        if isinstance(event, Done) and event.recorded is not None:
            self.recorded = min(self.recorded or event.recorded, event.recorded)
        match event:
            case Done(PrunedSummary() as pruned):
                self.pruned = pruned
                updates |= self._show_pruned(pruned)
            case Partial(Texts() as texts):
                updates[pane.job.status] = render.status("Writing", kind="busy")
                updates[pane.texts] = side_by_side(prompt, **vars(texts), writing=True, chat=chat)
            case Done(Texts() as texts):
                updates[pane.texts] = side_by_side(prompt, **vars(texts), chat=chat)
            case Partial(Evaluation(report=report)):
                updates |= pane.show_report(report, recipe, self._kept())
            case Done(Evaluation(report=report)):
                self.is_complete = True
                updates |= pane.show_report(report, recipe, self._kept())
                updates[pane.report] = report
        if isinstance(event, Done):
            # The mode may have been set meanwhile.
            updates |= pane.show_heading(recipe, self.planned.settings, self.recorded)
        return updates

    def _recall_abilities(self) -> Done | None:
        """Return what the pruned model can still do, if that was recorded."""
        if self.planned is None or self.pruned is None:
            return None
        return recall_from(AbilitiesTask(self.planned.recipe), Base.of(self.pruned.source))

    def _kept(self) -> AnswersKept | None:
        """Return how many good answers it keeps, if that was recorded."""
        match self._recall_abilities():
            case Done(Abilities(answers=answers)) if answers is not None:
                return answers.kept
        return None

    def _show_pruned(self, pruned: PrunedSummary) -> dict[Part, object]:
        assert self.planned is not None
        page, planned = self.page, self.planned
        pane = page.results
        updates: dict[Part, object] = {
            pane.picture: draw_pruned(pruned),
            pane.job.status: render.status("Writing", kind="busy"),
            pane.texts: side_by_side(planned.prompt.text, "", "", writing=True, chat=pruned.is_chat),
            pane.recipe: planned.recipe.without_custom_text(),
            pane.report: None,
            **pane.abilities.show(self._recall_abilities(), planned.recipe, self.request),
        }
        if not self.is_complete:
            updates |= pane.show_report(pruned.report, planned.recipe)
        if pruned.plain_reason:
            note = f"This model cannot chat, so it continues a text. {pruned.plain_reason}"
            updates |= page.controls.sampling.show_mode(CONTINUE, note)
            if planned.settings:
                text, prompt, _, *others = planned.settings
                self.planned = replace(planned, settings=[text, prompt, CONTINUE, *others])
        for section in page.sections:
            updates |= section.show_result(pruned, self.request)
        return updates
