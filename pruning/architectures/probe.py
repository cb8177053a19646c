"""Make a small config with the options of a real one, so that its model can be built and run in no time."""

import copy
import json
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from pruning.architectures.config import LAYER_KEYS, build_on_meta, config_from_dict
from pruning.architectures.layer_numbers import EXACT, keep_layers
from pruning.errors import ModelError

HIDDEN, HEADS, GROUPS, HEAD, NEURONS, TOKENS, POSITIONS, WINDOW, EXPERTS = 64, 4, 2, 16, 48, 96, 128, 8, 8

LAYERS = 3
"""The least number of layers; there are more if the real model has more kinds of them."""

MOST_LAYERS = 12

MOST_FIRST = 24
"""The largest number of layers if they have to be the first ones, because a kind appears late."""

SIZES: Mapping[str, int] = (
    dict.fromkeys(("hidden_size", "d_model", "n_embd", "embedding_dim", "emb_dim", "lru_width"), HIDDEN)
    | dict.fromkeys(
        (
            "num_attention_heads",
            "n_head",
            "n_heads",
            "num_heads",
            "attention_heads",
            "decoder_attention_heads",
            "encoder_attention_heads",
            "num_decoder_attention_heads",
            "num_encoder_attention_heads",
            "swa_num_attention_heads",
        ),
        HEADS,
    )
    | dict.fromkeys(
        ("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "num_global_key_value_heads"),
        GROUPS,
    )
    | dict.fromkeys(
        (
            "head_dim",
            "d_head",
            "dim_head",
            "kv_channels",
            "swa_head_dim",
            "attention_head_size",
            "v_head_dim",
            "swa_v_head_dim",
            "qk_nope_head_dim",
            "qk_rope_head_dim",
            "index_head_dim",
            "global_head_dim",
            "linear_head_dim",
        ),
        HEAD,
    )
    | dict.fromkeys(
        (
            "intermediate_size",
            "ffn_dim",
            "n_inner",
            "d_inner",
            "dff",
            "dim_ff",
            "ffn_hidden_size",
            "decoder_ffn_dim",
            "encoder_ffn_dim",
            "feed_forward_size",
            "intermediate_size_mlp",
            "dense_intermediate_size",
        ),
        NEURONS,
    )
    | dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size"), 24)
    | dict.fromkeys(
        (
            "shared_expert_intermediate_size",
            "shared_intermediate_size",
            "shared_experts_intermediate_size",
            "moe_shared_expert_intermediate_size",
        ),
        40,
    )
    | dict.fromkeys(
        ("vocab_size", "decoder_vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size"), TOKENS
    )
    | dict.fromkeys(
        (
            "max_position_embeddings",
            "n_positions",
            "n_ctx",
            "max_seq_len",
            "max_target_positions",
            "context_length",
            "model_max_length",
        ),
        POSITIONS,
    )
    | dict.fromkeys(
        (
            "sliding_window",
            "window_size",
            "attention_window_size",
            "local_attention",
            "sliding_window_size",
            "attention_chunk_size",
            "chunk_size",
            "mamba_chunk_size",
            "block_size",
            "rel_extent",
        ),
        WINDOW,
    )
    | dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), EXPERTS)
    | dict.fromkeys(
        ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k", "moe_top_k"), 2
    )
    | {
        "n_group": 2,
        "num_expert_group": 2,
        "topk_group": 1,
        "original_max_position_embeddings": 32,
        "q_lora_rank": 24,
        "kv_lora_rank": 24,
        "o_lora_rank": 24,
        "o_groups": 2,
        "rotary_dim": 8,
        "qk_head_dim": 2 * HEAD,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 8,
        "mamba_n_heads": 8,
        "mamba_num_heads": 8,
        "n_mamba_heads": 2,
        "mamba_d_ssm": 2 * HIDDEN,
        "mamba_d_state": 8,
        "ssm_state_size": 8,
        "state_size": 8,
        "mamba_dt_rank": 4,
        "time_step_rank": 4,
        "n_groups": 2,
        "mamba_n_groups": 2,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_num_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "index_n_heads": 2,
        "index_topk": 4,
        "attention_hidden_size": HIDDEN,
        "attention_head_dim": HEAD,
        "num_query_groups": GROUPS,
        "adapter_rank": 8,
        "keep_window_size": 2048,
        "d_rel": 8,
        "router_hidden_size": 16,
        "dim_model_base": 16,
        "zero_expert_num": 2,
        "pronunciation_vocab_size": 16,
        "shape_vocab_size": 16,
        "pronunciation_embed_dim": 16,
        "shape_embed_dim": 16,
    }
)
"""The size that each key gets, if the config has it and it is larger."""

