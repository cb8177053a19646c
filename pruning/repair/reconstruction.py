"""Reconstruction: train a pruned model layer by layer to follow the base model's residual stream.

Repair refits one projection in closed form. Reconstruction follows the data flow: each layer reads the
output of the pruned layers before it, damage included, and is trained to output the residual stream that the
base model has at that place. So it compensates for its own loss and for what remains of the losses before
it. It needs no labels and no logits, and the gradients of one layer at a time.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.architectures.anatomy import Anatomy, TensorSpec, anatomy_of
from pruning.architectures.families import CHANNEL, NEURON, QUERY, TOKEN
from pruning.architectures.placement import device_map
from pruning.calibration.hooks import hooks, input_states, output_states
from pruning.errors import RecipeError
from pruning.progress import Progress, Reporter, silent
from pruning.surgery import as_channels_first
from pruning.text.tokens import Windows

EPOCHS = 2
"""How often each layer reads the text."""

LEARNING_RATE = 0.01
"""The largest step of the optimizer, as a share of a tensor's root mean square."""

WARM_UP = 0.1
"""The share of all steps in which the learning rate rises; then it falls to zero along a cosine."""

DAMPINGS = (10.0, 1.0, 0.1, 0.01)
"""Candidates for λ, from the most cautious on."""

BETAS = (0.9, 0.95)
"""Adam's decay rates of gradients and of their squares, short because there are few steps."""

TRAINED_COMPONENTS = ("mlp",)
"""The components of a layer that are trained. The others stay shared with the base model."""

MOST_TOKENS = 65_536
"""Of longer texts, windows are taken evenly, so that the residual streams fit in memory."""


@dataclass(frozen=True)
class LayerFit:
    """The reconstruction of one layer.

    Attributes:
        layer: Its number in the pruned model.
        dampings: λ of the refitted output projections of the attention and of the MLP; None for no change.
        epoch: The epoch of training whose weights were kept, 0 if none was.
        lost_before: The share of the residual stream's energy that is lost on held-out text without it.
        lost_after: The share that is lost with it.
    """

    layer: int
    dampings: tuple[float | None, ...]
    epoch: int
    lost_before: float
    lost_after: float


@dataclass(frozen=True)
class ReconstructionResult:
    """The result of reconstructing a model.

    Attributes:
        tensors: New values by parameter name, in the model's shapes and precision; a parameter that is
            not named is best left as it is.
        layers: What was done to each layer.
    """

    tensors: Mapping[str, torch.Tensor]
    layers: tuple[LayerFit, ...]


def reconstruct(
    model: PreTrainedModel,
    base: PreTrainedModel,
    windows: Windows,
    kept_layers: Sequence[int] | None = None,
    seed: int = 0,
    progress: Reporter = silent,
    epochs: int = EPOCHS,
) -> ReconstructionResult:
    """Train the layers of a pruned model, one after the other, to follow the base model.

    Minimizes, over the tokens of the fitting windows, the mean of ‖h − ĥ‖² / max(‖h‖², ‖ĥ‖²), where ĥ is
    the residual stream after a layer of the pruned model and h that of the base model at the same
    place: if layers were removed behind it, before the next one that was kept. Each token weighs the same,
    because the norm that reads the stream discards its length. First the projections that write into
    the stream are refitted in closed form, then the MLP is trained by Adam, whose largest step is a
    share of each tensor's own size, one window at a time. Held-out windows choose how far to refit and
    which epoch to keep, the layer as it was included, so that none becomes worse on them.

    Cut without repair before: repair has read the held-out text too, so that its result looks better
    there than it is, and less is learned.

    Args:
        model: The pruned model. It is not changed; weights that are exactly zero stay zero in the result.
        base: The model that it was cut from. It is not changed.
        windows: The text.
        kept_layers: The base's number of each of the model's layers, ascending; if None, they are found by
            the tensors that the two models share.
        seed: Seed of the order of the windows.
        progress: Called before each refit and each epoch.
        epochs: How often each layer reads the text; 0 only refits in closed form.

    Returns:
        The new values, and what was done to each layer.

    Raises:
        RecipeError: The residual streams do not compare, or a model is on several devices.
    """
    _check_comparable(model, base)
    pruned_anatomy, base_anatomy = anatomy_of(model.config), anatomy_of(base.config)
    numbers = list(kept_layers) if kept_layers is not None else layers_kept(model, base)
    fitting, heldout = (_thinned(part) for part in (windows.fitting, windows.heldout))
    texts = [*fitting, *heldout]
    calls = {length: _layer_calls(base, base_anatomy, length) for length in {len(text) for text in texts}}
    states = [_embedded(model, pruned_anatomy, text) for text in texts]
    targets = [_embedded(base, base_anatomy, text) for text in texts]
    tensors: dict[str, torch.Tensor] = {}
    layers = []
    for layer, (number, next_number) in enumerate(
        zip(numbers, [*numbers[1:], base_anatomy.layers], strict=True)
    ):
        for passed in range(0 if layer == 0 else number, next_number):
            targets = _through(
                base.get_submodule(base_anatomy.layer_module(passed)),
                [calls[len(text)][passed] for text in texts],
                targets,
            )
        module = pruned_anatomy.layer_module(layer)
        student = _Student(
            layer=copy.deepcopy(model.get_submodule(module)).requires_grad_(False),
            calls=[calls[len(text)][number] for text in texts],
            states=states,
            targets=targets,
            fitting=len(fitting),
        )
        report = partial(progress, Progress("Reconstructing, layers", layer, len(numbers)))
        layers.append(_fit(student, pruned_anatomy, layer, epochs, seed, report))
        tensors |= {f"{module}.{name}": value for name, value in student.new_values.items()}
        states = _through(student.layer, student.calls, states)
    return ReconstructionResult(tensors, tuple(layers))


