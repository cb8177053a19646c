"""Repair after layers are gone: what stands before a gap learns to say what the missing layers said."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import psutil
import torch
from torch import nn

from pruning.architectures.anatomy import Anatomy
from pruning.architectures.families import CHANNEL, NEURON
from pruning.architectures.placement import parameter
from pruning.calibration.block_influence import residual_streams
from pruning.calibration.hooks import hooks
from pruning.calibration.statistics import SiteGram
from pruning.progress import Reporter, silent
from pruning.surgery import as_channels_first
from pruning.text.tokens import Windows

LayerRun = tuple[int, ...]
"""Layers that follow one another."""


@dataclass(frozen=True)
class GapRepair:
    """What repair made of one gap.

    `tensors`: the new weight of the projection before it, by its name in the model that has the layers still;
    empty where no repair did better. `lost_before` and `lost_after`: what is missing in the residual stream
    behind the gap on held-out text, a share of its energy, without and with the repair.
    """

    tensors: dict[str, torch.Tensor]
    lost_before: float
    lost_after: float


def runs_of(layers: Iterable[int]) -> list[LayerRun]:
    """Layers as runs of those that follow one another, ascending."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return [tuple(run) for run in runs]


def repair_gaps(
    model: nn.Module,
    anatomy: Anatomy,
    windows: Windows,
    runs: Iterable[LayerRun],
    progress: Reporter = silent,
) -> dict[LayerRun, GapRepair]:
    """Refit, for each run of layers that may go, the MLP's last projection in the layer before it.

    Solves argmin_Δ Σ ‖x Δ − (t − s)‖² / E + λ̄ ‖Δ‖² over the tokens of the fitting windows: s and t are
    the residual stream before and after the run, x the inputs of the projection, E = max(‖s‖², ‖t‖²), and
    Δ is added to its weight. It is the linear transformation of ReplaceMe (Shopkhoev et al., 2025)
    of the neurons themselves, shrunk toward no change. Held-out windows decide between this and none.

    No entry for a run that begins with the first layer, and none at all where a norm stands between the
    projection and the residual stream.
    """
    if anatomy.family.post_norms:
        return {}
    gaps = [LayerGap(run, anatomy.output_projection(run[0] - 1)) for run in runs if run[0] > 0]
    each = 4 * anatomy.units[NEURON] * (anatomy.units[NEURON] + anatomy.units[CHANNEL])
    together = max(1, psutil.virtual_memory().available // 4 // each)
    repaired = {}
    for start in range(0, len(gaps), together):
        part = gaps[start : start + together]
        _look(model, anatomy, windows, part, progress)
        repaired |= {gap.removed: gap.repaired(model, anatomy) for gap in part}
        for gap in part:
            gap.forget()
    return repaired


@dataclass
class LayerGap:
    """Running sums for a run of layers: H = Σ x xᵀ / E and Σ x (t − s)ᵀ / E over the fitting windows, and
    the rows √(1/E) x and √(1/E) (t − s) of the held-out ones."""

    removed: LayerRun
    site: str
    gram: torch.Tensor | int = 0
    wanted: torch.Tensor | int = 0
    tokens: int = 0
    heldout: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def update(self, inputs: torch.Tensor, states: Sequence[torch.Tensor], fitting: bool) -> None:
        start, end = (states[at].to(inputs.device) for at in (self.removed[0], self.removed[-1] + 1))
        energy = torch.maximum(start.square().sum(dim=1), end.square().sum(dim=1))
        scale = energy.clamp_min(torch.finfo(energy.dtype).tiny).rsqrt()[:, None]
        rows, missing = inputs * scale, (end - start) * scale
        if fitting:
            self.gram = self.gram + rows.T @ rows
            self.wanted = self.wanted + rows.T @ missing
            self.tokens += len(rows)
        else:
            self.heldout.append((rows, missing))

    def repaired(self, model: nn.Module, anatomy: Anatomy) -> GapRepair:
        tensors, change = {}, self._change()
        tokens = sum(len(rows) for rows, _ in self.heldout)
        before = sum(_energy(missing) for _, missing in self.heldout) / tokens
        after = sum(_energy(missing - rows @ change) for rows, missing in self.heldout) / tokens
        if after < before:
            spec = anatomy.tensor(f"{self.site}.weight")
            weight = as_channels_first(parameter(model, spec.name), spec)
            tensors[spec.name] = as_channels_first(weight + change.T, spec)
        return GapRepair(tensors, before, min(before, after))

    def _change(self) -> torch.Tensor:
        """Δ, `[neurons, channels]`; nothing where the system is damaged."""
        system = self.gram.double()
        system.diagonal().add_(SiteGram(self.gram, self.gram[:0], self.tokens).ridge or 1.0)
        factor, failed = torch.linalg.cholesky_ex(system)
        if failed:
            return torch.zeros_like(self.wanted)
        return torch.cholesky_solve(self.wanted.double(), factor).float()

    def forget(self) -> None:
        self.gram = self.wanted = 0
        self.heldout.clear()


def _look(
    model: nn.Module, anatomy: Anatomy, windows: Windows, gaps: Sequence[LayerGap], progress: Reporter
) -> None:
    """Read the text once, for all of the gaps."""
    seen: dict[str, torch.Tensor] = {}

    def watch(site: str):
        return lambda inputs, named: seen.update({site: inputs[0].detach().flatten(0, -2).float()})

    with hooks(model, {gap.site: watch(gap.site) for gap in gaps}):
        for number, states in enumerate(residual_streams(model, anatomy, windows, progress)):
            for gap in gaps:
                gap.update(seen[gap.site], states, fitting=number < len(windows.fitting))


def _energy(values: torch.Tensor) -> float:
    return float(values.square().sum(dtype=torch.float64))
