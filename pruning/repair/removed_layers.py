"""Repair after layers are removed: refit the MLP projection before each gap to do their work as well."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from pruning.architectures.anatomy import Anatomy
from pruning.architectures.families import CHANNEL, NEURON
from pruning.architectures.placement import parameter
from pruning.calibration.block_influence import residual_streams
from pruning.calibration.hooks import InputHook, hooks
from pruning.calibration.statistics import InputGram
from pruning.memory import available_memory
from pruning.progress import Progress, Reporter, silent
from pruning.surgery import as_channels_first
from pruning.text.tokens import Windows

LayerRun = tuple[int, ...]
"""Consecutive layers, ascending."""


@dataclass(frozen=True)
class GapRepair:
    """The repair of one gap.

    Attributes:
        tensors: The new weight of the projection before the gap, by its name in the model that still has
            the layers; empty if no repair did better.
        lost_before: The share of the energy of the residual stream behind the gap that is missing on
            held-out text without the repair.
        lost_after: The share that is missing with it.
    """

    tensors: dict[str, torch.Tensor]
    lost_before: float
    lost_after: float


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
    model: PreTrainedModel,
    anatomy: Anatomy,
    windows: Windows,
    runs: Iterable[LayerRun],
    progress: Reporter = silent,
) -> dict[LayerRun, GapRepair]:
    """Refit, for each run of layers that may be removed, the MLP's output projection in the layer before it.

    Solves argmin_Δ Σ ‖x Δ − (t − s)‖² / E + λ̄ ‖Δ‖² over the tokens of the fitting windows: s and t are
    the residual stream before and after the run, x the inputs of the projection, E = max(‖s‖², ‖t‖²), and
    Δ is added to its weight. It is the linear transformation of ReplaceMe (Shopkhoev et al., 2025)
    of the neurons themselves, shrunk toward no change. Held-out windows decide between this and none.

    Args:
        model: The model that still has all layers. It is not changed.
        anatomy: Its anatomy.
        windows: The text.
        runs: The runs of layers; each is repaired as if it alone were removed.
        progress: Called before each window and each gap.

    Returns:
        The repair of each run. A run that begins with the first layer has none, and no run has one if a
        norm stands between the projection and the residual stream.
    """
    if anatomy.family.post_norms:
        return {}
    gaps = [LayerGap(run, anatomy.output_projection(run[0] - 1)) for run in runs if run[0] > 0]
    gap_bytes = 4 * anatomy.units[NEURON] * (anatomy.units[NEURON] + anatomy.units[CHANNEL])
    batch_size = max(1, available_memory() // 4 // gap_bytes)
    repairs: dict[LayerRun, GapRepair] = {}
    for start in range(0, len(gaps), batch_size):
        batch = gaps[start : start + batch_size]
        _observe(model, anatomy, windows, batch, progress)
        for number, gap in enumerate(batch, start):
            progress(Progress("Refitting before each gap", number, len(gaps)))
            repairs[gap.removed] = gap.repair(model, anatomy)
        for gap in batch:
            gap.free()
    return repairs


@dataclass
class LayerGap:
    """Running sums for one run of removed layers.

    Attributes:
        removed: The layers.
        module: The name of the projection before them.
        gram: H = Σ x xᵀ / E over the fitting windows, `[neurons, neurons]`.
        cross: Σ x (t − s)ᵀ / E over the fitting windows, `[neurons, channels]`.
        tokens: The number of tokens in these sums.
        heldout: For each held-out window, the rows √(1/E) x and √(1/E) (t − s).
    """

    removed: LayerRun
    module: str
    gram: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    cross: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    tokens: int = 0
    heldout: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def update(self, inputs: torch.Tensor, states: Sequence[torch.Tensor], fitting: bool) -> None:
        """Add one window: the projection's inputs, and the residual stream before and after every layer."""
        start, end = (states[place].to(inputs.device) for place in (self.removed[0], self.removed[-1] + 1))
        energy = torch.maximum(start.square().sum(dim=1), end.square().sum(dim=1))
        scale = energy.clamp_min(torch.finfo(energy.dtype).tiny).rsqrt()[:, None]
        rows, missing = inputs * scale, (end - start) * scale
        if fitting:
            self.gram = self.gram + rows.T @ rows
            self.cross = self.cross + rows.T @ missing
            self.tokens += len(rows)
        else:
            self.heldout.append((rows, missing))

    def repair(self, model: PreTrainedModel, anatomy: Anatomy) -> GapRepair:
        """Solve for the new weight, and keep it if held-out text gains."""
        tensors, change = {}, self._change()
        tokens = sum(len(rows) for rows, _ in self.heldout)
        before = sum(_energy(missing) for _, missing in self.heldout) / tokens
        after = sum(_energy(missing - rows @ change) for rows, missing in self.heldout) / tokens
        if after < before:
            spec = anatomy.tensor(f"{self.module}.weight")
            weight = as_channels_first(parameter(model, spec.name), spec)
            tensors[spec.name] = as_channels_first(weight + change.T, spec)
        return GapRepair(tensors, before, min(before, after))

    def _change(self) -> torch.Tensor:
        """Compute Δ, `[neurons, channels]`; zero if the system is damaged."""
        system = self.gram.double()
        system.diagonal().add_(InputGram(self.gram, self.gram[:0], self.tokens).ridge or 1.0)
        factor, failed = torch.linalg.cholesky_ex(system)
        if failed:
            return torch.zeros_like(self.cross)
        return torch.cholesky_solve(self.cross.double(), factor).float()

    def free(self) -> None:
        """Free the memory of the sums."""
        self.gram = self.cross = torch.zeros(())
        self.heldout.clear()


def _observe(
    model: PreTrainedModel, anatomy: Anatomy, windows: Windows, gaps: Sequence[LayerGap], progress: Reporter
) -> None:
    """Read the text once, for all of the gaps."""
    inputs: dict[str, torch.Tensor] = {}

    def record(module: str) -> InputHook:
        def keep(args: tuple, _kwargs: Mapping[str, object]) -> None:
            inputs[module] = args[0].detach().flatten(0, -2).float()

        return keep

    with hooks(model, {gap.module: record(gap.module) for gap in gaps}):
        for number, states in enumerate(residual_streams(model, anatomy, windows, progress)):
            for gap in gaps:
                gap.update(inputs[gap.module], states, fitting=number < len(windows.fitting))


def _energy(values: torch.Tensor) -> float:
    return float(values.square().sum(dtype=torch.float64))
