"""What the sections of the page share, and what each of them that stands below the results offers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import gradio as gr

from page.sections.controls import ControlPanel
from page.sections.events import Part, Updates
from page.sections.results import ResultsPane
from page.workers.messages import PrunedSummary


class Section(Protocol):
    """A section below the results.

    It stands in a file of its own with a function `build()`, which lays it out and returns it, and a row in
    `page/layout.py`.
    """

    @property
    def result_outputs(self) -> Sequence[Part]:
        """What `show_result` changes."""

    def show_result(self, pruned: PrunedSummary, request: gr.Request) -> Updates:
        """Return what the section shows as soon as a model has been pruned; it is hidden before."""

    def wire(self, page: "Page") -> None:
        """Connect its components."""


@dataclass(frozen=True)
class Page:
    """The parts of the page that sections use and change."""

    controls: ControlPanel
    results: ResultsPane
    sections: tuple[Section, ...]
