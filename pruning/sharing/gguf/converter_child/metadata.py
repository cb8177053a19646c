"""Write metadata that the converter derives from other sizes than the config of a cut model says."""

import math
from typing import Any

from .config_keys import head_size, layer_period, leading_period, rope_of

CORRECTED = (
    *("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text"),
    "solar_open",
)
"""The types of model whose heads and windows are as `_sizes` reads them."""

WIDTHS = {
    "gpt2": "n_inner",
    "gpt_bigcode": "n_inner",
    "falcon": "ffn_hidden_size",
    "phi": "intermediate_size",
}
"""The number of neurons of the types for which the converter takes four times the channels."""


def corrections(config: dict[str, Any], gguf: Any) -> dict[str, Any]:
    """Return metadata by key, each with its kind, that replaces what the converter derives."""
    kinds = gguf.GGUFValueType
    found: dict[str, Any] = {}
    if width := config.get(WIDTHS.get(config["model_type"], "")):
        found["feed_forward_length"] = width, kinds.UINT32
    if "kv_lora_rank" in config and config.get("q_lora_rank") is None:
        # llama.cpp expects this key, except from a few numbers of layers.
        found["attention.q_lora_rank"] = 0, kinds.UINT32
    if config["model_type"] == "laguna" and (period := leading_period(config["layer_types"])):
        found["attention.sliding_window_pattern"] = period, kinds.UINT32
    if config["model_type"] == "ernie4_5_moe" and (shared := config.get("moe_num_shared_experts")):
        # The converter divides the neurons of the other layers by the groups of heads.
        found["expert_shared_feed_forward_length"] = shared * config["moe_intermediate_size"], kinds.UINT32
    if config["model_type"] == "granitemoehybrid":
        # llama.cpp rotates queries and keys by this key. The converter sets it if all layers are attention.
        found["rope.scaling.finetuned"] = config.get("position_embedding_type") == "rope", kinds.BOOL
    rope = rope_of(config)
    if rope.get("rope_type") == "yarn" and rope.get("factor") and rope.get("attention_factor"):
        # llama.cpp multiplies what it reads by the factor that transformers takes without a value in the config.
        default = 1 + 0.1 * math.log(rope["factor"])
        found["rope.scaling.attn_factor"] = rope["attention_factor"] / default, kinds.FLOAT32
    return found | _sizes(config, kinds) if config["model_type"] in CORRECTED else found


def _sizes(config: dict[str, Any], kinds: Any) -> dict[str, Any]:
    """Return the size of heads, and what layers with a window have of their own."""
    found: dict[str, Any] = {}
    full, sliding = rope_of(config), (config.get("rope_parameters") or {}).get("sliding_attention", {})
    if full.get("rope_theta"):
        found["rope.freq_base"] = float(full["rope_theta"]), kinds.FLOAT32
    if sliding.get("rope_theta"):
        found["rope.freq_base_swa"] = float(sliding["rope_theta"]), kinds.FLOAT32
    if full:
        head = head_size(config)
        found["rope.dimension_count"] = int(full.get("partial_rotary_factor", 1.0) * head), kinds.UINT32
        found["attention.key_length"] = found["attention.value_length"] = head, kinds.UINT32
    if (period := layer_period(config.get("layer_types") or [])) is not None and config.get("sliding_window"):
        found["attention.sliding_window_pattern"] = period, kinds.UINT32
    return found


def put(writer: Any, key: str, value: Any, kind: Any, gguf: Any) -> None:
    """Write metadata, in place of what is there."""
    for part in writer.kv_data:
        part.pop(key, None)
    sub_type = kind_of(value[0], gguf) if isinstance(value, list) else None
    writer.add_key_value(key, value, kind, sub_type)


def kind_of(value: Any, gguf: Any) -> Any:
    """Return how metadata stores a value."""
    kinds = gguf.GGUFValueType
    table = {bool: kinds.BOOL, int: kinds.UINT32, float: kinds.FLOAT32, str: kinds.STRING, list: kinds.ARRAY}
    return table[type(value)]
