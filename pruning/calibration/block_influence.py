"""How much each layer changes the residual stream that passes through it."""

from __future__ import annotations

from dataclasses import dataclass

from pruning.calibration.cache import CacheKey, cached
from pruning.calibration.residual_streams import ResidualStreams
from pruning.lazy import torch


@dataclass(frozen=True, kw_only=True)
class BlockInfluencesKey(CacheKey["torch.Tensor"]):
    """The digest of the token windows that the block influences were computed on."""

    windows: str


def block_influences(streams: ResidualStreams) -> torch.Tensor:
    """Return the block influence 1 − E[cos(h_in, h_out)] of every layer (ShortGPT, eq. 1).

    Computed once for each model and text.

    Args:
        streams: The residual streams of the model on a text; the mean is over all of its tokens.

    Returns:
        `[layers]`, float64: 0 for a layer that turns nothing, at most 2.
    """
    windows, layers = streams.windows, streams.anatomy.layers

    def measure() -> torch.Tensor:
        total = torch.zeros(layers, dtype=torch.float64)
        for states in streams:
            for layer in range(layers):
                cosines = torch.nn.functional.cosine_similarity(states[layer], states[layer + 1], dim=-1)
                total[layer] += (1 - cosines).sum(dtype=torch.float64).cpu()
        return total / windows.tokens

    key = BlockInfluencesKey(text_sha256=windows.text_sha256, windows=windows.digest)
    return cached(streams.model, key, measure)


@dataclass(frozen=True, kw_only=True)
class RelativeMagnitudesKey(CacheKey["torch.Tensor"]):
    """The digest of the token windows that the relative magnitudes were computed on."""

    windows: str


def relative_magnitudes(streams: ResidualStreams) -> torch.Tensor:
    """Return E[‖h_out − h_in‖ / ‖h_in‖] of every layer: how much it adds to what passes through it.

    After the relative magnitude of Samragh et al. (2023, "Weight subcloning"), over the input instead of the output. It
    depends less on the text than block influence does. Computed once for each model and text.

    See `block_influences` for the argument.

    Returns:
        `[layers]`, float64: 0 for a layer that adds nothing.
    """

    windows, layers = streams.windows, streams.anatomy.layers

    def measure() -> torch.Tensor:
        total = torch.zeros(layers, dtype=torch.float64)
        for states in streams:
            for layer in range(layers):
                added = (states[layer + 1] - states[layer]).norm(dim=-1)
                shares = added / states[layer].norm(dim=-1).clamp_min(1e-12)
                total[layer] += shares.sum(dtype=torch.float64).cpu()
        return total / windows.tokens

    key = RelativeMagnitudesKey(text_sha256=windows.text_sha256, windows=windows.digest)
    return cached(streams.model, key, measure)


def angular_distances(streams: ResidualStreams, length: int) -> torch.Tensor:
    """Return E[arccos(cos(h_l, h_{l+length}))] / π for every run of `length` layers.

    Eq. 5 of Gromov et al. (2024), over all tokens instead of each text's last one.

    Args:
        streams: The residual streams of the model on a text.
        length: The number of layers in a run.

    Returns:
        `[layers − length + 1]`, float64, by the first layer of the run: from 0 to 1.
    """
    starts = streams.anatomy.layers - length + 1
    total = torch.zeros(starts, dtype=torch.float64)
    for states in streams:
        for start in range(starts):
            cosines = torch.nn.functional.cosine_similarity(states[start], states[start + length], dim=-1)
            total[start] += cosines.clamp(-1, 1).arccos().sum(dtype=torch.float64).cpu()
    return total / streams.windows.tokens / torch.pi
