"""Prove that a model with units removed computes what it computes with these units masked.

For one model type, with the options of a real config, and one kind of unit: a tiny random model is cut by the same
code as a real one, saved, and read back by plain transformers. Its logits must be those of the uncut model in which
the removed units are masked by hooks.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from pruning.architectures.anatomy import Anatomy, anatomy_of, anatomy_with
from pruning.architectures.config import config_from_dict
from pruning.architectures.families import (
    CHANNEL,
    EXPERT,
    KEY_VALUE,
    LAYER,
    NEURON,
    QUERY,
    TOKEN,
    Family,
)
from pruning.architectures.lookup import family_for
from pruning.architectures.masks import masked
from pruning.architectures.differences import saved_buffers
from pruning.architectures.probe import HEAD, WINDOW, probe_config
from pruning.architectures.shape import Shape
from pruning.errors import ModelError
from pruning.files import temporary_folder
from pruning.surgery import KeptIndices, cut

UNITS = {
    "neurons": NEURON,
    "heads": QUERY,
    "groups": KEY_VALUE,
    "layers": LAYER,
    "channels": CHANNEL,
    "vocabulary": TOKEN,
    "experts": EXPERT,
}
"""What can be proven, by name, and the kind of unit that is counted."""

TOKENS_READ = 3 * WINDOW
"""How many tokens are compared: more than a window of attention holds."""

TOLERANCE = 2e-4
"""The largest difference of logits, relative to the largest logit, that counts as rounding."""

SEED = 0


def proof_failure(config: PreTrainedConfig, unit: str) -> str | None:
    """Return why units of a kind cannot be removed from models with the options of a config; None if they can.

    Args:
        config: The config of a real model. Its sizes do not count.
        unit: One of `UNITS`.
    """
    try:
        family = family_for(config)
    except ModelError as error:
        return str(error)
    if reason := known_reason(family, unit):
        return reason
    try:
        probe = small_config(config, family)
    except ModelError as error:
        return str(error)
    return _failure(json.dumps(probe.to_dict(), sort_keys=True, default=str), unit)


def known_reason(family: Family, unit: str) -> str | None:
    """Return the reason that the entry of the table already holds."""
    kinds = (KEY_VALUE, QUERY) if unit == "groups" else (UNITS[unit],)
    return next((family.unprunable[kind] for kind in kinds if kind in family.unprunable), None)


def small_config(config: PreTrainedConfig, family: Family) -> PreTrainedConfig:
    """Return the config of the tiny model, with a head size of its own where heads can be cut."""
    own = QUERY not in family.unprunable and "head_dim" not in config.to_dict()
    return probe_config(config, **{"head_dim": HEAD} if own else {})


@lru_cache(maxsize=512)
def _failure(config_json: str, unit: str) -> str | None:
    return prove(config_from_dict(json.loads(config_json)), unit)


def prove(config: PreTrainedConfig, unit: str, family: Family | None = None) -> str | None:
    """Cut a tiny model and compare it with the same model masked.

    Args:
        config: The config of the tiny model.
        unit: One of `UNITS`.
        family: The entry of the table to cut by; by default that of the config.

    Returns:
        Why they differ, or None if they compute the same.
    """
    try:
        anatomy = anatomy_with(config, family) if family else anatomy_of(config)
        kept = _choose(anatomy, unit)
        if kept is None:
            return "the small model has too few of these units to remove any"
        model = random_model(config)
        expected = _logits(model, anatomy, kept)
        with temporary_folder() as folder:
            _cut(model, anatomy, kept).save_pretrained(folder)
            return _compare(expected, _read(folder), unit, kept)
    except ModelError as error:
        return str(error)
    except Exception as error:
        return f"a tiny model of it cannot be cut and run: {_first_line(error)}"


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Build a model with random weights, norms, biases and saved buffers, none of which is zero or one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(SEED)
    model.requires_grad_(False)
    for values in (*model.parameters(), *saved_buffers(model).values()):
        if values.is_floating_point():
            noise = torch.randn(values.shape, generator=generator) * 0.2
            values.copy_(values + noise if values.ndim < 2 else noise)
    model.generation_config = GenerationConfig()
    return model.eval()


def _choose(anatomy: Anatomy, unit: str) -> KeptIndices | None:
    """Choose the units to keep, at random and in each layer others; None if there are too few."""
    generator = torch.Generator().manual_seed(SEED + 1)

    def some(count: int, kept: int) -> torch.Tensor:
        return torch.randperm(count, generator=generator)[:kept].sort().values

    units, layers = anatomy.units, range(anatomy.layers)
    return _CHOICES[unit](units, layers, some)


def _choose_neurons(units: Mapping[str, int], layers: range, some) -> KeptIndices | None:
    count = units.get(NEURON, 1)
    return {NEURON: [some(count, count * 2 // 3) for _ in layers]} if count > 2 else None


def _choose_heads(units: Mapping[str, int], layers: range, some) -> KeptIndices | None:
    groups, per_group = units[KEY_VALUE], units[QUERY] // units[KEY_VALUE]
    if per_group < 2:
        return None
    heads = [
        torch.cat([group * per_group + some(per_group, per_group // 2) for group in range(groups)]) for _ in layers
    ]
    return {QUERY: heads, KEY_VALUE: [torch.arange(groups) for _ in layers]}


def _choose_groups(units: Mapping[str, int], layers: range, some) -> KeptIndices | None:
    groups, per_group = units[KEY_VALUE], units[QUERY] // units[KEY_VALUE]
    if groups < 2:
        return None
    kept = [some(groups, groups // 2) for _ in layers]
    heads = [(group[:, None] * per_group + torch.arange(per_group)).flatten() for group in kept]
    return {KEY_VALUE: kept, QUERY: heads}


def _choose_layers(units: Mapping[str, int], layers: range, some) -> KeptIndices | None:
    if len(layers) < 2:
        return None
    return {LAYER: [torch.tensor([layer for layer in layers if layer != 1])]}


def _choose_channels(units: Mapping[str, int], layers: range, some) -> KeptIndices | None:
    count = units[CHANNEL]
    kept = some(count, count // 2)
    return {CHANNEL: [kept for _ in layers]}


def _choose_tokens(units: Mapping[str, int], layers: range, some) -> KeptIndices | None:
    count, special = units[TOKEN], 8
    return {TOKEN: [torch.cat([torch.arange(special), special + some(count - special, count // 2)])]}


def _choose_experts(units: Mapping[str, int], layers: range, some) -> KeptIndices | None:
    count = units[EXPERT]
    return {EXPERT: [some(count, count // 2) for _ in layers]}


_CHOICES = {
    "neurons": _choose_neurons,
    "heads": _choose_heads,
    "groups": _choose_groups,
    "layers": _choose_layers,
    "channels": _choose_channels,
    "vocabulary": _choose_tokens,
    "experts": _choose_experts,
}


def _cut(model: PreTrainedModel, anatomy: Anatomy, kept: KeptIndices) -> PreTrainedModel:
    """Cut by the library's own surgery, to the shape that the library computes."""
    shape = Shape(anatomy)
    for kind, indices in kept.items():
        if kind in anatomy.family.sizes:
            shape = shape.resized(kind, len(indices[0]))
    return cut(model, shape, kept)


