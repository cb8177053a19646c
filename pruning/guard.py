"""A guard against results that nobody wants: one sentence, with the choice that would lose less."""

import math
from collections.abc import Sequence

from pruning.evaluation.answers import AnswersKept
from pruning.report import Report
from pruning.steps import AnyStep, Distillation

MOST_NATS = 1.0
"""The rise of the loss on held-out text, in nats per token, above which a model is called ruined."""

LEAST_KEPT = 0.5
"""The share of the base's good answers below which a model is called ruined."""


def warn_of_ruin(steps: Sequence[AnyStep], report: Report, answers: AnswersKept | None = None) -> str | None:
    """Return a warning if a result lost so much that its recipe should be another one, or None.

    Args:
        steps: The steps of its recipe.
        report: What was measured. Of models with another vocabulary, bits per byte are compared.
        answers: How its answers compare with the base's; by default those of the report, if they were judged.
    """
    lost = []
    answers = answers or report.answers_kept
    nats = loss_rise(steps, report)
    if nats is not None and not nats <= MOST_NATS:
        amount = f"by {nats:.1f} nats per token" if math.isfinite(nats) else "beyond any measure"
        lost.append(f"the loss on held-out text rose {amount}")
    if answers is not None and answers.kept.share is not None and answers.kept.share < LEAST_KEPT:
        lost.append(f"only {answers.kept.share:.0%} of the original's good answers are still good")
    if not lost:
        return None
    return f"This model lost most of what it could do: {' and '.join(lost)}. {_advice(steps)}"


def loss_rise(steps: Sequence[AnyStep], report: Report) -> float | None:
    """Return by how many nats per token of the base the loss on held-out text rose; None if it was not measured."""
    before, after = report.before.quality, report.after.quality
    if before is None or after is None or not report.after.has_full_quality:
        return None
    if any(step.changes_vocabulary for step in steps):
        bits = before.overall.bits_per_byte, after.overall.bits_per_byte
        if bits[0] is None or bits[1] is None:
            return None
        # The base's nats per token, grown as its bits per byte did.
        return math.log(before.overall.value) * (bits[1] / bits[0] - 1)
    if not math.isfinite(after.overall.value):
        return math.inf
    return math.log(after.overall.value / before.overall.value)


def _advice(steps: Sequence[AnyStep]) -> str:
    for step in steps:
        if (advice := step.gentler) is not None:
            return advice
    if any(isinstance(step, Distillation) for step in steps):
        return "Remove less."
    return "Remove less, or distill the model afterwards."
