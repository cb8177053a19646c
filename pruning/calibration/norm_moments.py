"""Which channels carry the residual stream, observed at the norms that read it, and with how much energy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from pruning.architectures.anatomy import Anatomy
from pruning.architectures.lm_head import backbone
from pruning.calibration.cache import CacheKey, cached
from pruning.calibration.hooks import hooks
from pruning.lazy import torch
from pruning.progress import Progress, Reporter, silent
from pruning.text.tokens import Windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class NormMoments:
    """Moments of each channel at one norm, over all tokens of a text.

    Windows are not padded, so no padding is counted. The vectors are on the CPU, whatever the model runs
    on, because norms on several devices rank the same channels.

    Attributes:
        share: E[x² / mean(x²)] of the norm's input x, `[channels]`, float32: the channel's share of a
            token's energy, 1 on average.
        sequence: The L2 norm over windows of the mean over tokens of |y|, y the norm's output (Minitron's
            aggregation), `[channels]`, float32.
    """

    share: torch.Tensor
    sequence: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class NormMomentsKey(CacheKey[Mapping[str, NormMoments]]):
    """The digest of the token windows that the moments were computed on."""

    windows: str


def norm_moments(
    model: PreTrainedModel, anatomy: Anatomy, windows: Windows, progress: Reporter = silent
) -> Mapping[str, NormMoments]:
    """Return the moments at every norm over the channels, by the norm's module name.

    One pass over the text, computed once for each model and text.
    """
    key = NormMomentsKey(text_sha256=windows.text_sha256, windows=windows.digest)
    return cached(model, key, lambda: _norm_moments(model, anatomy, windows, progress))


class _NormSums:
    """Running sums over the tokens that pass one norm."""

    def __init__(self) -> None:
        self._share = self._means = torch.zeros(())
        self._tokens = 0

    def update(self, args: tuple, _kwargs: Mapping[str, object], output: object) -> None:
        """Add one window, `[1, tokens, channels]` on both sides of the norm."""
        inputs, outputs = args[0], cast(torch.Tensor, output)
        squares = inputs.detach()[0].float().square()
        means = squares.mean(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        self._share = self._share + (squares / means).sum(dim=0, dtype=torch.float64)
        self._means = self._means + outputs.detach()[0].float().abs().mean(dim=0).square()
        self._tokens += len(squares)

    def moments(self) -> NormMoments:
        return NormMoments((self._share / self._tokens).float().cpu(), self._means.sqrt().cpu())


def _norm_moments(
    model: PreTrainedModel, anatomy: Anatomy, windows: Windows, progress: Reporter
) -> Mapping[str, NormMoments]:
    sums = {spec.module: _NormSums() for spec in anatomy.norms}
    all_windows = windows.fitting + windows.heldout
    with torch.no_grad(), hooks(model, after={name: norm.update for name, norm in sums.items()}):
        for number, window in enumerate(all_windows):
            progress(Progress("Measuring the residual stream, windows", number, len(all_windows)))
            backbone(model)(input_ids=window[None].to(model.device), use_cache=False)
    return {name: norm.moments() for name, norm in sums.items()}
