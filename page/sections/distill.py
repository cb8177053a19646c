"""Distill: training that recovers quality, with a live curve, samples, and a stop that keeps the best."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import gradio as gr

from page.html import render
from page.html.outputs import sample as draw_sample
from page.html.plot import Axis, Series, plot
from page.sections.events import JobPanel, Part, Updates, on_event, on_start
from page.sections.prune import PruneRequest, outputs, prune_and_show, sampling_from
from page.sections.section import Page
from page.server.form import prompt_from, with_text
from page.server.jobs import run_job
from page.server.session import (
    DISTILLATION_OVERHEAD,
    ON_SPACE,
    job_name,
    jobs,
    visitor_of,
)
from page.workers.messages import Done, Partial, Prompt, PrunedSummary, TrainingUpdate
from page.workers.tasks import DistillTask, Task
from pruning import Distillation, Recipe, Sampling
from pruning.distillation.progress import TrainingProgress
from pruning.distillation.result import DistillationNote
from pruning.errors import RecipeError

MAX_MINUTES = 5 if ON_SPACE else 60
KIND = "distill"
TIME = Axis("Seconds of training", format=lambda value: f"{value:,.0f}")
QUALITY = Axis("Perplexity on held-out text (lower is better)", log=True)


@dataclass(frozen=True)
class DistillSection:
    """The components of the section."""

    column: gr.Column
    minutes: gr.Slider
    start: gr.Button
    stop: gr.Button
    status: gr.HTML
    curve: gr.HTML
    sample: gr.HTML

    @property
    def result_outputs(self) -> Sequence[Part]:
        """The column, which is shown with the first results."""
        return [self.column]

    def show_result(self, _pruned: PrunedSummary, _request: gr.Request) -> Updates:
        """Show the section."""
        return {self.column: gr.Column(visible=True)}

    def wire(self, page: Page) -> None:
        """Connect Distill and its Stop. Afterwards the results are those of the distilled model."""

        def distill(
            request: gr.Request,
            token: gr.OAuthToken | None,
            recipe: Recipe | None,
            minutes: object,
            custom_text: object,
            prompt: str,
            mode: str,
            length: object,
            temperature: object,
            seed: object,
        ) -> Iterator[Updates]:
            settings: list[tuple[Prompt, Sampling]] = []
            distilled: list[Recipe] = []
            points: list[tuple[float, float]] = []

            def tasks() -> list[Task]:
                step = Distillation(minutes=_check_minutes(minutes))
                if recipe is None:
                    raise RecipeError("There is nothing to distill yet: press Prune first.")
                settings.append((prompt_from(prompt, mode), sampling_from(length, temperature, seed)))
                return [DistillTask(with_text(recipe, custom_text), step, *settings[0])]

            def show(event: Partial | Done) -> Updates:
                match event:
                    case Partial(TrainingUpdate(progress, sample)):
                        return self._show_progress(points, progress, settings[0][0], sample)
                    case Done(PrunedSummary() as pruned):
                        distilled.append(pruned.recipe)
                        return self._show_note(pruned)
                return {}

            events = run_job(
                tasks,
                visitor_of(request, token),
                job_name(request, KIND),
                seconds=60 * MAX_MINUTES + DISTILLATION_OVERHEAD,
            )
            yield from JobPanel(self.status, self.start, self.stop).follow(events, show)
            if distilled:
                results = PruneRequest(distilled[0], *settings[0])
                yield from prune_and_show(page, lambda: results, request, token)

        def stop(request: gr.Request) -> None:
            jobs.request_finish(job_name(request, KIND))

        controls = page.controls
        on_start(
            [self.start.click],
            distill,
            [
                page.results.recipe,
                self.minutes,
                controls.calibration.custom_text,
                *controls.sampling_inputs,
                controls.sampling.seed,
            ],
            [self.start, self.stop, self.status, self.curve, self.sample, *outputs(page)],
        )
        on_event([self.stop.click], stop)

    def _show_progress(
        self,
        points: list[tuple[float, float]],
        progress: TrainingProgress,
        prompt: Prompt,
        sample: str | None,
    ) -> Updates:
        updates: dict[Part, object] = {self.status: render.training_status(progress)}
        if progress.evaluated:
            points.append((progress.seconds, progress.perplexity))
            updates[self.curve] = gr.HTML(draw_curve(points, progress), visible=True)
            updates[self.sample] = draw_sample(prompt.text, sample or "", chat=prompt.chat is not False)
        return updates

    def _show_note(self, pruned: PrunedSummary) -> Updates:
        (note,) = pruned.report.notes[-1]
        assert isinstance(note, DistillationNote)
        return {self.status: render.distillation_result(note)}


def build() -> DistillSection:
    """Lay the section out."""
    with gr.Column(visible=False, elem_id="distill") as column:
        gr.HTML(
            "<h2>Distill</h2><p class='note'>Recovers quality: trains the pruned model to predict what the "
            "original predicts. It takes minutes and can be stopped at any time; the best so far is kept.</p>"
        )
        with gr.Row():
            minutes = gr.Slider(
                1,
                MAX_MINUTES,
                value=2,
                step=1,
                label="Training time, minutes",
                elem_id="minutes",
                min_width=240,
            )
            start = gr.Button("Distill", elem_id="distill-start", min_width=120)
            stop = gr.Button("Stop and keep the best", visible=False, variant="stop", elem_id="distill-stop")
        status = gr.HTML(elem_id="distill-status", min_height=44)
        curve = gr.HTML(visible=False, min_height=370, elem_id="distill-curve")
        sample = gr.HTML(elem_id="distill-text")
    return DistillSection(column, minutes, start, stop, status, curve, sample)


def _check_minutes(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_MINUTES:
        raise RecipeError(f"The training time is {str(value)[:40]!r}. Choose 1 to {MAX_MINUTES} minutes.")
    return float(value)


def draw_curve(points: Sequence[tuple[float, float]], progress: TrainingProgress) -> str:
    """Draw the curve between the two levels that it runs between, over all of the time that was asked for.

    Args:
        points: Seconds and perplexity of each evaluation so far.
        progress: The state of the training.
    """
    end = max(points[-1][0], progress.seconds + min(progress.seconds_left, 60 * MAX_MINUTES), 1.0)
    levels = {"original": progress.perplexity_teacher, "before distillation": progress.perplexity_before}
    before, original = (
        Series(name, [(0.0, levels[name]), (end, levels[name])], line=True)
        for name in ("before distillation", "original")
    )
    marks = [] if len(points) < 2 else points
    series = [Series("distilled", marks, line=True), original, before, Series("now", points[-1:], large=True)]
    return plot(series, TIME, QUALITY, "Perplexity during the distillation")
