"""What passes through the norms of the residual stream: which channels carry it, and how much of it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from pruning.architectures.anatomy import Anatomy
from pruning.calibration.cache import CacheKey, cached
from pruning.calibration.hooks import hooks
from pruning.progress import Progress, Reporter, silent
from pruning.text.tokens import Windows


@dataclass(frozen=True)
class NormMoments:
    """Of each channel at one norm, over all tokens of a text; vectors `[channels]` in float32.

    `share`: E[x² / mean(x²)] of the norm's input x, its share of a token's energy, 1 on average.
    `sequence`: the L2 norm over windows of the mean over tokens of |y|, y the norm's output (Minitron's
    aggregation). Padding is never seen: windows are not padded. On the CPU, whatever the model runs on,
    because norms on several devices rank the same channels.
    """

    share: torch.Tensor
    sequence: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class NormMomentsKey(CacheKey[Mapping[str, NormMoments]]):
    """The digest of the token windows that the moments were computed on."""

    windows: str


def norm_moments(
    model: nn.Module, anatomy: Anatomy, windows: Windows, progress: Reporter = silent
) -> Mapping[str, NormMoments]:
    """The moments at every norm, by the name of its module: one streamed pass.

    Computed once for a model and a text.
    """
    key = NormMomentsKey(text_sha256=windows.text_sha256, windows=windows.digest)
    return cached(model, key, lambda: _norm_moments(model, anatomy, windows, progress))


class _Norm:
    """Running sums over the tokens that pass one norm."""

    def __init__(self):
        self._share = self._means = self._tokens = 0

    def update(self, inputs: tuple[torch.Tensor], named: Mapping, outputs: torch.Tensor) -> None:
        """Take in one window, `[1, tokens, channels]` on both sides."""
        squares = inputs[0].detach()[0].float().square()
        means = squares.mean(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        self._share = self._share + (squares / means).sum(dim=0, dtype=torch.float64)
        self._means = self._means + outputs.detach()[0].float().abs().mean(dim=0).square()
        self._tokens += len(squares)

    def moments(self) -> NormMoments:
        return NormMoments((self._share / self._tokens).float().cpu(), self._means.sqrt().cpu())


def _norm_moments(
    model: nn.Module, anatomy: Anatomy, windows: Windows, progress: Reporter
) -> Mapping[str, NormMoments]:
    norms = {spec.module: _Norm() for spec in anatomy.norms}
    every = windows.fitting + windows.heldout
    with torch.no_grad(), hooks(model, after={name: norm.update for name, norm in norms.items()}):
        for done, window in enumerate(every):
            progress(Progress("Watching the residual stream, windows", done, len(every)))
            model.base_model(input_ids=window[None].to(model.device), use_cache=False)
    return {name: norm.moments() for name, norm in norms.items()}
