"""A lesson: its text, the models it makes, and what it claims about them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from string import Template
from typing import Literal

from pruning import catalog
from pruning.lessons.metrics import Metrics
from pruning.lessons.outcome import Outcome
from pruning.recipe import Recipe
from pruning.steps import AnyStep
from pruning.text.choice import Calibration

SECTIONS = ("Predict", "Notice", "Question", "Answer", "Sources", "Next")
"""The sections of a lesson's text, in order. The title and the introduction come before them."""


@dataclass(frozen=True)
class LessonRun:
    """One model that a lesson makes and evaluates.

    Attributes:
        name: Prefix of the names of its metrics: the run `l1` has the metric `l1_ratio`.
        title: Its name in the table of results.
        steps: What is done to the base model.
        text: Name of the calibration text.
        tokens: Number of calibration tokens.
        base: The model to prune if it can be reached; otherwise, and if None, the default model.
    """

    name: str
    title: str
    steps: tuple[AnyStep, ...]
    text: str = "general"
    tokens: int = 8192
    base: str | None = None

    def recipe(self, base: str = catalog.DEFAULT_MODEL) -> Recipe:
        """Return the recipe of this run for a base model."""
        calibration = Calibration(text=self.text, tokens=self.tokens)
        return Recipe(base=base, calibration=calibration, steps=self.steps)


@dataclass(frozen=True)
class Claim:
    """The range in which a metric is expected on the default model.

    Attributes:
        metric: Name of the metric.
        least: Lower end of the range, included.
        most: Upper end of the range, included.
    """

    metric: str
    least: float = 0.0
    most: float = float("inf")

    def holds(self, metrics: Metrics) -> bool:
        """Return whether the metric was measured within the range."""
        value = metrics[self.metric]
        if isinstance(value, str):
            raise TypeError(f"The metric {self.metric} is a text, so no range can hold for it.")
        return self.least <= value <= self.most


@dataclass(frozen=True)
class Lesson:
    """One lesson of the course.

    Attributes:
        key: Name of the Markdown file with its text, without the extension. Begins with its number.
        runs: The models that it makes. Without runs and without a budget, it shows the original model only.
        claims: What its metrics are expected to show on the default model.
        chart: The chart that is drawn below the results, if any.
        budget: A size for the search by size, such as `25%`; used instead of runs.
        types: Types of a GGUF file in whose precision the original model is measured too, after the runs.
        outcome: Finds the answer to its prediction that the metrics of a run show; None if its run cannot tell.
    """

    key: str
    runs: tuple[LessonRun, ...] = ()
    claims: tuple[Claim, ...] = ()
    chart: Literal["", "importance", "influence"] = ""
    budget: str = ""
    types: tuple[str, ...] = ()
    outcome: Outcome | None = None

    @property
    def number(self) -> int:
        """Its place in the course, counted from 1."""
        return int(self.key[:2])

    @cached_property
    def _parts(self) -> dict[str, str]:
        text = files("pruning.lessons").joinpath(f"{self.key}.md").read_text(encoding="utf-8")
        return split_sections(text, self.key)

    @property
    def title(self) -> str:
        """The heading of the text."""
        return self._parts["title"]

    @property
    def introduction(self) -> str:
        """What the lesson is about and what it does, in Markdown."""
        return self._parts["introduction"]

    @property
    def prediction(self) -> tuple[str, list[str]]:
        """A question to answer before the run, and the answers to choose from."""
        question, _, options = self._parts["Predict"].partition("\n\n")
        return question, [line.removeprefix("- ") for line in options.splitlines()]

    def measured_option(self, metrics: Metrics) -> str | None:
        """Return the answer to the prediction that a run shows, or None if it shows none of them."""
        place = None if self.outcome is None else self.outcome(metrics)
        return None if place is None else self.prediction[1][place]

    def notice(self, values: Mapping[str, str]) -> str:
        """Return what to notice in the results, in Markdown.

        Args:
            values: The formatted metrics of the run (see `format_metrics`), which replace the `$names` in
                the text.

        Raises:
            KeyError: The text has a `$name` that is not among the values.
        """
        return Template(self._parts["Notice"]).substitute(values)

    @property
    def question(self) -> str:
        """A question to think about after the run."""
        return self._parts["Question"]

    @property
    def explanation(self) -> str:
        """The answer to the question, in Markdown."""
        return self._parts["Answer"]

    @property
    def sources(self) -> str:
        """The papers and courses behind the lesson, as a Markdown list of links."""
        return self._parts["Sources"]

    @property
    def next(self) -> str:
        """What to try next on the page, in Markdown."""
        return self._parts["Next"]


def split_sections(text: str, key: str) -> dict[str, str]:
    """Split the Markdown text of a lesson into its title, its introduction and its `SECTIONS`.

    Args:
        text: A first-level heading, an introduction, and one second-level heading for each section.
        key: The lesson's key, for the error message.

    Returns:
        The parts by name: `title`, `introduction`, then the sections.

    Raises:
        ValueError: The sections differ from `SECTIONS` in name, number or order.
    """
    first, *rest = re.split(r"^## ", text, flags=re.MULTILINE)
    title, _, introduction = first.removeprefix("# ").partition("\n")
    names = tuple(part.partition("\n")[0].strip() for part in rest)
    if names != SECTIONS:
        raise ValueError(f"{key}.md has the sections {names}; the sections of a lesson are {SECTIONS}.")
    bodies = (part.partition("\n")[2].strip() for part in rest)
    return {"title": title.strip(), "introduction": introduction.strip()} | dict(
        zip(names, bodies, strict=True)
    )