def _check_comparable(model: PreTrainedModel, base: PreTrainedModel) -> None:
    """Raise `RecipeError` if the residual streams do not compare, or a model is on several devices."""
    if device_map(model) or device_map(base):
        raise RecipeError(
            "The model is spread over several devices, and reconstruction trains on one. Use a smaller "
            "one, or repair instead."
        )
    pruned_units, base_units = anatomy_of(model.config).units, anatomy_of(base.config).units
    for kind in (CHANNEL, TOKEN):
        if pruned_units[kind] != base_units[kind]:
            raise RecipeError(
                "Reconstruction follows the base model's residual stream, but this model has "
                f"{pruned_units[kind]} {kind}s and the base has {base_units[kind]}. "
                "Leave one of the steps out."
            )


def _fit(
    student: "_Student", anatomy: Anatomy, layer: int, epochs: int, seed: int, report: Callable[[], None]
) -> LayerFit:
    """Refit the output projections of a layer, then train it."""
    prefix = anatomy.layer_module(layer) + "."
    specs = {spec.name.removeprefix(prefix): spec for spec in anatomy.of_layer(layer)}
    lost_before, dampings = student.error, []
    for kind in (QUERY, NEURON):
        report()
        projection = anatomy.family.output_projections[kind]
        dampings.append(student.refit(projection, specs[f"{projection}.weight"]))
    trained = [name for name, spec in specs.items() if spec.component in TRAINED_COMPONENTS]
    epoch = student.train(trained, epochs, seed + layer, report) if epochs else 0
    return LayerFit(layer, tuple(dampings), epoch, lost_before, student.error)


def layers_kept(model: PreTrainedModel, base: PreTrainedModel) -> list[int]:
    """Find out which layers of the base model a pruned model's layers were, ascending.

    By the tensors that they share: cutting leaves every tensor that it does not touch.

    Raises:
        RecipeError: The depths differ, and a layer shares nothing.
    """
    pruned_anatomy, base_anatomy = anatomy_of(model.config), anatomy_of(base.config)
    if pruned_anatomy.layers == base_anatomy.layers:
        return list(range(base_anatomy.layers))
    owners = {base.get_parameter(spec.name).data_ptr(): spec.layer for spec in base_anatomy.tensors}
    numbers = {}
    for spec in pruned_anatomy.tensors:
        owner = owners.get(model.get_parameter(spec.name).data_ptr())
        if spec.layer is not None and owner is not None:
            numbers[spec.layer] = owner
    if len(numbers) < pruned_anatomy.layers:
        raise RecipeError(
            "It is not known which layers of the base model these were: they share no tensor with it. "
            "Reconstruct before other steps change them."
        )
    return [numbers[layer] for layer in range(pruned_anatomy.layers)]


