"""Checks of a model that cost no memory: its config, its tensors and its tokenizer."""

from __future__ import annotations

import math
import re
from math import prod
from typing import TYPE_CHECKING, Any, cast

from pruning import catalog
from pruning.architectures.anatomy import anatomy_of
from pruning.architectures.families import LAYER
from pruning.architectures.known import plain_config
from pruning.architectures.lookup import family_for
from pruning.architectures.multimodal import TEXT
from pruning.architectures.placement import parameter
from pruning.architectures.shape import Shape
from pruning.errors import ModelError, panics_as_errors
from pruning.lazy import torch
from pruning.loading.files import Tensors, config_from_values, first_line
from pruning.loading.repo_files import CONFIG_FILE, check_brings_no_code

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

SPARE_TOKENS = 100

MAX_LAYERS = 512

MAX_WIDTH = 2_000_000
"""The largest number of heads, channels, neurons or tokens; the largest vocabularies have 262,144."""

MAX_LABELS = 10_000
"""The most classes that a config may have: transformers writes a name for each."""

MAX_NUMBER = 1e12

MAX_VALUES = 20_000
"""The most values in a config; each class of a classifier takes two."""

MAX_CHARACTERS = 200_000
"""The longest text in a config. Some hold a chat template."""

LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")

MAY_BE_INFINITE = ("time_step_limit",)
"""Keys that transformers sets to infinity: the time steps of a state-space model then have no upper limit."""

SPARE_NUMBERS = 100_000_000
"""How many numbers files may hold beyond twice what the config describes: masks, tied copies."""


def suggest_default() -> str:
    """Return the end of a sentence that names the model that always works."""
    return f", or use {catalog.DEFAULT_MODEL}, which works without a network"


def check_config(values: dict[str, Any], name: str, plain: bool = False) -> PreTrainedConfig:
    """Build the config from its values, if transformers alone can build a model from it.

    Args:
        values: The content of its file.
        name: The model, for the message.
        plain: Whether a config suffices that stands for it in arithmetic, which may be known already.

    Raises:
        ModelError: The config asks for code, is quantized, or is not one of a known family.
    """
    check_bounds(values, name)
    for part in values.values():
        if isinstance(part, dict):
            check_bounds(part, name)
    check_brings_no_code(values, CONFIG_FILE, name)
    text = values.get(TEXT)
    if values.get("quantization_config") or (isinstance(text, dict) and text.get("quantization_config")):
        raise ModelError(
            f"{name} is quantized, and packed weights cannot be pruned. Choose the model that it was made from."
        )
    if values.get("transformers_weights"):
        raise ModelError(
            f"The config of {name} names a weights file of its own (transformers_weights). "
            "Save it with save_pretrained, which uses model.safetensors."
        )
    if plain:
        config = cast("PreTrainedConfig", plain_config(values, lambda: _build_config(values, name)))
        check_size(config, name)
        return config
    return _build_config(values, name)


def _build_config(values: dict[str, Any], name: str) -> PreTrainedConfig:
    try:
        config = config_from_values(values)
        check_size(config, name)
        anatomy_of(config)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"The config of {name} describes no model that can be built: {first_line(error)}"
        ) from error
    return config


def check_bounds(values: dict[str, Any], name: str) -> None:
    """Refuse a config with more values, or larger ones, than that of any language model.

    Raises:
        ModelError: A value is absurd. The message says which.
    """
    count = 0
    waiting: list[tuple[str, object]] = list(values.items())
    while waiting:
        key, value = waiting.pop()
        count += 1
        if isinstance(value, dict):
            waiting += [(f"{key}.{inner}"[:100], each) for inner, each in value.items()]
        elif isinstance(value, list):
            waiting += [(key, each) for each in value]
        limit = MAX_LABELS if key == "num_labels" else MAX_LAYERS if key in LAYER_KEYS else MAX_NUMBER
        if key in MAY_BE_INFINITE and value == math.inf:
            continue
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) > limit:
            raise ModelError(
                f"The config of {name} sets {key[:100]} to {str(value)[:40]!r}; at most {limit:,} is accepted."
            )
        if isinstance(value, str) and len(value) > MAX_CHARACTERS:
            raise ModelError(f"The config of {name} sets {key[:100]} to a text of {len(value):,} characters.")
        if count + len(waiting) > MAX_VALUES:
            raise ModelError(f"The config of {name} has more than {MAX_VALUES:,} values.")


def check_size(config: PreTrainedConfig, name: str) -> None:
    """Refuse a model with absurdly many layers, or absurdly large ones, before any of it is built."""
    for kind, key in family_for(config).sizes.items():
        size, limit = getattr(config, key, None), MAX_LAYERS if kind == LAYER else MAX_WIDTH
        # Some models have a list of sizes, one for each layer.
        for each in size if isinstance(size, list) else () if size is None else (size,):
            if isinstance(each, bool) or not isinstance(each, int) or not 0 < each <= limit:
                raise ModelError(
                    f"The config of {name} sets {key} to {str(each)[:40]!r}; "
                    f"a whole number from 1 to {limit:,} is needed."
                )


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
    """Refuse a tokenizer whose tokens the model does not know. It has been tried out before, in a child process.

    A few added tokens may lie beyond, as Gemma 3's image token does: ordinary text never has them.
    """
    with panics_as_errors(f"The tokenizer of {name} is damaged: it cannot read the letter A."):
        try:
            added, ids = tokenizer.get_added_vocab(), tokenizer("A").input_ids
            beyond = {token for token, number in tokenizer.get_vocab().items() if not 0 <= number < size}
        except Exception as error:
            raise ModelError(f"The tokenizer of {name} cannot be used: {first_line(error)}") from error
    if not beyond <= added.keys() or len(beyond) > SPARE_TOKENS or max(ids, default=0) >= size:
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
