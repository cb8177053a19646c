"""Prune, generate, evaluate: what happens between the button and the results, shown as it comes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import gradio as gr

from page.html import model_map, render
from page.html.outputs import text_pair
from page.sections.events import Part, Updates, on_event, on_start
from page.sections.section import Page
from page.server.form import CONTINUE, prompt_from, recipe_from, to_integer, to_number
from page.server.jobs import run_job
from page.server.session import job_name, jobs, visitor_of
from page.workers.messages import Done, Evaluation, Partial, Prompt, PrunedSummary, Texts
from page.workers.tasks import CompareTask, EvaluateTask, PruneTask, Task
from pruning import Recipe, Sampling


@dataclass(frozen=True)
class PruneRequest:
    """A recipe, and the prompt that both models answer or continue."""

    recipe: Recipe
    prompt: Prompt
    sampling: Sampling

    @property
    def tasks(self) -> list[Task]:
        return [
            PruneTask(self.recipe, self.prompt),
            CompareTask(self.recipe, self.prompt, self.sampling),
            EvaluateTask(self.recipe),
        ]


def wire(page: Page) -> None:
    """Connect Prune and Stop."""

    def prune(
        request: gr.Request,
        token: gr.OAuthToken | None,
        prompt: str,
        mode: str,
        length: object,
        temperature: object,
        opened: Recipe | None,
        *values: object,
    ) -> Iterator[Updates]:
        def plan() -> PruneRequest:
            recipe = recipe_from(opened, *values)
            sampling = sampling_from(length, temperature, recipe.seed)
            return PruneRequest(recipe, prompt_from(prompt, mode), sampling)

        yield from prune_and_show(page, plan, request, token)

    def stop(request: gr.Request) -> None:
        # The job itself reports its end, so that nothing it had still to show comes after.
        jobs.stop(job_name(request))

    panel, job = page.controls, page.results.job
    assert job.start is not None
    assert job.stop is not None
    on_start(
        [job.start.click, panel.sampling.prompt.submit],
        prune,
        [*panel.sampling_inputs, *panel.recipe_inputs],
        outputs(page),
        job.status,
    )
    on_event([job.stop.click], stop)


def outputs(page: Page) -> list[Part]:
    """Return what `prune_and_show` changes."""
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


def prune_and_show(
    page: Page, plan: Callable[[], PruneRequest], request: gr.Request, token: gr.OAuthToken | None
) -> Iterator[Updates]:
    """Prune, give both models the prompt, and evaluate them.

    Args:
        page: Where the results are shown.
        plan: Returns what to do; it may raise what the visitor is then told.
        request: The visitor's request.
        token: The visitor's token, if they are signed in.
    """
    pane = page.results
    planned: list[PruneRequest] = []
    summaries: list[PrunedSummary] = []

    def tasks() -> list[Task]:
        planned.append(plan())
        return planned[0].tasks

    def show(event: Partial | Done) -> Updates:
        recipe, prompt = planned[0].recipe, planned[0].prompt.text
        match event:
            case Done(PrunedSummary() as pruned):
                summaries.append(pruned)
                return _show_pruned(page, pruned, planned[0], request)
            case Partial(Texts(before, after)):
                chat = summaries[0].is_chat
                return {pane.texts: text_pair(prompt, before, after, writing=True, chat=chat)}
            case Done(Texts(before, after)):
                return {pane.texts: text_pair(prompt, before, after, chat=summaries[0].is_chat)}
            case Partial(Evaluation(report=report)):
                return pane.show_report(report, recipe)
            case Done(Evaluation(report=report)):
                return pane.show_report(report, recipe) | {
                    pane.job.status: render.status("Done.", kind="done")
                }
        return {}

    events = run_job(tasks, visitor_of(request, token), job_name(request))
    yield from pane.job.follow(events, show)


def _show_pruned(
    page: Page, pruned: PrunedSummary, planned: PruneRequest, request: gr.Request
) -> dict[Part, object]:
    pane = page.results
    updates: dict[Part, object] = {
        pane.picture: model_map.draw_model(
            pruned.before, pruned.after, model_map.weights_origin(pruned.source)
        ),
        pane.job.status: render.status("Writing", kind="busy"),
        pane.texts: text_pair(planned.prompt.text, "", "", writing=True, chat=pruned.is_chat),
        pane.recipe: planned.recipe.without_custom_text(),
    }
    updates |= pane.show_report(pruned.report, planned.recipe)
    if pruned.plain_reason:
        note = f"This model cannot chat, so it continues a text. {pruned.plain_reason}"
        updates |= page.controls.sampling.show_mode(CONTINUE, note)
    for section in page.sections:
        updates |= section.show_result(pruned, request)
    return updates
