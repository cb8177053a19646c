"""Reconstruction: layer by layer, a pruned model learns to pass on what the dense model passes on.

Repair refits one projection in closed form. Reconstruction follows the data flow: each layer reads
what the pruned layers before it really say, damage included, and is trained to write the residual
stream that the dense model has at that place. So it makes good its own loss and what is left of the
losses before it. It needs no labels and no logits, and the gradients of one layer at a time.
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
from pruning.calibration.hooks import first, hidden_states, hooks
from pruning.errors import RecipeError
from pruning.progress import Progress, Reporter, silent
from pruning.surgery import as_channels_first
from pruning.text.tokens import Windows

EPOCHS = 2
"""How often each layer reads the text."""

RATE = 0.01
"""The largest step of the optimizer, as a share of a tensor's root mean square."""

WARM_UP = 0.1
"""The share of all steps in which the rate rises; then it falls to zero along a cosine."""

DAMPINGS = (10.0, 1.0, 0.1, 0.01)
"""Candidates for λ, from the most cautious on."""

BETAS = (0.9, 0.95)
"""Adam's memory of gradients and of their squares, short because there are few steps."""

TRAINED = ("mlp",)
"""The components of a layer that learn. The others stay shared with the base model."""

MOST_TOKENS = 65_536
"""Of longer texts, windows are taken evenly, so that the residual streams fit in memory."""


@dataclass(frozen=True)
class Reconstruction:
    """`tensors`: new values by parameter name, in the model's shapes and precision; what is not named
    is best left as it is. `notes`: for each layer, the share of the residual stream that is lost on
    held-out text before and after, and the epoch whose weights were kept (0: the layer as it was)."""

    tensors: Mapping[str, torch.Tensor]
    notes: tuple[dict, ...]


def reconstruct(
    model: PreTrainedModel,
    dense: PreTrainedModel,
    windows: Windows,
    seed: int = 0,
    progress: Reporter = silent,
    epochs: int = EPOCHS,
) -> Reconstruction:
    """Train the layers of a pruned model, one after the other, to follow the dense model.

    Minimises, over the tokens of the fitting windows, the mean of ‖h − ĥ‖² / max(‖h‖², ‖ĥ‖²), where ĥ is
    the residual stream after a layer of the pruned model and h that of the dense model at the same
    place: where layers were removed, before the next one that stayed. Each token weighs the same,
    because the norm that reads the stream forgets its length. First the projections that write into
    the stream are refitted in closed form, then the MLP is trained by Adam, whose largest step is a
    share of each tensor's own size, one window at a time. Held-out windows choose how far to refit and
    which epoch to keep, the layer as it was included, so that none becomes worse on them.

    Cut without repair before: repair has read the held-out text too, so that what it made looks better
    there than it is, and less is learned.

    Neither model is changed. Weights that are exactly zero stay zero. Raises `RecipeError` where the
    residual streams do not compare.
    """
    if device_map(model) or device_map(dense):
        raise RecipeError(
            "The model is spread over several devices, and reconstruction trains on one. Use a smaller "
            "one, or repair instead."
        )
    pruned, whole = anatomy_of(model.config), anatomy_of(dense.config)
    for kind in (CHANNEL, TOKEN):
        if pruned.units[kind] != whole.units[kind]:
            raise RecipeError(
                f"Reconstruction follows the dense model's residual stream, and its {kind}s are not those "
                f"of this model ({whole.units[kind]}, not {pruned.units[kind]}). Leave one of the steps out."
            )
    kept_layers = layers_kept(model, dense)
    fitting, heldout = (_thinned(part) for part in (windows.fitting, windows.heldout))
    every = [*fitting, *heldout]
    calls = {length: _layer_calls(dense, whole, length) for length in {len(window) for window in every}}
    states = [_embedded(model, pruned, window) for window in every]
    goals = [_embedded(dense, whole, window) for window in every]
    tensors, notes = {}, []
    for layer, (number, following) in enumerate(
        zip(kept_layers, [*kept_layers[1:], whole.layers], strict=True)
    ):
        for passed in range(0 if layer == 0 else number, following):
            goals = _through(
                dense.get_submodule(whole.layer_module(passed)),
                [calls[len(window)][passed] for window in every],
                goals,
            )
        student = _Student(
            layer=copy.deepcopy(model.get_submodule(pruned.layer_module(layer))).requires_grad_(False),
            calls=[calls[len(window)][number] for window in every],
            states=states,
            goals=goals,
            fitting=len(fitting),
        )
        place = Progress("Reconstructing, layers", layer, len(kept_layers))
        notes.append(_teach(student, pruned, layer, epochs, seed, partial(progress, place)))
        tensors |= {f"{pruned.layer_module(layer)}.{name}": value for name, value in student.learned.items()}
        states = _through(student.layer, student.calls, states)
    return Reconstruction(tensors, tuple(notes))


