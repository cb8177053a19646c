"""What removing units costs in loss: fitted to a few trials, then predicted for every candidate."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from pruning.architectures.families import LAYER
from pruning.shape_search.candidates import PRUNABLE_UNITS, Candidate
from pruning.shape_search.result import Trial
from pruning.text.likelihood import perplexity_of

FINALISTS = 4
"""How many of the best predicted candidates are measured."""

CURVE_POINTS = 60

CostCurve = Sequence[tuple[int, float]]
"""Numbers of units removed, ascending from 0, each with the increase of the loss in nats per token."""


def fit_costs(base_loss: float, trials: Iterable[Trial]) -> list[CostCurve]:
    """Return the cost curve of each kind of unit, in the order of `PRUNABLE_UNITS`.

    Args:
        base_loss: The loss of the base model.
        trials: Those that remove one kind alone are used.
    """
    trials = list(trials)
    curves: list[CostCurve] = []
    for place, kind in enumerate(PRUNABLE_UNITS):
        alone = [trial for trial in trials if trial.candidate.single == kind.title]
        points = sorted((trial.candidate.amounts[place], trial.loss - base_loss) for trial in alone)
        curves.append([(0, 0.0), *points])
    return curves


def _interpolate(curve: CostCurve, amount: int) -> float:
    """Return the cost of an amount, linear between the points and beyond the last.

    Infinite if nothing was measured.
    """
    if amount == 0 or len(curve) < 2:
        return 0.0 if amount == 0 else math.inf
    last_two = (curve[-2], curve[-1])
    (x0, y0), (x1, y1) = next((pair for pair in pairwise(curve) if amount <= pair[1][0]), last_two)
    return y0 + (y1 - y0) * (amount - x0) / (x1 - x0)


def predict_cost(candidate: Candidate, costs: Sequence[CostCurve]) -> float:
    """Predict by how much the loss grows, in nats per token: the sum of the costs of all kinds."""
    return sum(_interpolate(curve, count) for curve, count in zip(costs, candidate.amounts, strict=True))


def finalists(
    candidates: Sequence[Candidate], costs: Sequence[CostCurve], top_k: int = FINALISTS
) -> list[Candidate]:
    """Return the candidates to measure: the best predicted, and the best of certain sorts.

    Those are the best that keeps every layer (Minitron: width before depth; Muralidharan et al., 2024)
    and the best that removes each kind of unit alone.
    """
    ranked = sorted(candidates, key=lambda candidate: predict_cost(candidate, costs))
    chosen = {candidate.amounts: candidate for candidate in ranked[:top_k]}
    depth = next(place for place, kind in enumerate(PRUNABLE_UNITS) if kind.unit == LAYER)
    width_alone = [candidate for candidate in ranked if not candidate.amounts[depth]]
    alone = [[candidate for candidate in ranked if candidate.single == kind.title] for kind in PRUNABLE_UNITS]
    for group in (width_alone, *alone):
        chosen |= {candidate.amounts: candidate for candidate in group[:1]}
    return list(chosen.values())


def predict_curve(
    candidates: Sequence[Candidate], costs: Sequence[CostCurve], base_loss: float
) -> Iterator[tuple[int, float]]:
    """Yield numbers of parameters, descending, each with the least perplexity predicted at that size."""
    best: dict[int, float] = {}
    step = max(candidate.parameters for candidate in candidates) / CURVE_POINTS
    for candidate in candidates:
        place = int(candidate.parameters / step)
        best[place] = min(best.get(place, math.inf), predict_cost(candidate, costs))
    for place in sorted(best, reverse=True):
        if best[place] < math.inf:
            yield int(place * step), perplexity_of(base_loss + best[place])
