"""The results of a cut: the picture of the model, both texts, and the measures."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import gradio as gr

from page.html import heading, outputs, render, results
from page.sections import abilities
from page.sections.events import JobPanel, Part
from pruning import Recipe, Report
from pruning.evaluation.answers import AnswersKept


@dataclass(frozen=True)
class ResultsPane:
    """The components of the results.

    Attributes:
        job: The status line and the buttons of the job that prunes.
        heading: What was removed, when that was recorded, and whether the settings are others now.
        live: The button that computes a recorded result again.
        picture: The parameters of the model by component, before and after.
        texts: The continuations of the prompt by both models.
        measures: The table of sizes, quality and speed.
        genres: Quality by kind of text.
        abilities: What the pruned model can still do.
        recipe: The recipe that the results are of; None before the first.
        report: What was measured of it; None before that is complete.
    """

    job: JobPanel
    heading: gr.HTML
    live: gr.Button
    picture: gr.HTML
    texts: gr.HTML
    measures: gr.HTML
    genres: gr.HTML
    abilities: abilities.AbilitiesPanel
    recipe: gr.State
    report: gr.State

    @property
    def outputs(self) -> list[Part]:
        """Everything that a job which prunes changes."""
        return [
            *self.job.outputs,
            self.heading,
            self.live,
            self.picture,
            self.texts,
            self.measures,
            self.genres,
            *self.abilities.outputs,
            self.recipe,
            self.report,
        ]

    def show_heading(
        self, recipe: Recipe, settings: Sequence[object], recorded: date | None
    ) -> dict[Part, object]:
        """Return what stands above results: what they are of, and when they were recorded if they were."""
        return {
            self.heading: heading.heading(recipe, settings, recorded),
            self.live: gr.Button(visible=recorded is not None),
        }

    def show_report(
        self, report: Report, recipe: Recipe, kept: AnswersKept | None = None
    ) -> dict[Part, object]:
        """Return what a report shows, as far as it is filled; with how many answers are kept, if that is known."""
        return {
            self.measures: results.measures(report, recipe, kept),
            self.genres: results.genres(report, recipe),
        }


def build_job() -> JobPanel:
    """Lay out the buttons and the status line, in the left column."""
    # The column reserves the space until the browser has loaded the buttons.
    with gr.Column(elem_id="press", min_width=0):
        start = gr.Button("Prune", variant="primary", elem_id="prune")
        stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop")
    status = gr.HTML(render.status(), elem_id="status", min_height=44)
    return JobPanel(status, start, stop, stopped="Stopped. What was not measured stays blank.", restarts=True)


def build(job: JobPanel, picture: gr.HTML) -> ResultsPane:
    """Lay out the texts and the measures."""
    with gr.Row(elem_id="results-head"):
        head = gr.HTML(elem_id="result-heading", min_height=40)
        live = gr.Button("Run it live", visible=False, size="sm", scale=0, elem_id="run-live")
    return ResultsPane(
        job=job,
        heading=head,
        live=live,
        picture=picture,
        texts=gr.HTML(outputs.texts_placeholder(), elem_id="texts", min_height=180),
        measures=gr.HTML(elem_id="measures", min_height=150),
        genres=gr.HTML(elem_id="genres", min_height=190),
        abilities=abilities.build(),
        recipe=gr.State(None),
        report=gr.State(None),
    )
