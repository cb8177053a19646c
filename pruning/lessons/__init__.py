"""The course: each lesson a text, models to make, and what they are expected to show.

A text is a Markdown file beside this one, in the sections that `_SECTIONS` names. `$names` in it are facts
of the run: see `facts`. To add a lesson, write its text and name it in `LESSONS`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from string import Template

from pruning import catalog
from pruning.architectures.families import NEURON
from pruning.architectures.shape import Shape
from pruning.formatting import format_number
from pruning.pipeline import Pruned
from pruning.recipe import Recipe
from pruning.steps import Heads, Layers, Neurons, Weights
from pruning.steps.base import Step
from pruning.text.choice import Calibration

_SECTIONS = ("Predict", "Notice", "Question", "Answer", "Sources", "Next")


@dataclass(frozen=True)
class LessonRun:
    """One model of a lesson. `name` begins the names of its facts; `base`: a model to prefer where it can
    be reached."""

    name: str
    title: str
    steps: tuple[Step, ...]
    text: str = "general"
    tokens: int = 8192
    base: str | None = None

    def recipe(self, base: str = catalog.DEFAULT_MODEL) -> Recipe:
        calibration = Calibration(text=self.text, tokens=self.tokens)
        return Recipe(base=base, calibration=calibration, steps=self.steps)


@dataclass(frozen=True)
class Claim:
    """What a fact is expected to be on the default model: from `least` to `most`."""

    fact: str
    least: float = 0.0
    most: float = float("inf")

    def holds(self, facts: Mapping[str, float]) -> bool:
        return self.least <= facts[self.fact] <= self.most


@dataclass(frozen=True)
class Lesson:
    """One lesson. `look`: what is drawn beside the results; `budget`: a search instead of runs."""

    key: str
    runs: tuple[LessonRun, ...] = ()
    claims: tuple[Claim, ...] = ()
    look: str = ""
    budget: str = ""
    answer: int = field(default=0, kw_only=True)

    @property
    def number(self) -> int:
        return int(self.key[:2])

    @cached_property
    def _parts(self) -> dict[str, str]:
        text = files(__name__).joinpath(f"{self.key}.md").read_text(encoding="utf-8")
        first, *rest = re.split(r"^## ", text, flags=re.MULTILINE)
        title, _, see = first.removeprefix("# ").partition("\n")
        parts = {"title": title.strip(), "see": see.strip()}
        for part in rest:
            name, _, body = part.partition("\n")
            parts[name.strip()] = body.strip()
        if tuple(parts)[2:] != _SECTIONS:
            raise AssertionError(f"{self.key}.md has the sections {tuple(parts)[2:]}, not {_SECTIONS}")
        return parts

    @property
    def title(self) -> str:
        return self._parts["title"]

    @property
    def see(self) -> str:
        """What there will be to see."""
        return self._parts["see"]

    @property
    def prediction(self) -> tuple[str, list[str]]:
        """A question to answer before the run, and the answers to choose from."""
        question, _, options = self._parts["Predict"].partition("\n\n")
        return question, [line.removeprefix("- ") for line in options.splitlines()]

    def notice(self, shown: Mapping[str, str]) -> str:
        """What to notice in these results."""
        return Template(self._parts["Notice"]).substitute(shown)

    @property
    def question(self) -> str:
        return self._parts["Question"]

    @property
    def explanation(self) -> str:
        """The answer to the question."""
        return self._parts["Answer"]

    @property
    def sources(self) -> str:
        return self._parts["Sources"]

    @property
    def next(self) -> str:
        return self._parts["Next"]


def _neurons(share: float, criterion: str, repair: bool = False) -> tuple[Step, ...]:
    return (Neurons(fraction=share, criterion=criterion, repair=repair),)


LESSONS = (
    Lesson("01-where-the-parameters-live", claims=(Claim("mlp_share", 0.5, 0.7),), answer=2),
    Lesson(
        "02-the-simplest-cut",
        runs=(LessonRun("l1", "L1, 20 % of the neurons", _neurons(0.2, "l1"), base="distilgpt2"),),
        claims=(Claim("l1_smaller", 0.05, 0.15),),
        answer=1,
    ),
    Lesson(
        "03-the-wrong-way",
        runs=(
            LessonRun("independent", "Gate and up ranked apart", _neurons(0.2, "independent")),
            LessonRun("l1", "One shared ranking, L1", _neurons(0.2, "l1")),
        ),
        claims=(Claim("independent_ratio", 1e4), Claim("l1_ratio", 50)),
        answer=2,
    ),
    Lesson(
        "04-the-right-way-from-weights",
        runs=(LessonRun("ppm", "Peak-to-peak magnitude", _neurons(0.2, "ppm")),),
        claims=(Claim("ppm_ratio", 2, 50),),
        answer=2,
    ),
    Lesson(
        "05-ask-the-data",
        runs=(
            LessonRun("ppm", "Peak-to-peak magnitude, from weights", _neurons(0.2, "ppm")),
            LessonRun("activation", "How strongly it fires, from text", _neurons(0.2, "activation")),
        ),
        claims=(Claim("activation_ratio", 1, 1.9), Claim("ppm_ratio", 2)),
        look="importance",
        answer=2,
    ),
    Lesson(
        "06-for-what-use",
        runs=(
            LessonRun("story", "Read stories", _neurons(0.4, "activation", True), text="story"),
            LessonRun("code", "Read code", _neurons(0.4, "activation", True), text="code"),
        ),
        claims=(Claim("story_advantage", 1.1), Claim("code_advantage", 1.1)),
        answer=1,
    ),
    Lesson(
        "07-repair-in-closed-form",
        runs=(
            LessonRun("plain", "Without repair", _neurons(0.4, "activation")),
            LessonRun("repaired", "With repair", _neurons(0.4, "activation", True)),
            LessonRun(
                "little",
                "With repair, on an eighth of the text",
                _neurons(0.4, "activation", True),
                tokens=1024,
            ),
        ),
        claims=(Claim("repaired_gain", 1.15), Claim("repaired_ratio", 1.2, 3)),
        answer=1,
    ),
    Lesson(
        "08-depth",
        runs=(
            LessonRun("three", "3 of 30 layers, no repair", (Layers(count=3, repair=False),)),
            LessonRun("nine", "9 of 30 layers, no repair", (Layers(count=9, repair=False),)),
            LessonRun("repaired", "9 of 30 layers, with repair", (Layers(count=9),)),
        ),
        claims=(Claim("three_ratio", 1, 2.5), Claim("nine_ratio", 3), Claim("repaired_ratio", 1, 3)),
        look="influence",
        answer=2,
    ),
    Lesson(
        "09-heads-and-groups",
        runs=(
            LessonRun("plain", "One of three groups, no repair", (Heads(groups=1, repair=False),)),
            LessonRun("repaired", "One of three groups, with repair", (Heads(groups=1),)),
        ),
        claims=(Claim("repaired_ratio", 1, 1.9),),
        answer=1,
    ),
    Lesson(
        "10-weights",
        runs=(
            LessonRun("half", "Half of the weights, anywhere", (Weights(fraction=0.5),)),
            LessonRun("pattern", "Two of every four", (Weights(pattern="2:4"),)),
        ),
        claims=(Claim("half_ratio", 1, 4), Claim("half_smaller", 0, 0)),
        answer=1,
    ),
    Lesson(
        "11-teach-it-again",
        runs=(LessonRun("half", "Half of the neurons, with repair", _neurons(0.5, "activation", True)),),
        claims=(Claim("half_ratio", 1.3, 4),),
        answer=1,
    ),
    Lesson("12-put-together", budget="25%", claims=(Claim("chosen_ratio", 1, 10),)),
)

BY_KEY = {lesson.key: lesson for lesson in LESSONS}


def facts_of_shape(shape: Shape) -> dict[str, float]:
    """What a shape alone tells: parameters, and the share of each component."""
    components, total = shape.components, shape.parameters
    return {"parameters_before": total} | {f"{name}_share": size / total for name, size in components.items()}


def facts_of(runs: Sequence[tuple[str, Pruned]]) -> dict[str, float]:
    """The facts of measured models, by the names that texts and claims use."""
    facts: dict[str, float] = {}
    for name, pruned in runs:
        report = pruned.report
        before, after = report.before.quality, report.after.quality
        facts["dense"] = before.overall.value
        facts |= {
            f"{name}_dense": before.overall.value,
            f"{name}_perplexity": after.overall.value,
            f"{name}_ratio": after.overall.value / before.overall.value,
            f"{name}_smaller": 1 - report.after.parameters / report.before.parameters,
            f"{name}_bytes": report.after.bytes,
            f"{name}_width_after": pruned.shape.count(NEURON),
        }
        facts |= {f"{name}_{genre}": result.value for genre, result in after.genres.items()}
    names = [name for name, _ in runs]
    for one in names:
        for other in names:
            if one != other and f"{other}_{one}" in facts:
                facts[f"{one}_advantage"] = facts[f"{other}_{one}"] / facts[f"{one}_{one}"]
    if {"plain", "repaired"} <= set(names):
        facts["repaired_gain"] = facts["plain_ratio"] / facts["repaired_ratio"]
    return facts


def shown(facts: Mapping[str, float]) -> dict[str, str]:
    """Facts as they stand in a text."""
    return {name: _shown(name, value) for name, value in facts.items()}


def _shown(name: str, value: float | str) -> str:
    if isinstance(value, str):
        return value
    if name.endswith(("_share", "_smaller")):
        return f"{100 * value:.1f} %"
    if name.endswith("_bytes"):
        return f"{value / 1e6:,.0f} MB"
    if isinstance(value, int):
        return f"{value:,}"
    return format_number(value, 2 if name.endswith(("_ratio", "_advantage", "_gain")) else 1)
