"""Reconstruction: train a pruned model layer by layer to follow the base model's residual stream.

Repair refits one projection in closed form. Reconstruction follows the data flow: each layer reads the
output of the pruned layers before it, damage included, and is trained to output the residual stream that the
base model has at that place. So it compensates for its own loss and for what remains of the losses before
it. It needs no labels and no logits, and the gradients of one layer at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pruning.architectures.anatomy import Anatomy, anatomy_of
from pruning.architectures.families import CHANNEL, NEURON, QUERY, TOKEN
from pruning.architectures.lm_head import backbone
from pruning.architectures.placement import device_map
from pruning.calibration.hooks import hooks, input_states
from pruning.calibration.residual_streams import LayerCall
from pruning.errors import RecipeError
from pruning.lazy import accelerate, nn, torch
from pruning.progress import Progress, Reporter, silent
from pruning.repair.layer_student import LayerStudent
from pruning.text.tokens import Windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EPOCHS = 2
"""How often each layer reads the text."""

TRAINED_COMPONENTS = ("mlp",)
"""The components of a layer that are trained. The others stay shared with the base model."""

MOST_TOKENS = 65_536
"""Of longer texts, windows are taken evenly, so that the residual streams fit in memory."""


@dataclass(frozen=True)
class LayerFit:
    """The reconstruction of one layer.

    Attributes:
        layer: Its number in the pruned model.
        dampings: λ of each output projection that was refitted; None for no change.
        epoch: The epoch of training whose weights were kept, 0 if none was.
        lost_before: The share of the residual stream's energy that is lost on held-out text without it.
        lost_after: The share that is lost with it.
    """

    layer: int
    dampings: tuple[float | None, ...]
    epoch: int
    lost_before: float
    lost_after: float


class EndEarly(Exception):
    """Raised by a reporter to end a reconstruction. The layers that are done by then are its result."""


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
    kinds: Sequence[str] = (QUERY, NEURON),
) -> ReconstructionResult:
    """Train the layers of a pruned model, one after the other, to follow the base model.

    Minimizes, over the tokens of the fitting windows, the mean of ‖h − ĥ‖² / max(‖h‖², ‖ĥ‖²), where ĥ is
    the residual stream after a layer of the pruned model and h that of the base model at the same
    place: if layers were removed behind it, before the next one that was kept. Each token weighs the same,
    because the norm that reads the stream discards its length. First the projections that write into
    the stream are refitted in closed form, then the MLP is trained by Adam, whose largest step is a
    share of each tensor's own size, one window at a time. Held-out windows choose how far to refit and
    which epoch to keep, the layer as it was included, so that none becomes worse on them. All of this is computed in
    float32, one layer at a time, even if the models are in 16 bits.

    Cut without repair before: repair has read the held-out text too, so that its result looks better
    there than it is, and less is learned.

    Args:
        model: The pruned model. It is not changed; weights that are exactly zero stay zero in the result.
        base: The model that it was cut from. It is not changed.
        windows: The text.
        kept_layers: The base's number of each of the model's layers, ascending; None if it has all of them.
        seed: Seed of the order of the windows.
        progress: Called before a layer or a model reads a window. It may raise `EndEarly`.
        epochs: How often each layer reads the text; 0 only refits in closed form.
        kinds: The kinds of units whose output projections are refitted, in this order.

    Returns:
        The new values, and what was done to each layer.

    Raises:
        RecipeError: The residual streams do not compare, or a model is on several devices.
    """
    tensors: dict[str, torch.Tensor] = {}
    fits: list[LayerFit] = []
    layers = _reconstructed(model, base, windows, kept_layers, seed, progress, epochs, kinds)
    with suppress(EndEarly):
        for fit, new_values in layers:
            fits.append(fit)
            tensors |= new_values
    return ReconstructionResult(tensors, tuple(fits))


def _reconstructed(
    model: PreTrainedModel,
    base: PreTrainedModel,
    windows: Windows,
    kept_layers: Sequence[int] | None,
    seed: int,
    progress: Reporter,
    epochs: int,
    kinds: Sequence[str],
) -> Iterator[tuple[LayerFit, dict[str, torch.Tensor]]]:
    """Yield what was done to each layer, and its new values by parameter name; see `reconstruct`."""
    _check_comparable(model, base)
    pruned_anatomy, base_anatomy = anatomy_of(model.config), anatomy_of(base.config)
    numbers = _numbers_in_base(pruned_anatomy, base_anatomy, kept_layers)
    fitting, heldout = (_thinned(part) for part in (windows.fitting, windows.heldout))
    texts = [*fitting, *heldout]
    report = partial(progress, Progress("Preparing the reconstruction"))
    calls = {}
    for length in {len(text) for text in texts}:
        report()
        calls[length] = _layer_calls(base, base_anatomy, length)
    states = _embedded(model, pruned_anatomy, texts, report)
    targets = _embedded(base, base_anatomy, texts, report)
    if states[0].shape != (1, len(texts[0]), base_anatomy.units[CHANNEL]):
        raise RecipeError(
            f"Reconstruction follows one residual stream, and the layers of {base.config.model_type} pass on "
            "several. Use repair instead."
        )
    for layer, (number, next_number) in enumerate(
        zip(numbers, [*numbers[1:], base_anatomy.layers], strict=True)
    ):
        report = partial(progress, Progress("Reconstructing, layers", layer, len(numbers)))
        for passed in range(0 if layer == 0 else number, next_number):
            targets = _through(
                _in_float32(base.get_submodule(base_anatomy.layer_module(passed))),
                [calls[len(text)][passed] for text in texts],
                targets,
                report,
            )
        module = pruned_anatomy.layer_module(layer)
        student = LayerStudent(
            layer=copy.deepcopy(model.get_submodule(module)).float().requires_grad_(False),
            calls=[calls[len(text)][number] for text in texts],
            states=states,
            targets=targets,
            fitting=len(fitting),
            report=report,
        )
        fit = _fit(student, pruned_anatomy, layer, kinds, epochs, seed)
        yield fit, {f"{module}.{name}": value.to(model.dtype) for name, value in student.new_values.items()}
        states = _through(student.layer, student.calls, states, report)


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
    student: LayerStudent, anatomy: Anatomy, layer: int, kinds: Sequence[str], epochs: int, seed: int
) -> LayerFit:
    """Refit the output projections of a layer, then train it."""
    prefix = anatomy.layer_module(layer) + "."
    specs = {spec.name.removeprefix(prefix): spec for spec in anatomy.of_layer(layer)}
    lost_before, dampings = student.error, []
    for projection in filter(None, map(anatomy.family.output_projections.get, kinds)):
        # A layer of another kind lacks it, and some write elsewhere than into the residual stream.
        weight = specs.get(f"{projection}.weight")
        if weight is not None and len(weight.labels) == 2 and CHANNEL in weight.labels:
            dampings.append(student.refit(projection, weight))
    trained = [name for name, spec in specs.items() if spec.component in TRAINED_COMPONENTS]
    epoch = student.train(trained, epochs, seed + layer) if trained and epochs else 0
    return LayerFit(layer, tuple(dampings), epoch, lost_before, student.error)


def _numbers_in_base(pruned: Anatomy, base: Anatomy, kept_layers: Sequence[int] | None) -> Sequence[int]:
    """Return the base's number of each layer. Raises `RecipeError` if it is not known."""
    numbers = range(base.layers) if kept_layers is None else kept_layers
    if len(numbers) != pruned.layers:
        raise RecipeError(
            f"The model has {pruned.layers} layers, and it is not known which of the base's {base.layers} they "
            "were. Reconstruct in the recipe that removes the layers."
        )
    return numbers