UNSET = ("n_inner", "intermediate_size", "ffn_hidden_size", "num_experts_per_tok")
"""Keys that the defaults of some types leave open, and that real configs hold."""

MOST_PARAMETERS = 3_000_000


def probe_config(config: PreTrainedConfig, **overrides: Any) -> PreTrainedConfig:
    """Return a small config with the options of a real one: biases, tying, norms, windows, kinds of layers.

    Args:
        config: The real config.
        **overrides: Values to set beside.

    Raises:
        ModelError: transformers builds no config of these values.
    """
    values = copy.deepcopy(config.to_dict())
    key = layers_key(values)
    if key is None:
        return _shrunk(config, values, overrides)
    layers = _chosen_layers(json.dumps(values, sort_keys=True, default=str), key)
    return _shrunk(config, _with_layers(values, layers, values[key]), overrides)


@lru_cache(maxsize=256)
def _chosen_layers(config_json: str, key: str) -> Sequence[int]:
    """Return which layers a small model keeps, so that it has every kind of layer if that is possible."""
    config = config_from_dict(json.loads(config_json))
    values = config.to_dict()
    count = values[key]
    kinds = _kinds_of_layers(config, values, count)
    chosen = sorted(_representatives(values, kinds))
    if len(set(kinds)) <= 1:
        return chosen
    few = _kinds_of_layers(config, _with_layers(values, chosen, count), len(chosen))
    # If kinds are missing, the config has no list of them: they follow a period, or start at some layer.
    first = range(max(kinds.index(kind) for kind in kinds) + 1)
    return chosen if set(few) == set(kinds) or len(first) > MOST_FIRST else first


def _shrunk(
    config: PreTrainedConfig, values: Mapping[str, Any], overrides: Mapping[str, Any]
) -> PreTrainedConfig:
    """Return the config of a model with small sizes.

    Args:
        config: The real config.
        values: Its values, with a few of its layers or all of them.
        overrides: Values to set beside.
    """
    real = config.to_dict()
    values = {key: _small(key, value) for key, value in copy.deepcopy(dict(values)).items()}
    hidden = next((real[key] for key in ("hidden_size", "d_model", "n_embd") if real.get(key)), None)
    for key, value in real.items():
        if key not in SIZES and "dim" in key + "size" and value == hidden and isinstance(value, int):
            values[key] = HIDDEN if values.get(key) == hidden else values.get(key)
    values |= _consistent(real, values)
    values |= {key: value for key, value in EXACT.items() if key in values}
    return config_of_values(type(config), _fit_rotary(values) | dict(overrides))


def config_of_values(kind: type[PreTrainedConfig], values: Mapping[str, Any]) -> PreTrainedConfig:
    """Build a config of a class from values. Raises `ModelError`."""
    try:
        return kind(**{key: value for key, value in values.items() if key not in ("model_type", "head_dim_")})
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"transformers makes no small model of this config: {reason}") from error


DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3], "num_hidden_layers": 6},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "num_hidden_layers": 6,
    },
    "dots1": {
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
    },
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 3, "num_hidden_layers": 6},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 3, "num_hidden_layers": 6},
}
"""Values of types whose own defaults describe no model, or none of the usual kind."""


def default_config(model_type: str) -> PreTrainedConfig:
    """Return the config that transformers gives a model type, as a decoder. Raises `ModelError`."""
    kind = CONFIG_MAPPING[model_type]
    try:
        config = kind(**DEFAULTS.get(model_type, {}))
        return (
            kind.from_dict({"is_decoder": True}) if getattr(config, "is_decoder", None) is False else config
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"transformers builds no config of this type without values: {reason}") from error


def layers_key(values: Mapping[str, Any]) -> str | None:
    """Return the key that holds the number of layers."""
    return next((key for key in LAYER_KEYS if isinstance(values.get(key), int)), None)


def _with_layers(values: Mapping[str, Any], layers: Sequence[int], count: int) -> dict[str, Any]:
    """Return the values of a config for some of its layers."""
    kept = keep_layers(values, layers, count)
    return {
        key: len(layers) if key in LAYER_KEYS and value == count else value for key, value in kept.items()
    }


