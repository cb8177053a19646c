"""Small multimodal models of plain transformers: a language model beside a vision or audio tower."""

from functools import lru_cache
from pathlib import Path

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    GenerationConfig,
    PreTrainedModel,
)

from tests.helpers.models import tokenizer

_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "vocab_size": len(tokenizer()),
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_AUDIO = {
    "d_model": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "num_mel_bins": 8,
}
_GEMMA = _TEXT | {"sliding_window": 16}

CONFIGS = {
    "gemma3": {
        "text_config": _GEMMA | {"query_pre_attn_scalar": 8},
        "vision_config": _VISION,
        "mm_tokens_per_image": 4,
    },
    "mistral3": {
        "text_config": _TEXT | {"model_type": "mistral", "sliding_window": None},
        # A tower with layers of the same names and sizes as the language model's.
        "vision_config": _VISION
        | {"model_type": "pixtral", "hidden_size": 32, "intermediate_size": 48, "head_dim": 16},
    },
    "ministral3": {
        "model_type": "mistral3",
        "text_config": _TEXT | {"model_type": "ministral3", "tie_word_embeddings": False},
        "vision_config": _VISION | {"model_type": "pixtral", "head_dim": 8},
        "tie_word_embeddings": False,
    },
    "qwen3_5": {
        "text_config": _TEXT
        | {
            "num_hidden_layers": 4,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
        "vision_config": {
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "out_hidden_size": 32,
        },
    },
    "gemma4": {
        "text_config": _GEMMA
        | {
            "global_head_dim": 8,
            "num_global_key_value_heads": 2,
            "vocab_size_per_layer_input": len(tokenizer()),
            "hidden_size_per_layer_input": 4,
            "num_kv_shared_layers": 0,
        },
        "vision_config": _VISION | {"num_key_value_heads": 2, "head_dim": 8},
        "audio_config": None,
    },
    "qwen2_audio": {"text_config": _TEXT | {"model_type": "qwen2"}, "audio_config": _AUDIO},
}
"""A small config of each kind; its name is that of the type, or of its text half."""

TEXT_TYPES = {
    "gemma3": "gemma3_text",
    "mistral3": "mistral",
    "ministral3": "ministral3",
    "qwen3_5": "qwen3_5_text",
    "gemma4": "gemma4_text",
    "qwen2_audio": "qwen2",
}


@lru_cache
def whole_model(name: str) -> PreTrainedModel:
    """Build a multimodal model with random weights, none of which is zero or one. Do not change it."""
    values = {"model_type": name} | CONFIGS[name]
    config = CONFIG_MAPPING[values.pop("model_type")](**values)
    kind = AutoModelForMultimodalLM if name == "qwen2_audio" else AutoModelForImageTextToText
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.2
        parameter.data.copy_(parameter + noise if parameter.ndim == 1 else noise)
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=1)
    return model.requires_grad_(False).eval()


def save_whole(folder: Path, name: str, **options: object) -> Path:
    """Save a small multimodal model and a tokenizer to a folder, under the names that transformers gives."""
    whole_model(name).save_pretrained(folder, **options)
    tokenizer().save_pretrained(folder)
    return folder
