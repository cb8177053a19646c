"""Teach it again: distillation with a live curve, the text as it comes back, a stop that keeps the best."""

from collections.abc import Iterator
from dataclasses import replace

import gradio as gr
import pandas as pd

from page.html import outputs, render
from page.sections.controls import Column
from page.sections.prune import Desk, carried_out
from page.server.session import (
    ON_SPACE,
    TEACHING_SPARE,
    jobs,
    session_of,
    started,
    teachers,
    told,
    visitor_of,
    workbench,
)
from pruning import Distillation, Sampling
from pruning.distillation.progress import TrainingProgress
from pruning.errors import Cancelled, RecipeError
from pruning.progress import Progress
from pruning.text.generation import generate

LONGEST = 5 if ON_SPACE else 60
AXES = ["Seconds", "Perplexity on held-out text", "Model"]


def build(column: Column, made: gr.State) -> tuple[gr.Column, dict]:
    """Lay the section out. `made`: the recipe of the results shown."""
    with gr.Column(visible=False, elem_id="teach") as section:
        gr.HTML(
            "<h2>Teach it again</h2><p class='note'>The dense model teaches the smaller one what the cut "
            "took away: distillation. It takes minutes, and can be stopped at any moment; the best so far is "
            "kept.</p>"
        )
        with gr.Row():
            minutes = gr.Slider(1, LONGEST, value=2, step=1, label="Minutes", elem_id="minutes")
            start = gr.Button("Teach", elem_id="teach-start", min_width=120)
            stop = gr.Button("Stop and keep the best", visible=False, variant="stop", elem_id="teach-stop")
        status = gr.HTML(elem_id="teach-status", min_height=44)
        curve = gr.LinePlot(
            x=AXES[0],
            y=AXES[1],
            color=AXES[2],
            height=260,
            visible=False,
            tooltip="all",
            elem_id="teach-curve",
        )
        sample = gr.HTML(elem_id="teach-text")
    parts = {
        "minutes": minutes,
        "start": start,
        "stop": stop,
        "status": status,
        "curve": curve,
        "sample": sample,
    }
    return section, parts


def wire(column: Column, desk: Desk, parts: dict) -> None:
    """Connect Teach and its Stop. When the teaching ends, the results are those of the taught model."""
    start, stop, status, curve, sample = (
        parts[name] for name in ("start", "stop", "status", "curve", "sample")
    )

    def teach(request: gr.Request, token: gr.OAuthToken | None, recipe, minutes, prompt) -> Iterator[dict]:
        visitor = visitor_of(request, token)
        yield {start: gr.Button(visible=False), stop: gr.Button(visible=True)}
        rows: list[tuple] = []
        taught = None
        name, job = started(request, "teach", line=teachers, seconds=60 * LONGEST + TEACHING_SPARE)
        try:
            step = Distillation(minutes=_minutes(minutes))
            if recipe is None:
                raise RecipeError("There is nothing to teach yet: press Prune first.")

            def work(tell):
                base, _ = workbench.pair(recipe, visitor, tell)

                def report(progress):
                    if not isinstance(progress, TrainingProgress):
                        return tell(progress)
                    # Stop ends the training politely: the best so far is kept.
                    if job.asked:
                        progress.stop()
                    said = None
                    if progress.evaluated:
                        said = generate(replace(base, model=progress.model), prompt, Sampling(24))
                    return tell((progress, said, None))

                return workbench.teach(recipe, step, visitor, report)

            for event in job.watch(work):
                if isinstance(event, Progress):
                    yield {status: render.status(event.text, event.done, event.total, "busy")}
                elif len(event) == 3:
                    progress, said, _ = event
                    shown = {status: render.training_status(progress)}
                    if progress.evaluated:
                        rows.append((progress.seconds, progress.perplexity, "taught"))
                        shown[curve] = gr.LinePlot(_frame(rows, progress), visible=True)
                        shown[sample] = outputs.sample(prompt, said or "")
                    yield shown
                else:
                    (taught,) = event
            (note,) = taught.report.notes[-1]
            yield {status: render.distillation_result(note)}
        except Cancelled as stopped:
            yield {status: render.status(str(stopped), kind="stopped")}
        except Exception as error:
            yield {status: render.status(told(error), kind="failed")}
        finally:
            jobs.finish(name, job)
        yield {start: gr.Button(visible=True), stop: gr.Button(visible=False)}
        if taught is not None:
            recipe = taught.recipe
            yield from carried_out(desk, lambda: (recipe, Sampling(40)), prompt, request, token)

    def end(request: gr.Request) -> None:
        jobs.ask(f"{session_of(request)} teach")

    start.click(
        teach,
        [desk.made, parts["minutes"], column.prompt],
        [start, stop, status, curve, sample, *desk.shown],
        show_progress="minimal",
        show_progress_on=[status],
        concurrency_limit=None,
        api_visibility="private",
    )
    stop.click(end, None, None, queue=False, show_progress="hidden", api_visibility="private")


def _minutes(value) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LONGEST:
        raise RecipeError(
            f"The teaching takes {str(value)[:40]!r} minutes; from 1 to {LONGEST} are possible here."
        )
    return float(value)


def _frame(rows: list[tuple], progress: TrainingProgress) -> pd.DataFrame:
    """The curve, and the two models that it runs between as level lines."""
    last = rows[-1][0]
    level = [
        (seconds, value, name)
        for name, value in (
            ("dense", progress.perplexity_teacher),
            ("before teaching", progress.perplexity_before),
        )
        for seconds in (0.0, max(last, 1.0))
    ]
    return pd.DataFrame([*rows, *level], columns=AXES)