@dataclass(frozen=True)
class _Call:
    """Everything but the hidden states that a model passes to a layer: masks, positions."""

    args: tuple
    kwargs: Mapping[str, object]

    def __call__(self, layer: nn.Module, states: torch.Tensor) -> torch.Tensor:
        return output_states(layer(states, *self.args, **self.kwargs))


@dataclass
class _Student:
    """A layer of the pruned model, with its inputs and its targets in every window.

    Attributes:
        layer: A copy of the layer, which is changed in place.
        calls: How to call it on each window.
        states: Its inputs in each window, `[1, tokens, channels]`.
        targets: What it should output there, `[1, tokens, channels]`.
        fitting: How many windows, from the first on, it is fitted to; the others are held out.
        new_values: Its new parameters, by their names in the layer.
        error: The loss on held-out windows.
    """

    layer: nn.Module
    calls: Sequence[_Call]
    states: Sequence[torch.Tensor]
    targets: Sequence[torch.Tensor]
    fitting: int
    new_values: dict[str, torch.Tensor] = field(default_factory=dict)
    error: float = field(init=False)

    def __post_init__(self) -> None:
        self.error = self.heldout_loss()

    def refit(self, projection: str, spec: TensorSpec) -> float | None:
        """Add to an output projection what its inputs can predict of what the layer's output misses.

        argmin_V Σ_t ‖x_t V − (h_t − ĥ_t)‖² / E_t + λ̄ ‖V‖² with E_t = max(‖h_t‖², ‖ĥ_t‖²),
        λ̄ = λ · mean(diag H) and H = Σ_t x_t x_tᵀ / E_t: ridge regression toward the weights as they are,
        by Cholesky. The held-out windows, read by the layer itself, choose λ or no change.

        Args:
            projection: Its name in the layer.
            spec: Its weight in the anatomy, for the order of its axes.

        Returns:
            λ, or None for no change.
        """
        parameter = self.layer.get_parameter(f"{projection}.weight")
        before = parameter.detach().clone()
        mask = before != 0
        gram, cross = self._normal_equations(projection)
        scale = float(gram.diagonal().mean(dtype=torch.float64))
        errors: dict[float | None, float] = {None: self.error}
        best, previous = before, math.inf
        for damping in DAMPINGS if scale > 0 else ():
            damped = gram.clone()
            damped.diagonal().add_(damping * scale)
            factor, failed = torch.linalg.cholesky_ex(damped)
            if failed:
                break
            parameter.data = before + as_channels_first(torch.cholesky_solve(cross, factor).T, spec) * mask
            error = self.heldout_loss()
            if error >= previous:
                break
            if error < min(errors.values()):
                best = parameter.data
            errors[damping] = previous = error
        parameter.data = best
        if best is not before:
            self.new_values[f"{projection}.weight"] = best.clone()  # Training works in place.
        self.error = min(errors.values())
        return min(errors, key=errors.__getitem__)

    def _normal_equations(self, projection: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return H, `[inputs, inputs]`, and Σ_t x_t (h_t − ĥ_t)ᵀ / E_t, `[inputs, channels]`."""
        gram = cross = torch.zeros(())
        inputs: list[torch.Tensor] = []

        def record(args: tuple, _kwargs: Mapping[str, object]) -> None:
            inputs[:] = [args[0]]

        for window in range(self.fitting):
            with torch.no_grad(), hooks(self.layer, {projection: record}):
                output = self.calls[window](self.layer, self.states[window])
            weights = self._energy(window, output).rsqrt().flatten()[:, None]
            rows = inputs[0].reshape(len(weights), -1) * weights
            gram = gram + rows.T @ rows
            cross = cross + rows.T @ ((self.targets[window] - output)[0] * weights)
        return gram, cross

    def train(self, names: Sequence[str], epochs: int, seed: int, report: Callable[[], None]) -> int:
        """Train the named parameters, and keep those of the epoch that is best on the held-out windows.

        Returns:
            The epoch, from 1 on; 0 if none was better than before.
        """
        parameters = [self.layer.get_parameter(name).requires_grad_() for name in names]
        sparse = [(p, p != 0) for p in parameters if p.ndim == 2 and bool((p == 0).any())]
        optimizer = torch.optim.Adam(
            [
                {"params": [p], "lr": LEARNING_RATE * float(p.detach().square().mean().sqrt())}
                for p in parameters
            ],
            betas=BETAS,
        )
        steps = epochs * self.fitting
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _lr_share(step, steps))
        generator = torch.Generator().manual_seed(seed % 2**63)
        errors = [self.error]
        best = {name: self.layer.get_parameter(name).detach().clone() for name in names}
        for _ in range(epochs):
            report()
            for window in torch.randperm(self.fitting, generator=generator).tolist():
                with torch.enable_grad():
                    self.loss(window).backward()
                for parameter, mask in sparse:
                    if parameter.grad is not None:
                        parameter.grad.mul_(mask)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            errors.append(self.heldout_loss())
            if errors[-1] < min(errors[:-1]):
                best = {name: self.layer.get_parameter(name).detach().clone() for name in names}
        for name, value in best.items():
            self.layer.get_parameter(name).data = value
        self.layer.requires_grad_(False)
        self.error = min(errors)
        best_epoch = errors.index(self.error)
        if best_epoch:
            self.new_values |= best
        return best_epoch

    def loss(self, window: int) -> torch.Tensor:
        """Return the mean over the tokens of a window of ‖h − ĥ‖² / max(‖h‖², ‖ĥ‖²), a scalar."""
        output = self.calls[window](self.layer, self.states[window])
        missing = (output - self.targets[window]).square().sum(dim=-1)
        return (missing / self._energy(window, output)).mean()

    def _energy(self, window: int, output: torch.Tensor) -> torch.Tensor:
        """Return max(‖h‖², ‖ĥ‖²) of each token, `[1, tokens]`."""
        target = self.targets[window].square().sum(dim=-1)
        tiny = torch.finfo(target.dtype).tiny
        return torch.maximum(target, output.detach().square().sum(dim=-1)).clamp_min(tiny)

    @torch.no_grad()
    def heldout_loss(self) -> float:
        """Return the mean loss over all held-out tokens."""
        windows = range(self.fitting, len(self.states))
        tokens = [self.states[window].shape[1] for window in windows]
        total = sum(float(self.loss(w)) * count for w, count in zip(windows, tokens, strict=True))
        return total / sum(tokens)


def _lr_share(step: int, steps: int) -> float:
    """Return the share of the largest learning rate: up linearly, then down along half a cosine."""
    return min((step + 1) / max(1, WARM_UP * steps), (1 + math.cos(math.pi * min(1, step / steps))) / 2)


@torch.no_grad()
def _through(layer: nn.Module, calls: Sequence[_Call], states: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [call(layer, state) for call, state in zip(calls, states, strict=True)]


def _thinned(windows: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    return windows[:: -(-sum(map(len, windows)) // MOST_TOKENS) or 1]


def _layer_calls(model: PreTrainedModel, anatomy: Anatomy, length: int) -> list[_Call]:
    """Record how a model calls each of its layers on a window of some length."""
    calls: list[_Call] = []

    def record(args: tuple, kwargs: Mapping[str, object]) -> None:
        others = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        calls.append(_Call(args[1:], others))

    layers = (anatomy.layer_module(layer) for layer in range(anatomy.layers))
    with hooks(model, dict.fromkeys(layers, record)), torch.no_grad():
        ids = torch.zeros(1, length, dtype=torch.long, device=model.device)
        model.base_model(input_ids=ids, use_cache=False)
    return calls


class _StopForward(Exception):
    """Raised in a hook when the rest of the forward pass is not needed."""


def _embedded(model: PreTrainedModel, anatomy: Anatomy, window: torch.Tensor) -> torch.Tensor:
    """Return the input of the first layer on a window, `[1, tokens, channels]`."""
    states: list[torch.Tensor] = []

    def record(args: tuple, kwargs: Mapping[str, object]) -> None:
        states.append(input_states(args, kwargs))
        raise _StopForward

    with suppress(_StopForward), hooks(model, {anatomy.layer_module(0): record}), torch.no_grad():
        model.base_model(input_ids=window[None].to(model.device), use_cache=False)
    return states[0]
