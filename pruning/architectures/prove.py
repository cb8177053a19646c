"""Prove that a model with units removed computes what it computes with these units masked.

For one model type, with the options of a real config, and one kind of unit: a tiny random model is cut by the same
code as a real one, saved, and read back by plain transformers. Its logits must be those of the uncut model in which
the removed units are masked by hooks.
"""

import json
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from pruning.architectures.anatomy import Anatomy, anatomy_of, anatomy_with
from pruning.architectures.config import config_from_dict
from pruning.architectures.families import (
    CHANNEL,
    EXPERT,
    KEY_VALUE,
    LAYER,
    NEURON,
    QUERY,
    SHARED,
    TOKEN,
    Family,
    known_reason,
)
from pruning.architectures.lm_head import backbone, logits_of
from pruning.architectures.lookup import family_for
from pruning.architectures.masks import masked
from pruning.architectures.probe import HEAD, WINDOW, probe_config
from pruning.architectures.shape import Shape
from pruning.architectures.tiny_model import random_model
from pruning.errors import ModelError
from pruning.files import temporary_folder
from pruning.surgery import KeptIndices, cut

TOKENS_READ = 3 * WINDOW
"""How many tokens are compared: more than a window of attention holds."""

STEPS_READ = 4
"""How many of them are read one by one, with a cache."""

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


def small_config(config: PreTrainedConfig, family: Family) -> PreTrainedConfig:
    """Return the config of the tiny model, with a head size of its own where heads can be cut."""
    own = QUERY not in family.unprunable and "head_dim" not in config.to_dict()
    return probe_config(config, **{"head_dim": HEAD} if own else {})


@lru_cache(maxsize=512)
def _failure(config_json: str, unit: str) -> str | None:
    try:
        return prove(config_from_dict(json.loads(config_json)), unit)
    except ModelError as error:
        return str(error)


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
        kept = _CHOICES[unit](anatomy)
        if kept is None:
            return "the small model has too few of these units to remove any"
        model = random_model(config)
        with temporary_folder() as folder:
            _cut(model, anatomy, kept).save_pretrained(folder)
            return _compare(model, anatomy, kept, _read(folder), unit)
    except ModelError as error:
        return str(error)
    except Exception:
        return f"a tiny model of it that lost some {unit} does not run"


def _some(count: int, kept: int, number: int) -> torch.Tensor:
    """Return some of the numbers below `count`, ascending; others for each `number`."""
    generator = torch.Generator().manual_seed(SEED + 1 + number)
    return torch.randperm(count, generator=generator)[:kept].sort().values


