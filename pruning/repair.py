"""Repair in closed form: what the kept neurons can say of what the removed ones said."""

from dataclasses import dataclass

import torch

from pruning.statistics import SiteGram

DAMPINGS = (0.001, 0.01, 0.1, 1.0)
"""Candidates for λ, as a share of the mean of the diagonal of H."""


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
    V = W_kᵀ + (H_kk + λ̄ I)⁻¹ H_kr W_rᵀ, by Cholesky in float64: ridge regression toward the
    untouched weights. The held-out rows choose λ, or no repair; the choice is then solved again
    over all rows.
    """
    neurons = weight.shape[1]
    removed = torch.ones(neurons, dtype=torch.bool, device=weight.device)
    removed[kept] = False
    removed = removed.nonzero().squeeze(1)
    lost = weight[:, removed].double()

    def solve(gram: torch.Tensor, damping: float) -> torch.Tensor:
        """What to add to the kept weights, `[kept, channels]`."""
        system = gram[kept][:, kept].double()
        system.diagonal().add_(damping * gram.diagonal().double().mean())
        factor = torch.linalg.cholesky(system)
        return torch.cholesky_solve(gram[kept][:, removed].double() @ lost.T, factor)

    rows_kept = site.heldout[:, kept].double()
    missing = site.heldout[:, removed].double() @ lost.T
    energy = (site.heldout @ weight.float().T).double().square().sum().clamp_min(1e-30)
    errors = {None: missing.square().sum()}
    if site.gram.diagonal().sum() > 0:
        for damping in DAMPINGS:
            change = solve(site.gram, damping)
            errors[damping] = (rows_kept @ change - missing).square().sum()
    best = min(errors, key=lambda damping: float(errors[damping]))
    repaired = None
    if best is not None:
        gram = site.gram + site.heldout.T @ site.heldout
        repaired = (weight[:, kept].double() + solve(gram, best).T).float()
    return Repair(
        weight=repaired,
        damping=best,
        error_before=float(errors[None] / energy),
        error_after=float(errors[best] / energy),
    )
