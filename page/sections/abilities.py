"""What the pruned model can still do: recorded results at once, others when a visitor asks for them."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import date

import gradio as gr

from page.html import abilities as html
from page.html import render
from page.html.results import measures
from page.sections.events import JobPanel, Part, Updates, on_event, on_start
from page.server.form import with_text
from page.server.jobs import watch_job
from page.server.session import job_name, jobs, visitor_of
from page.workers.abilities import AbilitiesTask
from page.workers.messages import Done, Partial
from page.workers.tasks import Task
from pruning import Recipe, Report
from pruning.errors import RecipeError
from pruning.evaluation.abilities import Abilities

KIND = "abilities"
NOTHING_YET = "Prune a model first. Then its skills and answers can be measured here."
NOT_MEASURED = "This was not measured for these settings yet. Other visitors get their texts first meanwhile."
START = "Measure skills and answers (several minutes)"


@dataclass(frozen=True)
class AbilitiesPanel:
    """The components of the panel.

    Attributes:
        panel: The skills and the answers.
        job: The button that measures them, and the status line.
    """

    panel: gr.HTML
    job: JobPanel

    @property
    def outputs(self) -> list[Part]:
        """Everything that a new result changes."""
        return [self.panel, *self.job.outputs]

    def show(self, found: Done | None, recipe: Recipe, request: gr.Request) -> dict[Part, object]:
        """Return what the panel shows of a new result, and stop what is being measured of the one before.

        Args:
            found: What was recorded of it; None if nothing was.
            recipe: Its recipe.
            request: The visitor's request.
        """
        jobs.stop(job_name(request, KIND))
        if found is not None and isinstance(found.value, Abilities):
            return self._filled(found.value, recipe, found.recorded)
        return self._empty(NOT_MEASURED, can_start=True)

    def clear(self) -> dict[Part, object]:
        """Return what the panel shows without a result."""
        return self._empty(NOTHING_YET, can_start=False)

    def wire(self, recipe: gr.State, report: gr.State, custom_text: Part, measured: gr.HTML) -> None:
        """Connect the buttons.

        Args:
            recipe: The recipe of the results.
            report: Their report, once it is complete.
            custom_text: The visitor's own text.
            measured: The table of measures, whose warning knows of the answers.
        """

        async def measure_abilities(
            request: gr.Request,
            token: gr.OAuthToken | None,
            pruned: Recipe | None,
            measures_so_far: Report | None,
            text: object,
        ) -> AsyncIterator[Updates]:
            def plan() -> Sequence[Task]:
                if pruned is None:
                    raise RecipeError(NOTHING_YET)
                return [AbilitiesTask(with_text(pruned, text))]

            def show(event: Partial | Done) -> Updates:
                assert pruned is not None
                assert isinstance(event.value, Abilities)
                recorded = event.recorded if isinstance(event, Done) else None
                updates = self._filled(event.value, pruned, recorded)
                if isinstance(event, Partial):
                    return {self.panel: updates[self.panel]}
                if measures_so_far is not None and event.value.answers is not None:
                    updates[measured] = measures(measures_so_far, pruned, event.value.answers.kept)
                return updates

            events = watch_job(plan, visitor_of(request, token), job_name(request, KIND))
            async for updates in self.job.watch(events, show):
                yield updates

        def stop_measuring(request: gr.Request) -> None:
            jobs.stop(job_name(request, KIND))

        assert self.job.start is not None
        assert self.job.stop is not None
        inputs = [recipe, report, custom_text]
        on_start(
            [self.job.start.click],
            measure_abilities,
            inputs,
            [*self.outputs, measured],
            trigger_mode="multiple",
        )
        on_event([self.job.stop.click], stop_measuring)

    def _filled(self, abilities: Abilities, recipe: Recipe, recorded: date | None) -> dict[Part, object]:
        assert self.job.start is not None
        return {
            self.panel: html.abilities_panel(abilities, recipe, recorded),
            self.job.start: gr.Button(visible=False),
            self.job.status: "",
        }

    def _empty(self, text: str, can_start: bool) -> dict[Part, object]:
        assert self.job.start is not None
        return {
            self.panel: html.placeholder(text),
            self.job.start: gr.Button(visible=can_start),
            self.job.status: "",
        }


def build() -> AbilitiesPanel:
    """Lay out the panel and its buttons."""
    panel = gr.HTML(html.placeholder(NOTHING_YET), elem_id="abilities", min_height=120)
    with gr.Row():
        start = gr.Button(START, visible=False, size="sm", elem_id="measure-abilities")
        stop = gr.Button("Stop", variant="stop", visible=False, size="sm", elem_id="stop-abilities")
    status = gr.HTML(render.status(), elem_id="abilities-status")
    return AbilitiesPanel(panel, JobPanel(status, start, stop, restarts=True))
