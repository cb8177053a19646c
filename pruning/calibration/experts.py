"""How much the experts of a mixture and their neurons contribute, observed where the router's choice reaches them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from pruning.architectures.anatomy import Anatomy
from pruning.architectures.families import CHANNEL, EXPERT, NEURON
from pruning.architectures.lm_head import backbone
from pruning.calibration.hooks import hooks
from pruning.calibration.statistics import InputMoments
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
    sums = {
        layer: _Saliency(model.get_submodule(name), anatomy.units[EXPERT], weighted)
        for layer, name in expert_layers(anatomy).items()
    }
    _watch(model, anatomy, windows, sums, progress)
    return {layer: each.mean() for layer, each in sums.items()}


ExpertMoments = Mapping[int, Sequence[InputMoments]]
"""For each layer with experts, the moments of each expert's neurons."""


def expert_moments(
    model: PreTrainedModel, anatomy: Anatomy, windows: Windows, progress: Reporter = silent
) -> ExpertMoments:
    """Return the moments of each expert's neurons, over all tokens that its router sends to it.

    Raises:
        RecipeError: The experts of this type are not called with the router's choice.
    """
    sums = _activations(model, anatomy, windows, progress)
    return {layer: each.moments() for layer, each in sums.items()}


def expert_input_norms(
    model: PreTrainedModel, anatomy: Anatomy, windows: Windows, progress: Reporter = silent
) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Return √E[x²] of what each expert's matrices read, over all tokens that its router sends to it.

    Returns:
        For each layer with experts, that of the states `[experts, channels]` and that of the neurons
        `[experts, neurons]`. An expert that got no token has ones.

    Raises:
        RecipeError: The experts of this type are not called with the router's choice.
    """
    sums = _activations(model, anatomy, windows, progress)
    return {layer: each.input_norms() for layer, each in sums.items()}


def _activations(
    model: PreTrainedModel, anatomy: Anatomy, windows: Windows, progress: Reporter
) -> dict[int, _Activations]:
    """Return the sums over the activations of each layer with experts, after the model has read the text."""
    sums = {
        layer: _Activations(model.get_submodule(name), anatomy, layer)
        for layer, name in expert_layers(anatomy).items()
    }
    _watch(model, anatomy, windows, sums, progress)
    return sums


def _watch(
    model: PreTrainedModel,
    anatomy: Anatomy,
    windows: Windows,
    sums: Mapping[int, _Activations | _Saliency],
    progress: Reporter,
) -> None:
    """Read the text, and add what reaches the experts of each layer to its sums."""
    names = expert_layers(anatomy)
    all_windows = windows.fitting + windows.heldout
    with torch.no_grad(), hooks(model, {names[layer]: each.update for layer, each in sums.items()}):
        for number, window in enumerate(all_windows):
            progress(Progress("Measuring the experts, windows", number, len(all_windows)))
            backbone(model)(input_ids=window[None].to(model.device), use_cache=False)


class _Activations:
    """Running sums over the activations of the neurons in the experts of one layer.

    The experts are computed inside one module. Its own code computes the activations too, if the projection through
    which the neurons write passes some of them on unchanged: as many at a time as there are channels.
    """

    def __init__(self, experts: nn.Module, anatomy: Anatomy, layer: int) -> None:
        count, neurons, channels = (anatomy.units[kind] for kind in (EXPERT, NEURON, CHANNEL))
        specs = [spec for spec in anatomy.of_layer(layer) if spec.module == expert_layers(anatomy)[layer]]
        outputs = [spec for spec in specs if spec.labels[0] == EXPERT and anatomy.writes_neurons(spec)]
        if not outputs:
            raise RecipeError(
                f"The activations inside the experts of {anatomy.family.title} cannot be observed. Choose a criterion "
                "that reads no text."
            )
        output = outputs[0]
        silenced = [spec for spec in specs if spec.labels == (EXPERT, CHANNEL)]
        self._passing = []
        for start in range(0, neurons, channels):
            identity = torch.eye(channels, neurons).roll(start, dims=1)
            if output.labels[1] == NEURON:
                identity = identity.T
            module = copy.copy(experts)
            module._parameters = dict(experts._parameters)
            if hasattr(module, "config"):
                # The model's own loop over its experts reads any tensors; fused kernels ask for a layout.
                config: Any = copy.copy(module.config)
                config._experts_implementation = "eager"
                module.config = config
            for spec in (output, *silenced):
                name = spec.name.rpartition(".")[2]
                values = experts.get_parameter(name)
                new = identity.expand(count, -1, -1) if spec is output else torch.zeros(values.shape)
                module._parameters[name] = nn.Parameter(new.to(values), requires_grad=False)
            self._passing.append(module)
        self._neurons = neurons
        self._states = torch.zeros(count, channels, dtype=torch.float64)
        self._tokens = torch.zeros(count, 1, dtype=torch.float64)
        self._square = torch.zeros(count, neurons, dtype=torch.float64)
        self._means = torch.zeros(count, neurons, dtype=torch.float64)

    def update(self, args: tuple, kwargs: Mapping[str, object]) -> None:
        """Add the tokens of one window."""
        for expert, states, _ in _sent(args, kwargs, len(self._tokens)):
            parts = [_output_of(module, states, expert) for module in self._passing]
            activations = torch.cat(parts, dim=1)[:, : self._neurons].double().cpu()
            self._tokens[expert] += len(states)
            self._states[expert] += states.double().square().sum(dim=0).cpu()
            self._square[expert] += activations.square().sum(dim=0)
            self._means[expert] += activations.abs().mean(dim=0).square()

    def moments(self) -> list[InputMoments]:
        """Return the moments, one for each expert."""
        square = (self._square / self._tokens.clamp_min(1)).float()
        return [InputMoments(*rows) for rows in zip(square, self._means.sqrt().float(), strict=True)]

    def input_norms(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return √E[x²] of the states `[experts, channels]` and of the neurons `[experts, neurons]`."""
        tokens = self._tokens.clamp_min(1)
        norms = ((each / tokens).sqrt().float() for each in (self._states, self._square))
        states, neurons = (torch.where(self._tokens > 0, each, 1.0) for each in norms)
        return states, neurons


