"""Models of more than text: the config of their text half, and what is left out with the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pruning.architectures.config import known_types
from pruning.errors import ModelError
from pruning.lazy import transformers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

TEXT = "text_config"

SENSES = {"vision": "vision", "image": "vision", "video": "vision", "audio": "audio", "speech": "audio"}
"""What a part of a config is for, by a word in its key or its type."""

OTHER_LOGITS = ("aya_vision", "cohere2_vision")
"""Types whose logits of a text are not those of their text half, which scales them."""

_TIE = "tie_word_embeddings"


def is_multimodal(values: Mapping[str, Any]) -> bool:
    """Return whether the values of a config are of a model that transformers builds around a language model."""
    # transformers is asked only if that decides: a config of text alone holds no config of a part.
    return any(str(key).endswith("_config") for key in values) and TEXT in _parts(values)


def text_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the config of a multimodal model's text half.

    The configs of the other parts are not read, so that nothing is built of them.

    Args:
        values: The content of its `config.json`.

    Raises:
        ModelError: Its text half is not a causal language model, or the values describe none.
    """
    name, own = values["model_type"], values.get(TEXT, {})
    if name in OTHER_LOGITS:
        raise ModelError(
            f"Of a {name} model only the text half could be cut, and that scales its logits, which the whole model "
            "does not. Choose another model."
        )
    if not isinstance(own, Mapping):
        raise ModelError(f"The config sets {TEXT} to {str(own)[:40]!r}; an object is needed.")
    others = _parts(values) - {TEXT}
    try:
        whole = transformers.CONFIG_MAPPING[name](
            **{key: value for key, value in values.items() if key != "model_type" and key not in others}
        )
        text: PreTrainedConfig = whole.text_config
        found = text.to_dict()
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"The config describes no valid {name} model: {reason}") from error
    if found.get("model_type") not in known_types() or found.get("is_encoder_decoder"):
        raise ModelError(
            f"Of a {name} model only the text half could be cut, and the installed transformers has no causal "
            f"language model of its type, {str(found.get('model_type'))[:100]}. Choose another model."
        )
    tied = values.get(_TIE, own.get(_TIE, getattr(whole, _TIE, found.get(_TIE))))
    return found | {_TIE: bool(tied)}


def left_out(values: Mapping[str, Any]) -> str:
    """Return a sentence that says what a multimodal model loses if only its text half is taken."""
    parts = {key: values.get(key) for key in sorted(_parts(values) - {TEXT})}
    present = [
        f"{key} {part.get('model_type')}" for key, part in parts.items() if isinstance(part, Mapping) and part
    ]
    senses = dict.fromkeys(
        sense for word, sense in SENSES.items() if any(word in key for key in present)
    ) or {"everything but text": None}
    verb = "was" if len(senses) == 1 else "were"
    what = " and ".join(senses)
    return (
        f"{what[:1].upper()}{what[1:]} {verb} left out: of this {values['model_type']} model, only the text half "
        f"({text_values(values)['model_type']}) is used."
    )


def _parts(values: Mapping[str, Any]) -> set[str]:
    """Return the keys under which a config of this type holds the configs of its parts."""
    name = values.get("model_type")
    if not isinstance(name, str) or name not in transformers.CONFIG_MAPPING:
        return set()
    return set(getattr(transformers.CONFIG_MAPPING[name], "sub_configs", {}))
