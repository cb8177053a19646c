"""Repair after layers are gone: what stands before a gap learns to say what the missing layers said."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pruning.anatomy import Anatomy
from pruning.influence import residual_streams
from pruning.progress import Reporter, silent
from pruning.statistics import SiteGram
from pruning.surgery import oriented, parameter
from pruning.watching import watching
from pruning.windows import Windows


@dataclass
class _Gap:
    """Running sums for a run of layers `removed`: H = Σ x xᵀ / E and Σ x (t − s)ᵀ / E over the fitting
    windows, and the scaled rows of the held-out ones."""

    removed: list[int]
    site: str
    gram: torch.Tensor | int = 0
    wanted: torch.Tensor | int = 0
    rows: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()

    def see(self, inputs: torch.Tensor, states: Sequence[torch.Tensor], fitting: bool) -> None:
        start, end = (states[at].to(inputs.device) for at in (self.removed[0], self.removed[-1] + 1))
        energy = torch.maximum(start.square().sum(dim=1), end.square().sum(dim=1))
        scale = energy.clamp_min(torch.finfo(energy.dtype).tiny).rsqrt()[:, None]
        rows, missing = inputs * scale, (end - start) * scale
        if fitting:
            self.gram = self.gram + rows.T @ rows
            self.wanted = self.wanted + rows.T @ missing
        else:
            self.rows += ((rows, missing),)

    def change(self, tokens: int) -> torch.Tensor | None:
        """What to add to the projection, `[neurons, channels]`."""
        site = SiteGram(self.gram, self.gram[:0], tokens)
        system = self.gram.double()
        system.diagonal().add_(site.ridge or 1.0)
        factor, failed = torch.linalg.cholesky_ex(system)
        return None if failed else torch.cholesky_solve(self.wanted.double(), factor).float()


def repair_gaps(
    model: nn.Module,
    anatomy: Anatomy,
    windows: Windows,
    removed: Sequence[int],
    progress: Reporter = silent,
) -> tuple[Mapping[str, torch.Tensor], tuple[dict, ...]]:
    """Refit the MLP's last projection in the layer before each run of removed layers.

    Solves argmin_Δ Σ ‖x Δ − (t − s)‖² / E + λ̄ ‖Δ‖² over the tokens of the fitting windows: s and t are
    the residual stream before and after the run, x the inputs of the projection, E = max(‖s‖², ‖t‖²), and
    Δ is added to its weight. It is the linear transformation of ReplaceMe (Shopkhoev et al., 2025)
    of the neurons themselves, shrunk toward no change. Held-out windows decide between this and none.

    Returns new tensors by parameter name, with the layers numbered as in `model`, and for each run a line
    for the report. Nothing for a run that begins with the first layer, and nothing where a norm stands
    between the projection and the residual stream.
    """
    if anatomy.family.closing_norms:
        return {}, ()
    gaps = [_Gap(run, anatomy.write_module(run[0] - 1)) for run in _runs(removed) if run[0] > 0]
    seen: dict[str, torch.Tensor] = {}

    def watch(site: str):
        return lambda inputs, named: seen.update({site: inputs[0].detach().flatten(0, -2).float()})

    with watching(model, {gap.site: watch(gap.site) for gap in gaps}):
        for number, states in enumerate(residual_streams(model, anatomy, windows, progress)):
            for gap in gaps:
                gap.see(seen[gap.site], states, fitting=number < len(windows.fitting))
    tensors, notes = {}, []
    for gap in gaps:
        change = gap.change(sum(map(len, windows.fitting)))
        before = sum(_energy(missing) for _, missing in gap.rows)
        after = before if change is None else sum(_energy(missing - x @ change) for x, missing in gap.rows)
        if after < before:
            spec = anatomy.tensor(f"{gap.site}.weight")
            tensors[spec.name] = oriented(oriented(parameter(model, spec.name), spec) + change.T, spec)
        tokens = sum(len(x) for x, _ in gap.rows)
        notes.append(
            {
                "layers": gap.removed,
                "lost_before": before / tokens,
                "lost_after": min(after, before) / tokens,
            }
        )
    return tensors, tuple(notes)


def _runs(layers: Sequence[int]) -> list[list[int]]:
    """Ascending numbers, those that follow one another together."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return runs


def _energy(values: torch.Tensor) -> float:
    return float(values.square().sum(dtype=torch.float64))
