"""Repair the gaps of all trials of a search while the base reads the text once."""

from collections.abc import Collection

from pruning.calibration.residual_streams import MEMORY_SHARE
from pruning.cost.cost import Cost
from pruning.cost.passes import FLOAT, Sizes
from pruning.cost.plan import Plan
from pruning.memory import available_memory
from pruning.repair.gap import GapRepair, LayerRun
from pruning.repair.kept_repairs import keep_repairs
from pruning.steps import Layers
from pruning.steps.base import StepContext

GAPS_AT_ONCE = 4
"""How many gaps are refitted together if the base's streams are kept: then more of them only take more memory."""


def repair_all_gaps(step: Layers, context: StepContext, counts: Collection[int]) -> None:
    """Repair every gap that the step leaves if it removes any of some numbers of layers, and keep the repairs.

    A method that ranks layers removes the same ones and more as the number grows, so there is about one gap for each
    number. Nothing is done if the repairs do not fit in memory: then each trial computes its own.

    Args:
        step: The step, with any number of layers.
        context: The base and the text.
        counts: The numbers of layers.
    """
    if not _are_kept(Sizes(context.shape), len(counts), available_memory()):
        return
    runs = step.runs_removed(context, sorted(counts))
    size = GAPS_AT_ONCE if step.streams(context).fits else len(runs)
    repairs: dict[LayerRun, GapRepair] = {}
    for start in range(0, len(runs), size):
        repairs |= step.repairs(context, runs[start : start + size])
    keep_repairs(context.model, context.required_windows, repairs)


def gaps_cost(step: Layers, plan: Plan) -> Cost | None:
    """Estimate `repair_all_gaps` for a search that may remove up to the step's number of layers; None if not kept."""
    sizes, most = plan.sizes, step.removed_count
    if not _are_kept(sizes, most, plan.free):
        return None
    few = step.model_copy(update={"count": min(most, GAPS_AT_ONCE)})
    held = _bytes_of(sizes, most)
    return Cost(step.cost(plan).flop, few.cost(plan).memory + held, held)


def _are_kept(sizes: Sizes, gaps: int, free: int) -> bool:
    """Return whether the repairs of some gaps take at most a part of the free memory."""
    return _bytes_of(sizes, gaps) <= free // MEMORY_SHARE


def _bytes_of(sizes: Sizes, gaps: int) -> int:
    """Return the size of the repairs of some gaps: a projection for each."""
    return gaps * FLOAT * sizes.neurons * sizes.channels
