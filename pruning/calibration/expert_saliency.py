"""How much each expert of a mixture contributes, observed where the router's choice reaches the experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast

from pruning.architectures.anatomy import Anatomy
from pruning.architectures.families import EXPERT
from pruning.architectures.lm_head import backbone
from pruning.calibration.hooks import hooks
from pruning.errors import RecipeError
from pruning.lazy import nn, torch
from pruning.progress import Progress, Reporter, silent
from pruning.text.tokens import Windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def expert_layers(anatomy: Anatomy) -> dict[int, str]:
    """Return the name of the module that holds the experts, for each layer that has some."""
    return {
        spec.layer: spec.module
        for spec in anatomy.tensors
        if spec.layer is not None and len(spec.shape) == 3 and spec.labels[0] == EXPERT
    }


def expert_saliencies(
    model: PreTrainedModel, anatomy: Anatomy, windows: Windows, weighted: bool, progress: Reporter = silent
) -> dict[int, torch.Tensor]:
    """Return the saliency of each expert, over all tokens that its router sends to it.

    - Weighted: Sⱼ = mean over these tokens x of gⱼ(x) · ‖fⱼ(x)‖₂, with the router's weight gⱼ and the expert's
      output fⱼ `[channels]` (REAP; Lasby et al., 2025).
    - Otherwise: how many tokens there are.

    Args:
        model: The model.
        anatomy: Its anatomy.
        windows: The text.
        weighted: Which of the two.
        progress: Called before each window.

    Returns:
        For each layer with experts, `[experts]`, float64.

    Raises:
        RecipeError: The experts of this type are not called with the router's choice.
    """
    names = expert_layers(anatomy)
    sums = {
        layer: _Saliency(model.get_submodule(name), anatomy.units[EXPERT], weighted)
        for layer, name in names.items()
    }
    all_windows = windows.fitting + windows.heldout
    with torch.no_grad(), hooks(model, {names[layer]: each.update for layer, each in sums.items()}):
        for number, window in enumerate(all_windows):
            progress(Progress("Measuring the experts, windows", number, len(all_windows)))
            backbone(model)(input_ids=window[None].to(model.device), use_cache=False)
    return {layer: each.mean() for layer, each in sums.items()}


class _Saliency:
    """Running sums over the tokens that reach the experts of one layer."""

    def __init__(self, experts: nn.Module, count: int, weighted: bool) -> None:
        self._experts, self._weighted = experts, weighted
        self._sum = torch.zeros(count, dtype=torch.float64)
        self._tokens = torch.zeros(count, dtype=torch.float64)

    def update(self, args: tuple, kwargs: Mapping[str, object]) -> None:
        """Add the tokens of one window."""
        states, chosen, weights = _routing(args, kwargs, len(self._sum))
        for expert in chosen.unique().tolist():
            if not 0 <= expert < len(self._sum):
                continue  # Experts that compute nothing have numbers beyond.
            token, place = torch.where(chosen == expert)
            self._tokens[expert] += len(token)
            if self._weighted:
                gate = weights[token, place] if weights.shape == chosen.shape else weights[token, expert]
                outputs = self._output(states[token], expert)
                self._sum[expert] += (gate.double() * outputs.double().norm(dim=1)).sum().cpu()

    def _output(self, states: torch.Tensor, expert: int) -> torch.Tensor:
        """Return what one expert makes of tokens, `[tokens, channels]`: the module, sent to it alone."""
        chosen = torch.full((len(states), 1), expert, dtype=torch.long, device=states.device)
        forward = cast(Callable[..., torch.Tensor], type(self._experts).forward)
        return forward(self._experts, states, chosen, torch.ones_like(chosen, dtype=states.dtype))

    def mean(self) -> torch.Tensor:
        """Return the saliencies."""
        return self._sum / self._tokens.clamp_min(1) if self._weighted else self._tokens


def _routing(
    args: tuple, kwargs: Mapping[str, object], experts: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return hidden states `[tokens, channels]`, the experts chosen `[tokens, k]` and their weights."""
    values = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
    if len(values) == 3:
        states, chosen, weights = values
        states = states.reshape(-1, states.shape[-1])
        whole = chosen.dtype in (torch.int64, torch.int32) and chosen.ndim == 2
        if whole and len(chosen) == len(states) and weights.shape in (chosen.shape, (len(states), experts)):
            return states, chosen, weights
    raise RecipeError(
        "The experts of this type of model are not called with the router's choice, so they cannot be watched. "
        "Choose the criterion random."
    )
