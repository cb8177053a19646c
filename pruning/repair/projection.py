"""Repair in closed form: what the kept neurons can say of what the removed ones said."""

from dataclasses import dataclass

import torch

from pruning.calibration.statistics import SiteGram


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

    Solves argmin_V ‖X_k V − X Wᵀ‖² + λ̄ ‖V − W_kᵀ‖² with H = XᵀX, as V = W_kᵀ + C: ridge regression
    toward the untouched weights. C = (H_kk + λ̄ I)⁻¹ H_kr W_rᵀ is also −P_kr P_rr⁻¹ W_rᵀ with
    P = (H + λ̄ I)⁻¹ over all neurons (block inversion; Golub & Van Loan, §2.1.4), which is known before
    anything is cut: what remains to solve is as small as the cut. Held-out rows decide between this and
    no repair.
    """
    kept = kept.to(weight.device)
    stays = torch.zeros(weight.shape[1], dtype=torch.bool, device=weight.device)
    stays[kept] = True
    removed = (~stays).nonzero().squeeze(1)
    lost = weight.index_select(1, removed).float().T
    change = _change(site, kept, removed, lost)
    missing = site.heldout.index_select(1, removed) @ lost
    before = _energy(missing)
    after = _energy(site.heldout.index_select(1, kept) @ change - missing)
    energy = max(_energy(site.heldout @ weight.float().T), 1e-30)
    if not after < before:
        return Repair(None, None, before / energy, before / energy)
    return Repair(
        weight.index_select(1, kept).float() + change.T, site.damping, before / energy, after / energy
    )


def _change(site: SiteGram, kept: torch.Tensor, removed: torch.Tensor, lost: torch.Tensor) -> torch.Tensor:
    """C, `[kept, channels]`, by the smaller of both systems; `lost` is W_rᵀ."""
    if len(removed) <= len(kept):
        rows = site.inverse.index_select(0, removed)
        return -(rows.index_select(1, kept).T @ _solve(rows.index_select(1, removed), lost))
    rows = site.gram.index_select(0, kept)
    system = rows.index_select(1, kept)
    system.diagonal().add_(site.ridge or 1.0)
    return _solve(system, rows.index_select(1, removed) @ lost)


def _solve(system: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """No change where the system is damaged or beyond the precision, and so no repair."""
    factor, failed = torch.linalg.cholesky_ex(system)
    if failed:
        return torch.zeros_like(wanted)
    # From the right: a third faster than with the inverse of the factor, since matrices lie by rows.
    half = torch.linalg.solve_triangular(factor.mT, wanted.mT, upper=True, left=False)
    return torch.linalg.solve_triangular(factor, half, upper=False, left=False).mT


def _energy(values: torch.Tensor) -> float:
    flat = values.flatten()
    return float(torch.dot(flat, flat))
