"""What a job sends back: typed events with plain values, so that they can be pickled for another process.

A job yields `Queued` while it waits, then `Progress` and `Partial` while it works, and ends with one of
`Done`, `Stopped` and `Failed`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date

from pruning import Preview, Recipe
from pruning.architectures.shape import Shape
from pruning.distillation.progress import TrainingProgress
from pruning.evaluation.inspection import NextToken
from pruning.loading.source import Source
from pruning.pipeline import Pruned, Report
from pruning.progress import Progress
from pruning.sharing.gguf.rounded import LeftOut, RoundedPoint


@dataclass(frozen=True)
class Queued:
    """The job waits for its turn.

    Attributes:
        position: Its place in the queue; number 1 is the job that is running.
        seconds: The estimated wait, or None if no job has finished yet.
    """

    position: int
    seconds: float | None = None

    @property
    def text(self) -> str:
        return f"You are number {self.position} in the queue{format_wait(self.seconds)}."


@dataclass(frozen=True)
class Partial:
    """A first part of the result, or the result so far.

    Attributes:
        value: The part.
        replaces: Whether it holds all that the task emitted before, so that only the newest is of interest.
    """

    value: object
    replaces: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class Released:
    """The task needs no models any more, so the next job in the queue may start.

    Attributes:
        seconds: How long the rest of the task may take.
    """

    seconds: float


@dataclass(frozen=True)
class Done:
    """A task is finished, with its result.

    Attributes:
        value: The result.
        recorded: The day on which it was made, if it was made before and not just now.
    """

    value: object
    recorded: date | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Stopped:
    """The job was stopped."""

    message: str


@dataclass(frozen=True)
class Failed:
    """The job failed.

    Attributes:
        message: What the user is told.
        details: For a bug, its traceback, which goes to the log.
    """

    message: str
    details: str = field(default="", repr=False, compare=False)


TaskEvent = Progress | Partial | Released
"""What a task emits while it works."""

Event = Queued | Progress | Partial | Done | Stopped | Failed
"""What the page receives of a job."""


def format_wait(seconds: float | None) -> str:
    """Return an estimated wait in words, rounded, to be appended to a sentence."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f", about {10 * max(1, round(seconds / 10))} seconds"
    return f", about {round(seconds / 60)} minutes"


@dataclass(frozen=True)
class FoundModel:
    """A model that was found, without its weights: its shape, and where it comes from."""

    shape: Shape
    source: Source


@dataclass(frozen=True)
class Prompt:
    """What both models are given.

    Attributes:
        text: A question, or a text to continue.
        chat: Whether it is a question in the models' chat format; None: if they have one.
        system: A system prompt for the chat; None for that of the chat template, if it has one.
    """

    text: str
    chat: bool | None = None
    system: str | None = None


@dataclass(frozen=True)
class PrunedSummary:
    """A pruned model without its weights.

    Attributes:
        recipe: Its recipe, pinned to the revision of the base.
        report: What was measured so far.
        before: The shape of the base.
        after: The shape of the pruned model.
        source: Where the base comes from.
        prompt: The prompt as both models read it: its `chat` is true or false. None if there was none.
        plain_reason: Why they continue the prompt as a text although it might be a question, in one sentence.
    """

    recipe: Recipe
    report: Report
    before: Shape
    after: Shape
    source: Source
    prompt: Prompt | None = None
    plain_reason: str = ""

    @classmethod
    def of(cls, pruned: Pruned, before: Shape) -> "PrunedSummary":
        return cls(pruned.recipe, pruned.report, before, pruned.shape, pruned.source)

    @property
    def is_chat(self) -> bool:
        """Whether both models answer the prompt as a question."""
        return self.prompt is not None and self.prompt.chat is True

    def to_dict(self) -> dict[str, object]:
        """Return plain values: parameters, config, recipe and report."""
        preview = Preview(self.recipe, self.before, self.after)
        return preview.to_dict() | {"report": self.report.to_dict()}


@dataclass(frozen=True)
class Evaluation:
    """A report, as far as it is filled, and the recipe that it is of."""

    recipe: Recipe
    report: Report


@dataclass(frozen=True)
class Texts:
    """What the original and the pruned model make of one prompt.

    Attributes:
        before: The original's text.
        after: The pruned model's.
        undistilled: That of the pruned model before its distillation, if it was distilled.
    """

    before: str
    after: str
    undistilled: str | None = None


@dataclass(frozen=True)
class TrainingUpdate:
    """The state of a distillation after a step.

    Attributes:
        progress: The figures, without the model.
        sample: What the student outputs now, if it was just evaluated.
    """

    progress: TrainingProgress
    sample: str | None = None


@dataclass(frozen=True)
class NextTokens:
    """The likeliest next tokens of the original and of the pruned model."""

    before: Sequence[NextToken]
    after: Sequence[NextToken]


@dataclass(frozen=True)
class ImportanceMap:
    """Scores of neurons by layer.

    Attributes:
        rows: For each layer, scores from the highest to the lowest, as shares of the highest.
        shared: For each layer, the share of the neurons kept under the first criterion that the second keeps.
        fraction: The share of neurons removed.
        criteria: The first criterion and the one it is compared with.
    """

    rows: Sequence[Sequence[float]]
    shared: Sequence[float]
    fraction: float
    criteria: tuple[str, str]


@dataclass(frozen=True)
class LayerInfluences:
    """The block influence of every layer."""

    values: Sequence[float]


@dataclass(frozen=True)
class RoundedModels:
    """A base and its pruned model with their weights rounded to fewer bits, as far as they are measured.

    Attributes:
        points: What was measured.
        left_out: What cannot be rounded.
        from_4_bits: Whether the base's weights were stored in 4 bits once, so that rounding says little of others.
    """

    points: tuple[RoundedPoint, ...]
    left_out: tuple[LeftOut, ...]
    from_4_bits: bool


@dataclass(frozen=True)
class LessonModel:
    """One model of a lesson.

    Attributes:
        title: Its title in the table.
        report: The report of the cut.
        is_pruned: Whether it is the pruned model of the report, or its base.
        text: Its continuation of the lesson's prompt.
    """

    title: str
    report: Report
    is_pruned: bool
    text: str


@dataclass(frozen=True)
class LessonResult:
    """What the run of a lesson gave.

    Attributes:
        models: The models, the original first; empty for a lesson that only shows the base.
        metrics: Figures by name, for the lesson's text.
        base: The shape of the base.
        source: Where the base comes from.
        recipe: The recipe of the last model, if one was pruned.
        chart: What the lesson draws beside its results.
    """

    models: tuple[LessonModel, ...]
    metrics: Mapping[str, float | str]
    base: Shape
    source: Source
    recipe: Recipe | None = None
    chart: ImportanceMap | LayerInfluences | None = None
