"""The gap that removed layers leave, and how the projection before it compensates for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pruning.architectures.anatomy import TensorSpec
from pruning.architectures.matrices import as_channels_first
from pruning.calibration.statistics import InputGram
from pruning.lazy import torch

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


@dataclass
class LayerGap:
    """Running sums for one run of removed layers.

    Attributes:
        removed: The layers.
        projection: The weight of the projection before them.
        weight: Its values, `[channels, neurons]`.
        gram: H = Σ x xᵀ / E over the fitting windows, `[neurons, neurons]`.
        cross: Σ x (t − s)ᵀ / E over the fitting windows, `[neurons, channels]`.
        tokens: The number of tokens in these sums.
        heldout: For each held-out window, the rows √(1/E) x and √(1/E) (t − s).
    """

    removed: LayerRun
    projection: TensorSpec
    weight: torch.Tensor
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

    def repair(self) -> GapRepair:
        """Solve for the new weight, and keep it if held-out text gains."""
        tensors, change = {}, solve(self.gram, self.cross, self.tokens)
        tokens = sum(len(rows) for rows, _ in self.heldout)
        before = sum(energy_of(missing) for _, missing in self.heldout) / tokens
        after = sum(energy_of(missing - rows @ change) for rows, missing in self.heldout) / tokens
        if after < before:
            tensors[self.projection.name] = as_channels_first(self.weight + change.T, self.projection)
        return GapRepair(tensors, before, min(before, after))

    def free(self) -> None:
        """Free the memory of the sums."""
        self.gram = self.cross = torch.zeros(())
        self.heldout.clear()


def solve(gram: torch.Tensor, cross: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return the ridge regression's change of a projection, `[neurons, channels]`; zero if the system is damaged.

    Args:
        gram: H, `[neurons, neurons]`.
        cross: The right side, `[neurons, channels]`.
        tokens: The number of tokens in both.
    """
    system = gram.double()
    system.diagonal().add_(InputGram(gram, gram[:0], tokens).ridge or 1.0)
    factor, failed = torch.linalg.cholesky_ex(system)
    if failed:
        return torch.zeros_like(cross)
    return torch.cholesky_solve(cross.double(), factor).float()


def energy_of(values: torch.Tensor) -> float:
    """Return the sum of squares."""
    return float(values.square().sum(dtype=torch.float64))
