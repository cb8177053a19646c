"""Give tensors the names and the form that the converter looks for."""

import re
from collections.abc import Iterator
from typing import Any

from .config_keys import head_size

RENAMED = {
    "bitnet": {"attn_sub_norm": "inner_attn_ln", "ffn_sub_norm": "ffn_layernorm"},
    "kimi_linear": {
        f".block_sparse_moe.{part}_proj.": f".mlp.{part}_proj." for part in ("gate", "up", "down")
    },
    "sarvam_moe": {
        "word_embeddings": "embed_tokens",
        ".attention.query_key_value.": ".self_attn.qkv_proj.",
        ".attention.dense.": ".self_attn.o_proj.",
        ".attention.query_layernorm.": ".self_attn.q_norm.",
        ".attention.key_layernorm.": ".self_attn.k_norm.",
        ".gate.expert_bias": ".gate.e_score_correction.bias",
    },
}
"""Parts of the names of tensors as transformers saves a type, each with what the converter looks for."""

FUSED = (("phi3", "llama"), ("sarvam_moe", "glm4moe"))
"""The types that store queries, keys and values as one matrix, each with an architecture that reads three."""


def renamed(config: dict[str, Any], name: str) -> str:
    """Return the name that the converter looks for."""
    for old, new in RENAMED.get(config["model_type"], {}).items():
        name = name.replace(old, new)
    return name


def split_fused(converter: Any, data: Any, name: str) -> list[tuple[str, Any]]:
    """Split what a model stores as one matrix and llama.cpp reads as several in the architecture that it gets."""
    config = converter.hparams
    if (config["model_type"], converter.gguf_writer.arch) not in FUSED:
        return [(name, data)]
    if "qkv_proj" in name:
        head = head_size(config)
        lengths = [config["num_attention_heads"] * head, *(2 * [config["num_key_value_heads"] * head])]
        parts = ("q_proj", "k_proj", "v_proj")
        return [
            (name.replace("qkv_proj", part), piece)
            for part, piece in zip(parts, data.split(lengths), strict=True)
        ]
    if "gate_up_proj" in name:
        return [
            (name.replace("gate_up_proj", part), piece)
            for part, piece in zip(("gate_proj", "up_proj"), data.chunk(2), strict=True)
        ]
    return [(name, data)]


def pair_rotated(config: dict[str, Any], data: Any, name: str) -> Any:
    """Put rows of queries and keys that are rotated together side by side, in heads that are rotated in part."""
    if config["model_type"] != "bamba" or not re.search(r"\.[qk]_proj\.", name):
        return data
    head, rotated = head_size(config), config["attn_rotary_emb"]
    half = rotated // 2
    pairs = [row for first in range(half) for row in (first, first + half)]
    order = [*pairs, *range(rotated, head)]
    return data[[start + row for start in range(0, len(data), head) for row in order]]


def extra_tensors(converter: Any) -> Iterator[tuple[str, Any]]:
    """Yield the tensors that llama.cpp asks for and that the model's files do not hold, by their names."""
    config, tensors = converter.hparams, converter.model_tensors
    if config["model_type"] == "gpt_neox" and config.get("tie_word_embeddings"):
        yield "output.weight", tensors["gpt_neox.embed_in.weight"]()
    if config["model_type"] == "gemma3n_text":
        # Of layers that use the keys and values of others. llama.cpp loads theirs and ignores them.
        layers, shared = config["num_hidden_layers"], config["num_kv_shared_layers"]
        for part in ("k_proj", "v_proj", "k_norm"):
            zeros = 0 * tensors[f"model.layers.0.self_attn.{part}.weight"]()
            for layer in range(layers - shared, layers):
                yield f"model.layers.{layer}.self_attn.{part}.weight", zeros