def _read(folder: Path) -> PreTrainedModel:
    """Read a saved model with plain transformers, and refuse one that lacks tensors or has too many."""
    model, info = AutoModelForCausalLM.from_pretrained(  # type: ignore[misc]
        folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[what]:
            raise ModelError(f"the saved model has {what.replace('_', ' ')}: {sorted(map(str, info[what]))[0]}")
    return model.eval()


def _ids(size: int, kept: KeptIndices) -> torch.Tensor:
    """Return the tokens to read, `[2, TOKENS_READ]`."""
    generator = torch.Generator().manual_seed(SEED + 2)
    known = kept[TOKEN][0] if TOKEN in kept else torch.arange(size)
    known = known[known >= 4]
    return known[torch.randint(len(known), (2, TOKENS_READ), generator=generator)]


def _logits(model: PreTrainedModel, anatomy: Anatomy, kept: KeptIndices) -> torch.Tensor:
    """Return the logits of the masked model, `[2, tokens, vocabulary kept]`."""
    ids = _ids(anatomy.units[TOKEN], kept)
    with masked(model, anatomy, kept), torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits
    return logits[..., kept[TOKEN][0]] if TOKEN in kept else logits


def _compare(expected: torch.Tensor, model: PreTrainedModel, unit: str, kept: KeptIndices) -> str | None:
    """Compare logits without a cache, and with one."""
    ids = _ids(expected.shape[-1], kept)
    if TOKEN in kept:
        ids = torch.searchsorted(kept[TOKEN][0], ids)
    with torch.inference_mode():
        whole = model(input_ids=ids, use_cache=False).logits
        if failure := _difference(expected, whole, unit, "without a cache"):
            return failure
        start = TOKENS_READ // 2
        first = model(input_ids=ids[:, :start], use_cache=True)
        cache, parts = first.get("past_key_values"), [first.logits]
        if cache is None:
            return None
        for place in range(start, TOKENS_READ):
            step = model(input_ids=ids[:, place : place + 1], past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            parts.append(step.logits)
    return _difference(expected, torch.cat(parts, dim=1), unit, "with a cache")


def _difference(expected: torch.Tensor, got: torch.Tensor, unit: str, how: str) -> str | None:
    if got.shape != expected.shape:
        return f"without some {unit} a tiny model gives logits of the shape {[*got.shape]}, not {[*expected.shape]}"
    gap = float((expected - got).abs().max())
    if gap <= TOLERANCE * max(1.0, float(expected.abs().max())):
        return None
    return (
        f"without some {unit} a tiny model computes something else than with them masked: its logits differ by "
        f"{gap:.2g} {how}"
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{type(error).__name__}: {lines[0][:200]}"
