"""The result of a distillation: the student, and the note on it for the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pruning.distillation.checkpoint import Ended
from pruning.distillation.progress import EvalPoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class DistillationNote:
    """What a report records of a distillation: plain values.

    Attributes:
        text: Name of the text that was trained on.
        tokens: Training tokens read.
        refit_tokens: Tokens on which the layers were refitted before the first step; 0 if they were not.
        steps: Optimizer steps done.
        best_step: The step whose weights were kept; 0 if no step gained anything.
        seconds: Seconds of training.
        loss: The training loss of the last step.
        perplexity_teacher: The teacher's held-out perplexity.
        perplexity_before: The student's held-out perplexity before training.
        perplexity_after: That of the result, rounded to its stored precision.
        heldout_tokens: Tokens that were evaluated on.
        ended: Why the training ended: "done", "stopped" or "no further gain".
        improved: Whether the result is better than the student before training. If not, it is the latter.
        reproducible: Whether the same recipe gives the same weights again.
        hardware: The device.
        precision: Precision of the matrix products.
        curve: Every evaluation of the student.
    """

    text: str
    tokens: int
    refit_tokens: int
    steps: int
    best_step: int
    seconds: float
    loss: float | None
    perplexity_teacher: float
    perplexity_before: float
    perplexity_after: float
    heldout_tokens: int
    ended: Ended
    improved: bool
    reproducible: bool
    hardware: str
    precision: str
    curve: tuple[EvalPoint, ...]


@dataclass(frozen=True)
class DistillationResult:
    """The best student, and a note on its training. If nothing was gained, it is the model that came in."""

    model: PreTrainedModel
    note: DistillationNote
