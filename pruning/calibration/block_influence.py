"""How much layers change what passes through them."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from pruning.architectures.anatomy import Anatomy
from pruning.calibration.cache import CacheKey, cached
from pruning.calibration.hooks import first, hidden_states, hooks
from pruning.progress import Progress, Reporter, silent
from pruning.text.tokens import Windows


@dataclass(frozen=True, kw_only=True)
class BlockInfluencesKey(CacheKey[torch.Tensor]):
    """The digest of the token windows that the block influences were computed on."""

    windows: str


def block_influences(
    model: nn.Module, anatomy: Anatomy, windows: Windows, progress: Reporter = silent
) -> torch.Tensor:
    """1 − E[cos(h_in, h_out)] of every layer over all tokens, `[layers]` (ShortGPT, eq. 1).

    Computed once for a model and a text.
    """
    key = BlockInfluencesKey(text_sha256=windows.text_sha256, windows=windows.digest)
    return cached(model, key, lambda: _block_influences(model, anatomy, windows, progress))


def _block_influences(
    model: nn.Module, anatomy: Anatomy, windows: Windows, progress: Reporter
) -> torch.Tensor:
    total = torch.zeros(anatomy.layers, dtype=torch.float64)
    for states in residual_streams(model, anatomy, windows, progress):
        for layer in range(anatomy.layers):
            cosines = cosine_similarity(states[layer], states[layer + 1], dim=-1)
            total[layer] += (1 - cosines).sum(dtype=torch.float64).cpu()
    return total / windows.tokens


def angular_distances(
    model: nn.Module, anatomy: Anatomy, windows: Windows, length: int, progress: Reporter = silent
) -> torch.Tensor:
    """E[arccos(cos(h_l, h_{l+length}))] / π for every first layer l of a run, `[layers − length + 1]`
    (Gromov et al., 2024, eq. 5, over all tokens)."""
    starts = anatomy.layers - length + 1
    total = torch.zeros(starts, dtype=torch.float64)
    for states in residual_streams(model, anatomy, windows, progress):
        for start in range(starts):
            cosines = cosine_similarity(states[start], states[start + length], dim=-1)
            total[start] += cosines.clamp(-1, 1).arccos().sum(dtype=torch.float64).cpu()
    return total / windows.tokens / torch.pi


def residual_streams(
    model: nn.Module, anatomy: Anatomy, windows: Windows, progress: Reporter = silent
) -> Iterator[list[torch.Tensor]]:
    """For each window, the residual stream before every layer and after the last, `[tokens, channels]`."""
    every = windows.fitting + windows.heldout
    for done, window in enumerate(every):
        progress(Progress("Watching the layers, windows", done, len(every)))
        states: list[torch.Tensor] = []
        with torch.no_grad(), _recording(model, anatomy, states):
            model.base_model(input_ids=window[None].to(model.device), use_cache=False)
        yield states


def _recording(model: nn.Module, anatomy: Anatomy, states: list[torch.Tensor]):
    """Add to `states` what every layer is given, and what the last one returns."""

    def before(positional, named):
        states.append(hidden_states(positional, named)[0].float())

    def after(positional, named, output):
        states.append(first(output)[0].float())

    layers = [anatomy.layer_module(layer) for layer in range(anatomy.layers)]
    return hooks(model, dict.fromkeys(layers, before), {layers[-1]: after})
