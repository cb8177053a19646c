"""Repair in closed form: what the kept neurons can say of what the removed ones said."""

import math
from dataclasses import dataclass

import torch

from pruning.statistics import SiteGram

DAMPINGS = (10.0, 1.0, 0.1, 0.01, 0.001)
"""Candidates for λ, as a share of the mean of the diagonal of H, from the most cautious on."""


@dataclass(frozen=True)
class Repair:
    """A repaired projection.

    `weight`: `[channels, kept]`, float32, or None where no repair did better. `damping`: λ, None
    for no repair. `error_before` and `error_after`: what is lost of the projection's output on
    held-out rows, as a share of its energy, without and with the repair.
    """

    weight: torch.Tensor | None
    damping: float | None
    error_before: float
    error_after: float


def repair_projection(site: SiteGram, weight: torch.Tensor, kept: torch.Tensor) -> Repair:
    """Refit a projection `[channels, neurons]` to the neurons kept.

    Solves argmin_V ‖X_k V − X Wᵀ‖² + λ̄ ‖V − W_kᵀ‖² with λ̄ = λ · mean(diag H) and H = XᵀX, as
    V = W_kᵀ + (H_kk + λ̄ I)⁻¹ H_kr W_rᵀ, by Cholesky: ridge regression toward the untouched weights.
    The held-out rows choose λ, or no repair, in float32, trying less caution for as long as it helps;
    the choice is then solved again over all rows in float64.
    """
    kept = kept.to(weight.device)
    removed = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    removed[kept] = False
    removed = removed.nonzero().squeeze(1)
    lost = weight[:, removed].float()
    rows = site.heldout[:, kept]
    missing = site.heldout[:, removed] @ lost.T
    errors = {None: _energy(missing)}
    system, wanted = _normal_equations(site.gram, kept, removed, lost)
    scale = float(site.gram.diagonal().mean(dtype=torch.float64))
    previous = math.inf
    for damping in DAMPINGS if scale > 0 else ():
        change = _solve(system, wanted, damping * scale)
        error = math.inf if change is None else _energy(rows @ change - missing)
        if error >= previous:
            break
        errors[damping] = previous = error
    best = min(errors, key=errors.get)
    repaired = None
    if best is not None:
        gram = torch.addmm(site.gram, site.heldout.T, site.heldout)
        system, wanted = _normal_equations(gram, kept, removed, lost.double())
        change = _solve(system, wanted, best * float(gram.diagonal().mean(dtype=torch.float64)))
        repaired = (weight[:, kept] + change.T).float()
    energy = max(_energy(site.heldout @ weight.float().T), 1e-30)
    return Repair(repaired, best, errors[None] / energy, errors[best] / energy)


def _normal_equations(
    gram: torch.Tensor, kept: torch.Tensor, removed: torch.Tensor, lost: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """H_kk and H_kr W_rᵀ, in the precision of the lost weights."""
    rows = gram.index_select(0, kept).to(lost.dtype)
    return rows.index_select(1, kept), rows.index_select(1, removed) @ lost.T


def _solve(system: torch.Tensor, wanted: torch.Tensor, ridge: float) -> torch.Tensor | None:
    """What to add to the kept weights, `[kept, channels]`; None where the precision does not reach."""
    damped = system.clone()
    damped.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(damped)
    return None if failed else torch.cholesky_solve(wanted, factor)


def _energy(values: torch.Tensor) -> float:
    return float(values.square().sum(dtype=torch.float64))