def _teach(
    student: "_Student", anatomy: Anatomy, layer: int, epochs: int, seed: int, report: Callable[[], None]
) -> dict:
    """Refit what a layer writes, then train it; a line for the report."""
    prefix = anatomy.layer_module(layer) + "."
    specs = {spec.name.removeprefix(prefix): spec for spec in anatomy.tensors if spec.layer == layer}
    before, dampings = student.error, []
    for kind in (QUERY, NEURON):
        report()
        write = anatomy.family.writes[kind]
        dampings.append(student.refit(write, specs[f"{write}.weight"]))
    trained = [name for name, spec in specs.items() if spec.component in TRAINED]
    epoch = student.train(trained, epochs, seed + layer, report) if epochs else 0
    return {
        "layer": layer,
        "dampings": dampings,
        "epoch": epoch,
        "lost_before": before,
        "lost_after": student.error,
    }


def layers_kept(model: PreTrainedModel, dense: PreTrainedModel) -> list[int]:
    """Which layers of the dense model a pruned model's layers were, ascending.

    Known by the tensors that they share: cutting leaves every tensor that it does not touch. Raises
    `RecipeError` where the depths differ and a layer shares nothing.
    """
    pruned, whole = anatomy_of(model.config), anatomy_of(dense.config)
    if pruned.layers == whole.layers:
        return list(range(whole.layers))
    owners = {dense.get_parameter(spec.name).data_ptr(): spec.layer for spec in whole.tensors}
    found = {
        spec.layer: owners[address]
        for spec in pruned.tensors
        if spec.layer is not None and (address := model.get_parameter(spec.name).data_ptr()) in owners
    }
    if len(found) < pruned.layers:
        raise RecipeError(
            "It is not known which layers of the dense model these were: they share no tensor with it. "
            "Reconstruct before other steps change them."
        )
    return [found[layer] for layer in range(pruned.layers)]


@dataclass(frozen=True)
class _Call:
    """Everything but the hidden states that a model gives to a layer: masks, positions."""

    positional: tuple
    named: Mapping[str, object]

    def __call__(self, layer: nn.Module, states: torch.Tensor) -> torch.Tensor:
        return first(layer(states, *self.positional, **self.named))


