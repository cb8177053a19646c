"""How much each layer changes the residual stream that passes through it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pruning.architectures.anatomy import Anatomy
from pruning.architectures.lm_head import backbone
from pruning.calibration.cache import CacheKey, cached
from pruning.calibration.hooks import hooks, input_states, output_states
from pruning.lazy import torch
from pruning.progress import Progress, Reporter, silent
from pruning.text.tokens import Windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class BlockInfluencesKey(CacheKey["torch.Tensor"]):
    """The digest of the token windows that the block influences were computed on."""

    windows: str


def block_influences(
    model: PreTrainedModel, anatomy: Anatomy, windows: Windows, progress: Reporter = silent
) -> torch.Tensor:
    """Return the block influence 1 − E[cos(h_in, h_out)] of every layer (ShortGPT, eq. 1).

    Computed once for each model and text.

    Args:
        model: The model that reads the text.
        anatomy: Its anatomy.
        windows: The text; the mean is over all of its tokens.
        progress: Called before each window.

    Returns:
        `[layers]`, float64: 0 for a layer that turns nothing, at most 2.
    """
    key = BlockInfluencesKey(text_sha256=windows.text_sha256, windows=windows.digest)
    return cached(model, key, lambda: _block_influences(model, anatomy, windows, progress))


def _block_influences(
    model: PreTrainedModel, anatomy: Anatomy, windows: Windows, progress: Reporter
) -> torch.Tensor:
    total = torch.zeros(anatomy.layers, dtype=torch.float64)
    for states in residual_streams(model, anatomy, windows, progress):
        for layer in range(anatomy.layers):
            cosines = torch.nn.functional.cosine_similarity(states[layer], states[layer + 1], dim=-1)
            total[layer] += (1 - cosines).sum(dtype=torch.float64).cpu()
    return total / windows.tokens


@dataclass(frozen=True, kw_only=True)
class RelativeMagnitudesKey(CacheKey["torch.Tensor"]):
    """The digest of the token windows that the relative magnitudes were computed on."""

    windows: str


def relative_magnitudes(
    model: PreTrainedModel, anatomy: Anatomy, windows: Windows, progress: Reporter = silent
) -> torch.Tensor:
    """Return E[‖h_out − h_in‖ / ‖h_in‖] of every layer: how much it adds to what passes through it.

    After the relative magnitude of Samragh et al. (2023, "Weight subcloning"), over the input instead of the output. It
    depends less on the text than block influence does. Computed once for each model and text.

    See `block_influences` for the arguments.

    Returns:
        `[layers]`, float64: 0 for a layer that adds nothing.
    """

    def measure() -> torch.Tensor:
        total = torch.zeros(anatomy.layers, dtype=torch.float64)
        for states in residual_streams(model, anatomy, windows, progress):
            for layer in range(anatomy.layers):
                added = (states[layer + 1] - states[layer]).norm(dim=-1)
                shares = added / states[layer].norm(dim=-1).clamp_min(1e-12)
                total[layer] += shares.sum(dtype=torch.float64).cpu()
        return total / windows.tokens

    key = RelativeMagnitudesKey(text_sha256=windows.text_sha256, windows=windows.digest)
    return cached(model, key, measure)


def angular_distances(
    model: PreTrainedModel, anatomy: Anatomy, windows: Windows, length: int, progress: Reporter = silent
) -> torch.Tensor:
    """Return E[arccos(cos(h_l, h_{l+length}))] / π for every run of `length` layers.

    Eq. 5 of Gromov et al. (2024), over all tokens instead of each text's last one.

    Args:
        model: The model that reads the text.
        anatomy: Its anatomy.
        windows: The text.
        length: The number of layers in a run.
        progress: Called before each window.

    Returns:
        `[layers − length + 1]`, float64, by the first layer of the run: from 0 to 1.
    """
    starts = anatomy.layers - length + 1
    total = torch.zeros(starts, dtype=torch.float64)
    for states in residual_streams(model, anatomy, windows, progress):
        for start in range(starts):
            cosines = torch.nn.functional.cosine_similarity(states[start], states[start + length], dim=-1)
            total[start] += cosines.clamp(-1, 1).arccos().sum(dtype=torch.float64).cpu()
    return total / windows.tokens / torch.pi


def residual_streams(
    model: PreTrainedModel, anatomy: Anatomy, windows: Windows, progress: Reporter = silent
) -> Iterator[list[torch.Tensor]]:
    """Yield, for each window, the residual stream before every layer and after the last one.

    Yields:
        `layers + 1` tensors `[tokens, channels]` in float32, for the fitting windows, then the held-out ones.
    """
    all_windows = windows.fitting + windows.heldout
    for number, window in enumerate(all_windows):
        progress(Progress("Measuring the layers, windows", number, len(all_windows)))
        states: list[torch.Tensor] = []
        with torch.no_grad(), _recording(model, anatomy, states):
            backbone(model)(input_ids=window[None].to(model.device), use_cache=False)
        yield states


def _recording(
    model: PreTrainedModel, anatomy: Anatomy, states: list[torch.Tensor]
) -> AbstractContextManager[None]:
    """Append the input of every layer and the output of the last one to `states`."""

    def record_input(args: tuple, kwargs: Mapping[str, object]) -> None:
        states.append(input_states(args, kwargs)[0].float())

    def record_output(_args: tuple, _kwargs: Mapping[str, object], output: object) -> None:
        states.append(output_states(output)[0].float())

    layers = [anatomy.layer_module(layer) for layer in range(anatomy.layers)]
    return hooks(model, dict.fromkeys(layers, record_input), {layers[-1]: record_output})
