"""Prune, write, measure: what happens between the button and the results, shown bit by bit."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import gradio as gr
import spaces

from page.html import model_map, outputs, render, results
from page.sections.controls import Column
from page.sections.form import recipe_from, whole
from page.server import links
from page.server.queue import Job
from page.server.session import jobs, session_of, started, told, visitor_of, workbench
from page.workers.workbench import Visitor
from pruning import Recipe, Sampling
from pruning.architectures.shape import Shape
from pruning.errors import Cancelled
from pruning.progress import Progress
from pruning.text.generation import encode_prompt, stream_pair


@dataclass(frozen=True)
class Desk:
    """Where the results stand. `made`: the recipe that they are of; `take`: opened once there is one."""

    prune: gr.Button
    stop: gr.Button
    status: gr.HTML
    picture: gr.HTML
    texts: gr.HTML
    measures: gr.HTML
    genres: gr.HTML
    made: gr.State
    recipe_code: gr.Code
    python_code: gr.Code
    link: gr.Textbox
    afterwards: tuple[gr.Column, ...]
    stale: tuple[gr.HTML, ...]

    @property
    def shown(self) -> list:
        return [
            self.prune,
            self.stop,
            self.status,
            self.picture,
            self.texts,
            self.measures,
            self.genres,
            self.made,
            self.recipe_code,
            self.python_code,
            self.link,
            *self.afterwards,
            *self.stale,
        ]


def wire(column: Column, desk: Desk) -> None:
    """Connect Prune and Stop."""

    def prune(request: gr.Request, token: gr.OAuthToken | None, *values) -> Iterator[dict]:
        *choices, prompt, length, temperature = values

        def recipe() -> tuple[Recipe, Sampling]:
            chosen = recipe_from(*choices)
            return chosen, Sampling(whole(length, "length"), float(temperature), chosen.seed)

        yield from carried_out(desk, recipe, prompt, request, token)

    gr.on(
        [desk.prune.click, column.prompt.submit],
        prune,
        [*column.chosen, column.prompt, column.length, column.temperature],
        desk.shown,
        show_progress="minimal",
        show_progress_on=[desk.status],
        concurrency_limit=None,
        api_visibility="private",
    )
    desk.stop.click(stop, None, None, queue=False, show_progress="hidden", api_visibility="private")


def carried_out(desk: Desk, choose, prompt: str, request, token) -> Iterator[dict]:
    """Carry a recipe out: prune, write with both models, measure.

    `choose()` gives the recipe and how to sample, and may raise what a visitor is then told.
    """
    name, job = started(request)
    visitor = visitor_of(request, token)
    yield {desk.prune: gr.Button(visible=False), desk.stop: gr.Button(visible=True)}
    try:
        recipe, sampling = choose()
        for event in job.watch(lambda tell: workbench.pruned(recipe, visitor, tell)):
            if isinstance(event, Progress):
                yield {desk.status: render.status(event.text, event.done, event.total, "busy")}
        (pruned,) = event
        base = workbench.base(recipe.base, visitor, recipe.revision)
        encode_prompt(pruned.tokenizer, prompt)
        yield {
            desk.picture: model_map.draw_model(
                Shape.of(base.model.config), pruned.shape, model_map.weights_origin(base.source)
            ),
            desk.measures: results.measures(pruned.report, recipe),
            desk.genres: results.genres(pruned.report, recipe),
            desk.status: render.status("Writing", kind="busy"),
            desk.texts: outputs.text_pair(prompt, "", "", writing=True),
            desk.made: recipe,
            desk.recipe_code: pruned.recipe.to_yaml(),
            desk.python_code: pruned.recipe.to_python(),
            desk.link: links.link(pruned.recipe, request),
            **{column: gr.Column(visible=True) for column in desk.afterwards},
            **dict.fromkeys(desk.stale, ""),
        }
        before = after = ""
        for event in job.watch(lambda tell: _write(recipe, visitor, prompt, sampling, job, tell)):
            if len(event) == 2:
                before, after = event
                yield {desk.texts: outputs.text_pair(prompt, before, after, writing=True)}
        yield {desk.texts: outputs.text_pair(prompt, before, after)}
        job.give_way()  # Measuring takes longest; others read their texts first.
        for event in job.watch(lambda tell: _measure(recipe, visitor, tell)):
            if isinstance(event, Progress):
                yield {desk.status: render.status(event.text, event.done, event.total, "busy")}
            elif not isinstance(event, tuple):
                yield {
                    desk.measures: results.measures(event.report, recipe),
                    desk.genres: results.genres(event.report, recipe),
                }
        yield {desk.status: render.status("Done.", kind="done")}
    except Cancelled as stopped:
        yield {desk.status: render.status(str(stopped), kind="stopped")}
    except Exception as error:
        yield {desk.status: render.status(told(error), kind="failed")}
    finally:
        jobs.finish(name, job)
    yield {desk.prune: gr.Button(visible=True), desk.stop: gr.Button(visible=False)}


@spaces.GPU(duration=60)
def written(recipe: Recipe, visitor: Visitor, prompt: str, sampling: Sampling, job: Job):
    """Both texts, as they grow."""
    pruned = workbench.pruned(recipe, visitor)
    base = workbench.base(recipe.base, visitor, recipe.revision)
    yield from stream_pair(base, pruned, prompt, sampling, stopped=lambda: job.stopped)


def _write(recipe: Recipe, visitor: Visitor, prompt: str, sampling: Sampling, job: Job, tell) -> None:
    with closing(written(recipe, visitor, prompt, sampling, job)) as texts:
        for pair in texts:
            tell(pair)


def _measure(recipe: Recipe, visitor: Visitor, tell) -> None:
    # Closed here, in the thread that took the workbench's lock, also when the job is stopped.
    with closing(workbench.measuring(recipe, visitor, tell)) as steps:
        for pruned in steps:
            tell(pruned)


def stop(request: gr.Request) -> None:
    """End the visitor's job; it says so itself, so that nothing it still had to say comes after."""
    jobs.stop(session_of(request))
