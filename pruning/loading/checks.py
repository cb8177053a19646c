"""Checks of a model that cost no memory: its config, its tensors and its tokenizer."""

import re
from math import prod
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from pruning import catalog
from pruning.architectures.anatomy import anatomy_of
from pruning.architectures.placement import parameter
from pruning.architectures.shape import Shape
from pruning.errors import ModelError
from pruning.loading.files import Tensors, config_from_values

SPARE_TOKENS = 100

SPARE_NUMBERS = 100_000_000
"""How many numbers files may hold beyond twice what the config describes: masks, tied copies."""


def suggest_default() -> str:
    """Return the end of a sentence that names the model that always works."""
    return f", or use {catalog.DEFAULT_MODEL}, which works without a network"


def adapter_message(name: str) -> str:
    """Return the message that refuses an adapter."""
    return (
        f"{name} holds an adapter (adapter_config.json), which changes a model while it is loaded. "
        "Merge it into its base model first, or choose another model."
    )


def check_config(values: dict[str, Any], name: str) -> PreTrainedConfig:
    """Build the config from its values, if transformers alone can build a model from it.

    Raises:
        ModelError: The config asks for code, is quantized, or is not one of a known family.
    """
    if values.get("auto_map"):
        raise ModelError(
            f"{name} brings code of its own (auto_map), which is never run here. "
            f"Choose a model of a family that transformers knows{suggest_default()}."
        )
    if values.get("quantization_config"):
        raise ModelError(
            f"{name} is quantized, and packed weights cannot be pruned. Choose the model that it was made from."
        )
    if values.get("transformers_weights"):
        raise ModelError(
            f"The config of {name} names a weights file of its own (transformers_weights). "
            "Save it with save_pretrained, which uses model.safetensors."
        )
    config = config_from_values(values)
    anatomy_of(config)
    return config


def check_room(name: str, config: PreTrainedConfig, numbers: int) -> None:
    """Refuse a config that describes more than its files hold, before memory is taken for it."""
    if (described := Shape.of(config).parameters) > numbers:
        raise ModelError(
            f"The weights of {name} do not fit its config: it describes {described:,} parameters, and the "
            f"files have room for {numbers:,}. Download or save the model again."
        )


def check_tensors(name: str, config: PreTrainedConfig, tensors: Tensors) -> None:
    """Refuse tensors that contradict the config: other shapes, more layers, much more of everything.

    Names may come without their first part, as base models are saved.
    """
    anatomy = anatomy_of(config)
    base, _, layers = anatomy.family.layers.partition(".")
    expected = {spec.name: spec.shape for spec in anatomy.tensors}
    mismatch = None
    for key, (dtype, shape) in tensors.items():
        full = key if key in expected else f"{base}.{key}"
        layer = re.match(rf"(?:{re.escape(base)}\.)?{re.escape(layers)}\.(\d{{1,9}})\.", key)
        if layer and int(layer[1]) >= anatomy.layers:
            mismatch = f"its config has {anatomy.layers} layers, and the files hold layer {int(layer[1]) + 1}"
        elif full in expected and shape != expected[full]:
            mismatch = f"{key[:100]} has the shape {list(shape)}, not {list(expected[full])}"
        elif full in expected and not re.match("B?F", dtype):
            mismatch = f"{key[:100]} holds {dtype[:20]} numbers, which are not plain weights"
        if mismatch:
            break
    described, held = Shape.of(config).parameters, sum(prod(shape) for _, shape in tensors.values())
    if not mismatch and held > 2 * described + SPARE_NUMBERS:
        mismatch = f"it describes {described:,} parameters, and the files hold {held:,}"
    if mismatch:
        raise ModelError(
            f"The weights of {name} do not fit its config: {mismatch}. Download or save the model again."
        )


def check_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    """Refuse a tokenizer whose tokens the model does not know.

    A few added tokens may lie beyond, as Gemma 3's image token does: ordinary text never has them.
    """
    added = tokenizer.get_added_vocab()
    beyond = {token for token, number in tokenizer.get_vocab().items() if not 0 <= number < size}
    if not beyond <= added.keys() or len(beyond) > SPARE_TOKENS or max(tokenizer("A").input_ids) >= size:
        raise ModelError(
            f"The tokenizer of {name} does not fit the model: it has {len(tokenizer):,} tokens, and the "
            f"model knows {size:,}. Use the tokenizer that the model was trained with."
        )


def check_finite(name: str, model: PreTrainedModel) -> None:
    """Refuse a model whose weights are not all finite numbers."""
    for key, _ in model.named_parameters():
        if not all(torch.isfinite(end) for end in torch.aminmax(parameter(model, key))):
            raise ModelError(
                f"The weights of {name} are damaged: {key} holds values that are not finite. "
                "Download the model again, or choose another."
            )