@dataclass
class _Student:
    """A layer, what it reads in every window and what it should write. The first `fitting` windows are
    to learn from, the others are held out. `error`: what is lost on these. `learned`: its new parameters,
    by their names in the layer."""

    layer: nn.Module
    calls: Sequence[_Call]
    states: Sequence[torch.Tensor]
    goals: Sequence[torch.Tensor]
    fitting: int
    learned: dict[str, torch.Tensor] = field(default_factory=dict)
    error: float = field(init=False)

    def __post_init__(self):
        self.error = self.lost_on_heldout()

    def refit(self, write: str, spec: TensorSpec) -> float | None:
        """Add to a writing projection what its inputs can say of what the layer's output misses.

        argmin_V Σ_t ‖x_t V − (h_t − ĥ_t)‖² / E_t + λ̄ ‖V‖² with E_t = max(‖h_t‖², ‖ĥ_t‖²),
        λ̄ = λ · mean(diag H) and H = Σ_t x_t x_tᵀ / E_t: ridge regression toward the weights as they are,
        by Cholesky. The held-out windows, read by the layer itself, choose λ, which is returned, or no
        change.
        """
        parameter = self.layer.get_parameter(f"{write}.weight")
        before = parameter.detach().clone()
        mask = before != 0
        gram, wanted = self._normal_equations(write)
        scale = float(gram.diagonal().mean(dtype=torch.float64))
        errors: dict[float | None, float] = {None: self.error}
        best, previous = before, math.inf
        for damping in DAMPINGS if scale > 0 else ():
            damped = gram.clone()
            damped.diagonal().add_(damping * scale)
            factor, failed = torch.linalg.cholesky_ex(damped)
            if failed:
                break
            parameter.data = before + as_channels_first(torch.cholesky_solve(wanted, factor).T, spec) * mask
            error = self.lost_on_heldout()
            if error >= previous:
                break
            if error < min(errors.values()):
                best = parameter.data
            errors[damping] = previous = error
        parameter.data = best
        if best is not before:
            self.learned[f"{write}.weight"] = best.clone()  # Training works in place.
        self.error = min(errors.values())
        return min(errors, key=errors.__getitem__)

    def _normal_equations(self, write: str) -> tuple[torch.Tensor, torch.Tensor]:
        gram = wanted = 0
        seen: dict[str, torch.Tensor] = {}
        for window in range(self.fitting):
            with torch.no_grad(), hooks(self.layer, {write: lambda inputs, _: seen.update(x=inputs[0])}):
                output = self.calls[window](self.layer, self.states[window])
            weights = self._energy(window, output).rsqrt().flatten()[:, None]
            rows = seen["x"].reshape(len(weights), -1) * weights
            gram = gram + rows.T @ rows
            wanted = wanted + rows.T @ ((self.goals[window] - output)[0] * weights)
        return gram, wanted

    def train(self, names: Sequence[str], epochs: int, seed: int, report: Callable[[], None]) -> int:
        """Train the named parameters; keep those of the epoch that is best on the held-out windows, and
        say which (0: none)."""
        parameters = [self.layer.get_parameter(name).requires_grad_() for name in names]
        sparse = [(p, p != 0) for p in parameters if p.ndim == 2 and bool((p == 0).any())]
        optimizer = torch.optim.Adam(
            [{"params": [p], "lr": RATE * float(p.detach().square().mean().sqrt())} for p in parameters],
            betas=BETAS,
        )
        steps = epochs * self.fitting
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
        generator = torch.Generator().manual_seed(seed % 2**63)
        errors = [self.error]
        best = {name: self.layer.get_parameter(name).detach().clone() for name in names}
        for _ in range(epochs):
            report()
            for window in torch.randperm(self.fitting, generator=generator).tolist():
                with torch.enable_grad():
                    self.lost(window).backward()
                for parameter, mask in sparse:
                    parameter.grad.mul_(mask)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            errors.append(self.lost_on_heldout())
            if errors[-1] < min(errors[:-1]):
                best = {name: self.layer.get_parameter(name).detach().clone() for name in names}
        for name, value in best.items():
            self.layer.get_parameter(name).data = value
        self.layer.requires_grad_(False)
        self.error = min(errors)
        kept = errors.index(self.error)
        if kept:
            self.learned |= best
        return kept

    def lost(self, window: int) -> torch.Tensor:
        """The mean over tokens of ‖h − ĥ‖² / max(‖h‖², ‖ĥ‖²)."""
        output = self.calls[window](self.layer, self.states[window])
        missing = (output - self.goals[window]).square().sum(dim=-1)
        return (missing / self._energy(window, output)).mean()

    def _energy(self, window: int, output: torch.Tensor) -> torch.Tensor:
        """max(‖h‖², ‖ĥ‖²) of each token, `[1, tokens]`."""
        goal = self.goals[window].square().sum(dim=-1)
        tiny = torch.finfo(goal.dtype).tiny
        return torch.maximum(goal, output.detach().square().sum(dim=-1)).clamp_min(tiny)

    @torch.no_grad()
    def lost_on_heldout(self) -> float:
        """The same over all held-out tokens."""
        windows = range(self.fitting, len(self.states))
        tokens = [self.states[window].shape[1] for window in windows]
        return sum(float(self.lost(w)) * count for w, count in zip(windows, tokens, strict=True)) / sum(
            tokens
        )


def _rate(step: int, steps: int) -> float:
    """The share of the largest rate: up in a straight line, then down along half a cosine."""
    return min((step + 1) / max(1, WARM_UP * steps), (1 + math.cos(math.pi * min(1, step / steps))) / 2)


@torch.no_grad()
def _through(layer: nn.Module, calls: Sequence[_Call], states: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [call(layer, state) for call, state in zip(calls, states, strict=True)]


def _thinned(windows: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    return windows[:: -(-sum(map(len, windows)) // MOST_TOKENS) or 1]


def _layer_calls(model: PreTrainedModel, anatomy: Anatomy, length: int) -> list[_Call]:
    """How a model calls each of its layers on a window of a length."""
    calls = []

    def see(positional: tuple, named: Mapping[str, object]) -> None:
        others = {name: value for name, value in named.items() if name != "hidden_states"}
        calls.append(_Call(positional[1:], others))

    layers = (anatomy.layer_module(layer) for layer in range(anatomy.layers))
    with hooks(model, dict.fromkeys(layers, see)), torch.no_grad():
        ids = torch.zeros(1, length, dtype=torch.long, device=model.device)
        model.base_model(input_ids=ids, use_cache=False)
    return calls


class _Enough(Exception):
    """The model need not read on."""


def _embedded(model: PreTrainedModel, anatomy: Anatomy, window: torch.Tensor) -> torch.Tensor:
    """What the first layer is given of a window, `[1, tokens, channels]`."""
    found = []

    def see(positional: tuple, named: Mapping[str, object]) -> None:
        found.append(hidden_states(positional, named))
        raise _Enough

    with suppress(_Enough), hooks(model, {anatomy.layer_module(0): see}), torch.no_grad():
        model.base_model(input_ids=window[None].to(model.device), use_cache=False)
    return found[0]
