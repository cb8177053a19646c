"""Repair after layers are removed: refit the MLP projection before each gap to do their work as well.

If a norm stands between that projection and the residual stream, `post_norm_gap` refits both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pruning.architectures.anatomy import Anatomy
from pruning.architectures.families import CHANNEL, NEURON
from pruning.architectures.matrices import as_channels_first
from pruning.architectures.placement import parameter
from pruning.calibration.residual_streams import ResidualStreams
from pruning.memory import available_memory
from pruning.progress import Progress, Reporter, silent
from pruning.repair.gap import GapRepair, LayerGap, LayerRun
from pruning.repair.post_norm_gap import PostNormGap, post_norm_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def runs_of(layers: Iterable[int]) -> list[LayerRun]:
    """Group layers into runs of consecutive ones, ascending."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return [tuple(run) for run in runs]


def repair_gaps(
    streams: ResidualStreams, runs: Iterable[LayerRun], progress: Reporter = silent
) -> dict[LayerRun, GapRepair]:
    """Refit, for each run of layers that may be removed, the MLP's output projection in the layer before it.

    Solves argmin_Δ Σ ‖x Δ − (t − s)‖² / E + λ̄ ‖Δ‖² over the tokens of the fitting windows: s and t are
    the residual stream before and after the run, x the inputs of the projection, E = max(‖s‖², ‖t‖²), and
    Δ is added to its weight. It is the linear transformation of ReplaceMe (Shopkhoev et al., 2025)
    of the neurons themselves, shrunk toward no change. Held-out windows decide between this and none.

    Args:
        streams: The residual streams of the model that still has all layers. It is not changed.
        runs: The runs of layers; each is repaired as if it alone were removed.
        progress: Called before each gap.

    Returns:
        The repair of each run. A run that begins with the first layer has none, and no run has one if what
        stands between the projection and the residual stream is not understood (`post_norm_of`), if the layer before
        it has no such projection, as in a mixture of experts or in Mamba, or if there are several streams.
    """
    model, anatomy = streams.model, streams.anatomy
    if not streams.is_one:
        return {}
    gaps = [gap for run in runs if run[0] > 0 and (gap := _gap(model, anatomy, run)) is not None]
    repairs: dict[LayerRun, GapRepair] = {}
    if not gaps:
        return repairs
    neurons, channels = anatomy.units[NEURON], anatomy.units[CHANNEL]
    batch_size = max(1, available_memory() // 4 // (4 * neurons * (neurons + channels)))
    for start in range(0, len(gaps), batch_size):
        batch = gaps[start : start + batch_size]
        _observe(streams, batch)
        for number, gap in enumerate(batch, start):
            progress(Progress("Refitting before each gap", number, len(gaps)))
            repairs[gap.removed] = gap.repair()
        for gap in batch:
            gap.free()
    return repairs


def _gap(model: PreTrainedModel, anatomy: Anatomy, run: LayerRun) -> LayerGap | None:
    before = run[0] - 1
    spec = anatomy.output_weight(before)
    # Mamba's neurons do not write straight into the residual stream.
    if spec is None or CHANNEL not in spec.labels:
        return None
    weight = as_channels_first(parameter(model, spec.name), spec)
    if not anatomy.family.post_norms:
        return LayerGap(run, spec, weight)
    norm = post_norm_of(model, anatomy, before)
    return None if norm is None else PostNormGap(run, spec, weight, norm=norm)


def _observe(streams: ResidualStreams, gaps: Sequence[LayerGap]) -> None:
    """Go through the text once, for all of the gaps."""
    modules = {gap.projection.module: gap.removed[0] - 1 for gap in gaps}
    for number, (states, inputs) in enumerate(streams.with_inputs(modules)):
        for gap in gaps:
            gap.update(inputs[gap.projection.module], states, fitting=number < len(streams.windows.fitting))