def _kinds_of_layers(config: PreTrainedConfig, values: Mapping[str, Any], count: int) -> list[Hashable]:
    """Return what tells layers apart: the names and shapes of their tensors, None if no model can be built."""
    try:
        model = build_on_meta(_shrunk(config, values, {}))
    except ModelError:
        return [None] * count
    lists: dict[str, dict[int, set[Hashable]]] = {}
    for name, weights in model.named_parameters():
        if match := re.match(r"(\D*?\.)(\d+)\.(.+)", name):
            entries = lists.setdefault(match[1], {})
            entries.setdefault(int(match[2]), set()).add((match[1], match[3], weights.shape))
    whole = [entries for entries in lists.values() if entries.keys() == set(range(count))]
    return [frozenset().union(*(entries[layer] for entries in whole)) for layer in range(count)]


def _representatives(values: Mapping[str, Any], kinds: Sequence[Hashable]) -> set[int]:
    """Return two layers of each kind that tensors or lists of the config tell apart, and enough others."""
    count = len(kinds)
    lists = [
        value
        for key, value in values.items()
        if isinstance(value, (list, tuple, str)) and len(value) == count and "token" not in key
    ]
    seen: dict[Hashable, list[int]] = {}
    for layer, kind in enumerate(kinds):
        seen.setdefault((kind, str([entries[layer] for entries in lists])), []).append(layer)
    chosen = {layer for layers in seen.values() for layer in (layers[0], layers[-1])}
    chosen = set(sorted(chosen)[:MOST_LAYERS])
    for layer in range(count):
        if len(chosen) >= min(LAYERS, count):
            break
        chosen.add(layer)
    return chosen


def _small(key: str, value: Any) -> Any:
    if re.search(r"(token_id|token_index|pad_index|_index|_idx)$", key):
        return _small_id(value)
    if isinstance(value, dict) and (key.endswith("_config") or key.isdecimal()):
        return {inner: _small(inner, each) for inner, each in value.items()}
    if isinstance(value, bool) or not isinstance(value, int):
        if key in SIZES and isinstance(value, (list, tuple)) and value and isinstance(value[0], int):
            return [min(each, SIZES[key]) for each in value]
        return SIZES[key] if key in UNSET and value is None else value
    if key in SIZES:
        return min(value, SIZES[key])
    return value


def _small_id(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_small_id(each) for each in value]
    return 1 if isinstance(value, int) and value >= TOKENS else value


def _consistent(real: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return sizes that follow from one another."""
    fixed: dict[str, Any] = {}
    if "head_dim" in real and real["head_dim"] is None:
        fixed["head_dim"] = HEAD
    for key in ("mamba_d_head", "mamba_head_dim", "mamba_headdim"):
        if isinstance(real.get(key), int):
            fixed[key] = 2 * HIDDEN // 8
    if "expand" in real and "num_heads" in real:  # A state-space model: no attention.
        fixed |= {"num_heads": 8, "head_dim": 2 * HIDDEN // 8}
    if values.get("num_key_value_heads") is None and "num_key_value_heads" in real:
        fixed["num_key_value_heads"] = GROUPS
    if "kv_lora_rank" in real and "num_key_value_heads" in real:  # Latent attention: no groups.
        fixed["num_key_value_heads"] = HEADS
    heads, groups = (
        fixed.get(key, values.get(key)) for key in ("num_attention_heads", "num_key_value_heads")
    )
    if isinstance(heads, int) and isinstance(groups, int) and heads % groups:
        fixed["num_attention_heads"] = HEADS
    return fixed


def _fit_rotary(values: dict[str, Any]) -> dict[str, Any]:
    """Shorten the lists of rotary frequencies, which follow the head size."""
    for rope in _dicts(values.get("rope_parameters")):
        half = HEAD // 2
        partial = rope.get("partial_rotary_factor") or values.get("partial_rotary_factor") or 1.0
        half = max(1, int(HEAD * partial) // 2)
        for key in ("short_factor", "long_factor"):
            if isinstance(rope.get(key), list):
                rope[key] = rope[key][:half]
        if isinstance(rope.get("mrope_section"), list):
            sections = len(rope["mrope_section"])
            rope["mrope_section"] = [half // sections + (i < half % sections) for i in range(sections)]
        if rope.get("original_max_position_embeddings"):
            rope["original_max_position_embeddings"] = 32
    return values


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for each in value.values():
            yield from _dicts(each)