def _in_float32(layer: nn.Module) -> nn.Module:
    """Return a layer that computes in float32: itself, or a copy."""
    if all(values.dtype == torch.float32 for values in layer.parameters()):
        return layer
    return copy.deepcopy(layer).float()


def _through(
    layer: nn.Module,
    calls: Sequence[LayerCall],
    states: Sequence[torch.Tensor],
    report: Callable[[], None],
) -> list[torch.Tensor]:
    """Return what a layer outputs for its inputs in each window."""
    with torch.no_grad():
        outputs = []
        for call, state in zip(calls, states, strict=True):
            report()
            outputs.append(call(layer, state))
        return outputs


def _thinned(windows: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    return windows[:: -(-sum(map(len, windows)) // MOST_TOKENS) or 1]


def _layer_calls(model: PreTrainedModel, anatomy: Anatomy, length: int) -> list[LayerCall]:
    """Record how a model calls each of its layers on a window of some length, in float32."""
    calls: list[LayerCall] = []

    def record(args: tuple, kwargs: Mapping[str, object]) -> None:
        calls.append(LayerCall.of(*accelerate.utils.convert_to_fp32((args, kwargs))))

    layers = (anatomy.layer_module(layer) for layer in range(anatomy.layers))
    with hooks(model, dict.fromkeys(layers, record)), torch.no_grad():
        ids = torch.zeros(1, length, dtype=torch.long, device=model.device)
        backbone(model)(input_ids=ids, use_cache=False)
    return calls


class _StopForward(Exception):
    """Raised in a hook when the rest of the forward pass is not needed."""


def _embedded(
    model: PreTrainedModel, anatomy: Anatomy, windows: Sequence[torch.Tensor], report: Callable[[], None]
) -> list[torch.Tensor]:
    """Return the input of the first layer on each window, `[1, tokens, channels]` in float32."""
    states: list[torch.Tensor] = []

    def record(args: tuple, kwargs: Mapping[str, object]) -> None:
        states.append(input_states(args, kwargs).float())
        raise _StopForward

    with hooks(model, {anatomy.layer_module(0): record}), torch.no_grad():
        for window in windows:
            report()
            with suppress(_StopForward):
                backbone(model)(input_ids=window[None].to(model.device), use_cache=False)
    return states