def _choose_neurons(anatomy: Anatomy) -> KeptIndices | None:
    count = anatomy.units.get(NEURON, 1)
    if anatomy.family.neurons_in_experts:
        experts, kept = range(anatomy.units[EXPERT]), count * 2 // 3
        layers = range(anatomy.layers)
        inside = [torch.stack([_some(count, kept, layer + each) for each in experts]) for layer in layers]
        return {NEURON: inside, SHARED: [_some(count, kept, layer) for layer in layers]}
    return (
        {NEURON: [_some(count, count * 2 // 3, layer) for layer in range(anatomy.layers)]}
        if count > 2
        else None
    )


def _choose_heads(anatomy: Anatomy) -> KeptIndices | None:
    groups, per_group = _groups(anatomy)
    if per_group < 2:
        return None
    heads = [
        torch.cat(
            [each * per_group + _some(per_group, per_group // 2, layer + each) for each in range(groups)]
        )
        for layer in range(anatomy.layers)
    ]
    return {QUERY: heads, KEY_VALUE: [torch.arange(groups)] * anatomy.layers}


def _choose_groups(anatomy: Anatomy) -> KeptIndices | None:
    groups, per_group = _groups(anatomy)
    if groups < 2:
        return None
    kept = [_some(groups, groups // 2, layer) for layer in range(anatomy.layers)]
    heads = [(group[:, None] * per_group + torch.arange(per_group)).flatten() for group in kept]
    return {KEY_VALUE: kept, QUERY: heads}


def _groups(anatomy: Anatomy) -> tuple[int, int]:
    """Return how many groups of heads there are, and how many query heads each has."""
    groups = anatomy.units[KEY_VALUE]
    return groups, anatomy.units[QUERY] // groups


def _choose_layers(anatomy: Anatomy) -> KeptIndices | None:
    kept = [layer for layer in range(anatomy.layers) if layer != 1]
    return {LAYER: [torch.tensor(kept)]} if len(kept) < anatomy.layers else None


def _choose_channels(anatomy: Anatomy) -> KeptIndices | None:
    count = anatomy.units[CHANNEL]
    return {CHANNEL: [_some(count, count // 2, 0)] * anatomy.layers}


def _choose_tokens(anatomy: Anatomy) -> KeptIndices | None:
    count, special = anatomy.units[TOKEN], 8
    return {TOKEN: [torch.cat([torch.arange(special), special + _some(count - special, count // 2, 0)])]}


def _choose_experts(anatomy: Anatomy) -> KeptIndices | None:
    """Choose as many experts of every group, for routers that choose groups first."""
    count, groups = anatomy.units[EXPERT], anatomy.expert_groups
    size = count // groups
    if size < 2:
        return None
    return {
        EXPERT: [
            torch.cat([group * size + _some(size, size // 2, layer + group) for group in range(groups)])
            for layer in range(anatomy.layers)
        ]
    }


_CHOICES: Mapping[str, Callable[[Anatomy], KeptIndices | None]] = {
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
            shape = shape.resized(kind, indices[0].shape[-1])
    return cut(model, shape, kept)


def _read(folder: Path) -> PreTrainedModel:
    """Read a saved model with plain transformers, and refuse one that lacks tensors or has too many."""
    model: PreTrainedModel
    info: dict[str, Any]
    model, info = AutoModelForCausalLM.from_pretrained(  # type: ignore[misc]
        folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[what]:
            raise ModelError(
                f"the saved model has {what.replace('_', ' ')}: {sorted(map(str, info[what]))[0]}"
            )
    return model.eval()


def _compare(
    base: PreTrainedModel, anatomy: Anatomy, kept: KeptIndices, model: PreTrainedModel, unit: str
) -> str | None:
    """Compare the logits of a model that was read with those of its masked base, without a cache and with one."""
    generator = torch.Generator().manual_seed(SEED)
    rows = kept[TOKEN][0] if TOKEN in kept else torch.arange(anatomy.units[TOKEN])
    places = 4 + torch.randint(len(rows) - 4, (2, TOKENS_READ), generator=generator)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Names of arguments that a later transformers changes.
        for how, run in (("without a cache", _run), ("with a cache", _run_cached)):
            with masked(base, anatomy, kept):
                try:
                    expected = run(base, rows[places])
                except Exception:
                    if run is _run:
                        raise
                    continue  # The uncut model does not run with a cache either.
            if failure := _difference(expected[..., rows], run(model, places), unit, how):
                return failure
        hidden = backbone(model)(input_ids=places, use_cache=False).last_hidden_state
        if not torch.allclose(logits_of(model, hidden[0]), _run(model, places)[0].float(), atol=TOLERANCE):
            return "its logits cannot be computed from its last hidden states"
    return None


def _run(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits of all tokens, read at once."""
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def _run_cached(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits of tokens of which some are read one after the other."""
    start = TOKENS_READ // 2
    output = model(input_ids=ids[:, :start], use_cache=True)
    logits = [output.logits]
    for place in range(start, start + STEPS_READ):
        cache = {
            name: output[name]
            for name in ("past_key_values", "cache_params", "state", "mems")
            if name in output
        }
        output = model(input_ids=ids[:, place : place + 1], use_cache=True, **cache)
        logits.append(output.logits)
    return torch.cat(logits, dim=1)


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
