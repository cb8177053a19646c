"""Compare a pruned model with its base in which what was removed is masked by hooks.

The masks know nothing of the code that cuts. A tensor that got new values, by repair or training, is put back into
the base's, at the places of the units kept; every other one is the base's own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from pruning.architectures.anatomy import Anatomy, TensorSpec, anatomy_of
from pruning.architectures.families import EXPERT, GATE, LAYER, NEURON, TOKEN
from pruning.architectures.placement import device_map
from pruning.architectures.tiny_model import saved_buffers
from pruning.errors import SavingError
from pruning.lazy import LazyModule, torch
from pruning.progress import Progress, Reporter, silent
from pruning.surgery import KeptIndices, assemble, cut_tensor, kept_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pruning.architectures import masks
else:
    masks = LazyModule("pruning.architectures.masks")  # Its classes inherit from PyTorch's.

TOKENS_READ = 16
"""How many tokens both read."""

TOLERANCE = 0.01
"""The largest difference of logits, as a share of their standard deviation, that counts as rounding."""


def check_against_masked_base(
    model: PreTrainedModel,
    base: PreTrainedModel,
    layers: Sequence[int],
    units: KeptIndices,
    changed: Collection[str] = (),
    progress: Reporter = silent,
) -> None:
    """Refuse a pruned model that computes something else than its base with the removed units masked.

    Nothing is compared if nothing was removed; on accelerators and in 16 bits, where rounding is as large as a fault;
    or if gate and up lost different neurons, which no mask of the base does.

    Args:
        model: The pruned model.
        base: The model that it was cut from. It is not changed.
        layers: The number that each of the model's layers has in the base.
        units: The numbers that its other units have in the base, as `Pruned.units` holds them.
        changed: The base's names of the tensors with new values.
        progress: Called before each of the two models reads.

    Raises:
        SavingError: They differ.
    """
    on_cpu = base.device.type == model.device.type == "cpu" and not (device_map(model) or device_map(base))
    if not on_cpu or base.dtype != torch.float32 or GATE in units:
        return
    anatomy = anatomy_of(base.config)
    if not units and len(layers) == anatomy.layers:
        return
    kept = _by_layer_of_base(anatomy, layers, units)
    rows = kept[TOKEN][0] if TOKEN in kept else torch.arange(base.config.vocab_size)
    places = torch.linspace(len(rows) // 10, len(rows) - 1, TOKENS_READ).long()
    report = partial(progress, Progress("Checking the model against its base"))
    report()
    with torch.inference_mode():
        whole = assemble(base, base.config, _tensors_put_back(model, base, anatomy, kept, changed))
        with masks.masked(whole, anatomy, kept):
            expected = _logits(whole, rows[places])[:, rows]
        report()
        gap = (expected - _logits(model, places)).abs().max()
        if expected.isfinite().all() and not gap <= TOLERANCE * expected.std():
            raise SavingError(
                f"The pruned model does not compute what its base does without the removed units: its logits differ by "
                f"{float(gap):.2g}. This is a bug in Secateur: please report it with the recipe."
            )


def _logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits of one text, `[tokens, vocabulary]`."""
    logits: torch.Tensor = model(input_ids=ids[None], use_cache=False).logits
    return logits[0]


def _by_layer_of_base(anatomy: Anatomy, layers: Sequence[int], units: KeptIndices) -> KeptIndices:
    """Return the units kept for each layer of the base; a layer that was removed keeps all of its own."""
    kept: dict[str, Sequence[torch.Tensor]] = {}
    for kind, numbers in units.items():
        if kind == TOKEN:
            kept[kind] = numbers
            continue
        known = dict(zip(layers, numbers, strict=True))
        # A removed layer is never read; its entry has the size of the others.
        kept[kind] = [known.get(layer, numbers[0]) for layer in range(anatomy.layers)]
    if EXPERT in kept and NEURON in kept:
        kept[NEURON] = [
            _of_every_expert(anatomy.units[EXPERT], experts, neurons)
            for experts, neurons in zip(kept[EXPERT], kept[NEURON], strict=True)
        ]
    if len(layers) < anatomy.layers:
        kept[LAYER] = [torch.tensor(layers)]
    return kept


def _of_every_expert(count: int, experts: torch.Tensor, neurons: torch.Tensor) -> torch.Tensor:
    """Return the neurons kept of each expert of the base, `[experts, kept]`; of a removed one, any of them.

    Layers without experts keep neurons of their MLP, `[kept]`, also beside layers that have experts.
    """
    if neurons.ndim < 2:
        return neurons
    return neurons[:1].repeat(count, 1).index_copy(0, experts, neurons)


def _tensors_put_back(
    model: PreTrainedModel,
    base: PreTrainedModel,
    anatomy: Anatomy,
    kept: KeptIndices,
    changed: Collection[str],
) -> Mapping[str, torch.Tensor]:
    """Return the base's tensors; in those that changed, with the model's values in the part that was kept."""
    tensors = dict(base.named_parameters()) | saved_buffers(base)
    values = dict(model.named_parameters()) | saved_buffers(model)
    for name, spec in kept_parameters(anatomy, kept).items():
        if spec.name in changed:
            tensors[spec.name] = _put_back(values[name], tensors[spec.name], spec, anatomy, kept)
    return tensors


def _put_back(
    values: torch.Tensor, whole: torch.Tensor, spec: TensorSpec, anatomy: Anatomy, kept: KeptIndices
) -> torch.Tensor:
    """Return a tensor of the base with other values in the part that was kept."""
    if values.shape == whole.shape:
        return values
    places = cut_tensor(torch.arange(whole.numel()).view_as(whole), spec, anatomy, kept)
    return whole.flatten().index_copy(0, places.flatten(), values.detach().flatten()).view_as(whole)