class _Saliency:
    """Running sums over the tokens that reach the experts of one layer."""

    def __init__(self, experts: nn.Module, count: int, weighted: bool) -> None:
        self._experts, self._weighted = experts, weighted
        self._sum = torch.zeros(count, dtype=torch.float64)
        self._tokens = torch.zeros(count, dtype=torch.float64)

    def update(self, args: tuple, kwargs: Mapping[str, object]) -> None:
        """Add the tokens of one window."""
        for expert, states, gate in _sent(args, kwargs, len(self._sum)):
            self._tokens[expert] += len(states)
            if self._weighted:
                outputs = _output_of(self._experts, states, expert)
                self._sum[expert] += (gate.double() * outputs.double().norm(dim=1)).sum().cpu()

    def mean(self) -> torch.Tensor:
        """Return the saliencies."""
        return self._sum / self._tokens.clamp_min(1) if self._weighted else self._tokens


def _output_of(experts: nn.Module, states: torch.Tensor, expert: int) -> torch.Tensor:
    """Return what one expert makes of tokens, `[tokens, channels]`: the module, sent to it alone."""
    chosen = torch.full((len(states), 1), expert, dtype=torch.long, device=states.device)
    forward = cast(Callable[..., torch.Tensor], type(experts).forward)
    return forward(experts, states, chosen, torch.ones_like(chosen, dtype=states.dtype))


def _sent(
    args: tuple, kwargs: Mapping[str, object], experts: int
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Yield each expert that was chosen, the states of its tokens `[tokens, channels]` and their weights `[tokens]`."""
    states, chosen, weights = _routing(args, kwargs, experts)
    for expert in chosen.unique().tolist():
        if not 0 <= expert < experts:
            continue  # Experts that compute nothing have numbers beyond.
        token, place = torch.where(chosen == expert)
        yield expert, states[token], weights[token, place if weights.shape == chosen.shape else expert]


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
        "Choose a criterion that reads no text."
    )
