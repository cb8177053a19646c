"""Repair in closed form: refit a projection so that the kept neurons make up for the removed ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from pruning.calibration.statistics import InputGram
from pruning.lazy import torch

TOGETHER = 2
"""How many projections are repaired at the same time."""
MOST_TOGETHER = 64 * 2**20
"""Second moments of more bytes are handled one at a time: they keep all cores busy, and take memory."""


@dataclass(frozen=True)
class Repair:
    """A repaired projection.

    Attributes:
        weight: `[channels, kept]`, float32, or None if no repair did better.
        damping: λ, or None for no repair.
        error_before: The share of the energy of the projection's output on held-out rows that is lost
            without the repair.
        error_after: The share that is lost with it.
    """

    weight: torch.Tensor | None
    damping: float | None
    error_before: float
    error_after: float


def repair_projection(moments: InputGram, weight: torch.Tensor, kept: torch.Tensor) -> Repair:
    """Refit a projection to the neurons that are kept.

    Solves argmin_V ‖X_k V − X Wᵀ‖² + λ̄ ‖V − W_kᵀ‖² with H = XᵀX, as V = W_kᵀ + C: ridge regression
    toward the untouched weights. C = (H_kk + λ̄ I)⁻¹ H_kr W_rᵀ is also −P_kr P_rr⁻¹ W_rᵀ with
    P = (H + λ̄ I)⁻¹ over all neurons (block inversion; Golub & Van Loan, §2.1.4). If P is there already, as it
    is in saved statistics, what remains to solve is as small as the cut. Held-out rows decide between this
    and no repair.

    Args:
        moments: The second moments of the projection's inputs.
        weight: Its weight, `[channels, neurons]`.
        kept: The neurons that are kept, ascending.

    Returns:
        The new weight, and what is lost with and without it.
    """
    kept = kept.to(weight.device)
    is_kept = torch.zeros(weight.shape[1], dtype=torch.bool, device=weight.device)
    is_kept[kept] = True
    removed = (~is_kept).nonzero().squeeze(1)
    removed_weight = weight.index_select(1, removed).float().T
    change = _change(moments, kept, removed, removed_weight)
    missing = moments.heldout.index_select(1, removed) @ removed_weight
    before = _energy(missing)
    after = _energy(moments.heldout.index_select(1, kept) @ change - missing)
    energy = max(_energy(moments.heldout @ weight.float().T), 1e-30)
    if not after < before:
        return Repair(None, None, before / energy, before / energy)
    return Repair(
        weight.index_select(1, kept).float() + change.T, moments.damping, before / energy, after / energy
    )


def repair_projections(
    problems: Iterable[tuple[InputGram, torch.Tensor, torch.Tensor]],
) -> Iterator[Repair]:
    """Repair several projections, small ones two at a time on a CPU: a third faster, since neither fills all cores.

    Args:
        problems: The arguments of `repair_projection` for each. The next is asked for when it is begun.

    Yields:
        The repairs, in order.
    """
    with ThreadPoolExecutor(TOGETHER) as threads:
        running: deque[Future[Repair]] = deque()
        for moments, weight, kept in problems:
            running.append(threads.submit(repair_projection, moments, weight, kept))
            on_cpu = weight.device.type == "cpu"
            most = TOGETHER if on_cpu and moments.gram.nbytes <= MOST_TOGETHER else 1
            while len(running) >= most:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def _change(
    moments: InputGram, kept: torch.Tensor, removed: torch.Tensor, removed_weight: torch.Tensor
) -> torch.Tensor:
    """Compute C, `[kept, channels]`, by the smaller of both systems that are known; `removed_weight` is W_rᵀ."""
    if moments.has_inverse and len(removed) <= len(kept):
        rows = moments.inverse.index_select(0, removed)
        return -(rows.index_select(1, kept).T @ _solve(rows.index_select(1, removed), removed_weight))
    rows = moments.gram.index_select(0, kept)
    system = rows.index_select(1, kept)
    system.diagonal().add_(moments.ridge or 1.0)
    return _solve(system, rows.index_select(1, removed) @ removed_weight)


def _solve(system: torch.Tensor, right_side: torch.Tensor) -> torch.Tensor:
    """Solve by Cholesky; zero, and so no repair, if the system is damaged or beyond the precision."""
    factor, failed = torch.linalg.cholesky_ex(system)
    if failed:
        return torch.zeros_like(right_side)
    # From the right: a third faster than with the inverse of the factor, since matrices lie by rows.
    half = torch.linalg.solve_triangular(factor.mT, right_side.mT, upper=True, left=False)
    return torch.linalg.solve_triangular(factor, half, upper=False, left=False).mT


def _energy(values: torch.Tensor) -> float:
    flat = values.flatten()
    return float(torch.dot(flat, flat))
