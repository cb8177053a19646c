"""Prune or quantize: both models with their weights rounded to fewer bits, and what each takes and loses."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import gradio as gr

from page.html.rounding import draw_rounded
from page.sections.events import Updates, on_start
from page.sections.section import Page
from page.server.form import recipe_to_inspect
from page.workers.messages import RoundedModels
from page.workers.rounding import RoundingTask
from page.workers.tasks import Task
from pruning import Recipe

Follow = Callable[
    [gr.Request, gr.OAuthToken | None, Callable[[], Task], Callable[[object], Updates]], Iterator[Updates]
]
"""Runs the task that the first function returns, and shows its results as the second does."""


@dataclass(frozen=True)
class RoundingPart:
    """What both models take and lose in several types of a file."""

    start: gr.Button
    chart: gr.HTML

    def wire(self, page: Page, status: gr.HTML, follow: Follow) -> None:
        """Connect the button.

        Args:
            page: The page.
            status: Where the job stands.
            follow: Runs a task and shows its results.
        """

        def show_rounded(
            request: gr.Request, token: gr.OAuthToken | None, recipe: Recipe | None, custom_text: object
        ) -> Iterator[Updates]:
            def show(value: object) -> Updates:
                assert isinstance(value, RoundedModels)
                return {self.chart: draw_rounded(value)}

            def plan() -> Task:
                return RoundingTask(recipe_to_inspect(recipe, custom_text))

            yield from follow(request, token, plan, show)

        inputs = [page.results.recipe, page.controls.calibration.custom_text]
        on_start([self.start.click], show_rounded, inputs, [status, self.chart])


def build_rounding() -> RoundingPart:
    """Lay the part out."""
    gr.HTML(
        '<p class="note">Quantizing keeps every weight and stores it in fewer bits; pruning removes weights. This '
        "rounds the weights of both models as a GGUF file holds them, and measures each on short held-out texts, so "
        "the ratios may differ from that of the results above.</p>"
    )
    start = gr.Button("Compare pruning with fewer bits", elem_id="rounding")
    return RoundingPart(start, gr.HTML(elem_id="rounding-chart"))
