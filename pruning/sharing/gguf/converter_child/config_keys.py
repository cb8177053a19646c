"""Give a config the keys that the converter reads and that transformers has moved or left out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

SIGMOID_ROUTERS = (
    *("afmoe", "deepseek_v3", "deepseek_v32", "dots1", "exaone_moe", "glm4_moe_lite", "glm_moe_dsa"),
    *("kimi_linear", "minimax_m2", "sarvam_mla", "solar_open"),
)
"""The types whose routers score experts by a sigmoid, which transformers does not write into their configs."""


def fill_in(config: dict[str, Any]) -> None:
    """Add the keys of a config that are missing, in place."""
    rope = rope_of(config)
    if "n_positions" in config:
        config.setdefault("n_ctx", config["n_positions"])
    for old, new in (("rotary_pct", "partial_rotary_factor"), ("rotary_emb_base", "rope_theta")):
        if new in rope:
            config.setdefault(old, rope[new])
    kinds = config.get("layer_types") or []
    if "linear_attention" in kinds and (period := layer_period(kinds)):
        config["full_attention_interval"] = period
    if "dense" in (parts := config.get("mlp_layer_types") or []):
        config.setdefault("first_k_dense_replace", [*parts, "sparse"].index("sparse"))
    if config["model_type"] in SIGMOID_ROUTERS:
        config.setdefault("scoring_func", "sigmoid")
    if config["model_type"] in _OF_TYPE:
        config.update(_OF_TYPE[config["model_type"]](config))


def rope_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of the rotary embedding, those of layers that read the whole text if others differ."""
    rope: Mapping[str, Any] = config.get("rope_parameters") or {}
    return rope.get("full_attention", rope)


def head_size(config: Mapping[str, Any]) -> int:
    """Return the size of a head: channels / heads if the config leaves it out."""
    heads = config.get("num_attention_heads") or config["n_head"]
    return config.get("head_dim") or (config.get("hidden_size") or config["n_embd"]) // heads


def _afmoe(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Say that the weights of the chosen experts add up to one."""
    return {"route_norm": config.get("route_norm", True)}


def _bamba(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return how many dimensions of a head are rotated."""
    return {"attn_rotary_emb": int(rope_of(config)["partial_rotary_factor"] * head_size(config))}


def _cohere2(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Say that whole heads are rotated, if nothing else is said."""
    return {"rotary_pct": config.get("rotary_pct", 1.0)}


def _falcon(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the number of groups, which the older architecture takes from another key than the one saved."""
    if config.get("new_decoder_architecture"):
        return {}
    return {"num_kv_heads": 1 if config.get("multi_query") else config["num_attention_heads"]}


def _falcon_h1(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the size of a head, which may be left out."""
    return {"head_dim": head_size(config)}


def _gemma4(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the size of heads in layers that read the whole text, which is left out if it is that of all."""
    return {"global_head_dim": config.get("global_head_dim") or config["head_dim"]}


def _hunyuan(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what the converter expects of a Hunyuan mixture for each layer."""
    used = config["moe_topk"]
    return {
        "moe_topk": [used] if isinstance(used, int) else used,
        "moe_intermediate_size": [config["intermediate_size"]],
        "num_shared_expert": [1],
    }


def _kimi(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return how Kimi Linear's layers differ, in the form of the published configs."""
    kinds = enumerate(config["layer_types"], 1)
    return {
        "linear_attn_config": {
            "full_attn_layers": [number for number, kind in kinds if kind == "full_attention"],
            "short_conv_kernel_size": config["linear_conv_kernel_dim"],
            "head_dim": config["linear_head_dim"],
        },
        "first_k_dense_replace": config["mlp_layer_types"].count("dense"),
    }


def _mimo(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what MiMo V2's layers with a window have of their own, in the form of the published configs."""
    return {
        "hybrid_layer_pattern": [int(kind == "sliding_attention") for kind in config["layer_types"]],
        "swa_head_dim": config["head_dim"],
        "swa_v_head_dim": config["v_head_dim"],
        "swa_num_attention_heads": config["num_attention_heads"],
        "swa_num_key_value_heads": 2 * config["num_key_value_heads"],
        "layernorm_epsilon": config["rms_norm_eps"],
        "topk_method": "noaux_tc",
    }


def _minimax(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return how many dimensions of a head MiniMax M2 rotates."""
    return {"rotary_dim": int(config["head_dim"] * rope_of(config).get("partial_rotary_factor", 1.0))}


def _unused_window(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Leave out a window that no layer has: llama.cpp ends in a failed assertion otherwise."""
    return {} if "sliding_attention" in config["layer_types"] else {"sliding_window": None}


_OF_TYPE: Mapping[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]] = {
    "afmoe": _afmoe,
    "bamba": _bamba,
    "cohere2": _cohere2,
    "falcon": _falcon,
    "falcon_h1": _falcon_h1,
    "gemma4_text": _gemma4,
    "hunyuan_v1_moe": _hunyuan,
    "kimi_linear": _kimi,
    "laguna": _unused_window,
    "mellum": _unused_window,
    "mimo_v2_flash": _mimo,
    "minimax_m2": _minimax,
}
"""By type, keys that follow from others, which a cut may have changed."""


def layer_period(kinds: Sequence[str]) -> int | None:
    """Return the period of the layers that read the whole text: 0 if none does, None if they have no period.

    llama.cpp knows nothing else about which layers have a sliding window.
    """
    full = [kind == "full_attention" for kind in kinds]
    if not any(full):
        return 0 if full else None
    period = full.index(True) + 1
    return period if all(whole == (number % period == 0) for number, whole in enumerate(full, 1)) else None


def leading_period(kinds: Sequence[str]) -> int | None:
    """Return the period of the layers that read the whole text, from the first layer on; None if they have none.

    llama.cpp knows nothing else about which layers of Laguna have a sliding window.
    """
    full = [number for number, kind in enumerate(kinds) if kind == "full_attention"]
    period = full[1] if len(full) > 1 else len(kinds)
    return period if full == list(range(0, len(kinds), period)) else None
