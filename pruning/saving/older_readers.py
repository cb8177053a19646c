"""Make a saved folder readable by older versions of transformers.

transformers 5 writes all settings of rotary embeddings under one key, which older versions ignore without a warning:
they compute with default settings instead. It also names a tokenizer class that they do not have.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.architectures.lookup import family_for
from pruning.lazy import transformers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
GLOBAL, LOCAL = "full_attention", "sliding_attention"
OLDER_CLASS = "PreTrainedTokenizerFast"
"""What `TokenizersBackend` was called."""

OLDER_NAMES: Mapping[str, Mapping[str, str]] = {
    "gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
}
"""Model types whose older configs have other names for these settings."""

COMPARED_ROPE = frozenset({"default", "llama3"})
"""Kinds of rotary embeddings that older versions were compared with."""


def least_version(config: PreTrainedConfig) -> str:
    """Return the oldest version of transformers that is known to compute what the installed one does.

    Args:
        config: The config of a saved model.

    Returns:
        The family's, if models with such rotary embeddings were compared; otherwise the installed version.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    settings = [each for each in rope.values() if isinstance(each, dict)] or [rope]
    kinds = {each.get("rope_type", "default") for each in settings}
    return (kinds <= COMPARED_ROPE and family_for(config).read_by) or transformers.__version__


def write_for_older_readers(folder: Path) -> None:
    """Add what older versions read to the files in a saved folder, unless it changes what the installed one reads."""
    _rewrite(folder / CONFIG, _with_older_rope, lambda: _config_values(folder))
    if (folder / "tokenizer.json").exists():
        _rewrite(folder / TOKENIZER_CONFIG, _with_older_class, lambda: _tokenizer_values(folder))


def _rewrite(
    file: Path, change: Callable[[Mapping[str, Any]], dict[str, Any]], read: Callable[[], object]
) -> None:
    """Change the values in a file, unless the installed transformers then reads something else."""
    before = file.read_bytes() if file.exists() else b"{}"
    values = json.loads(before)
    changed = change(values)
    if changed == values:
        return
    expected = read()
    file.write_text(json.dumps(changed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    found = None
    with suppress(Exception):  # Whatever the installed version cannot read is not written.
        found = read()
    if found != expected:
        file.write_bytes(before)


def _with_older_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or not rope:
        return dict(config)
    by_attention = all(isinstance(value, dict) for value in rope.values())
    main = rope.get(GLOBAL, {}) if by_attention else rope
    names = OLDER_NAMES.get(str(config.get("model_type")), {})
    older = {
        names.get(name, name): main[name] for name in ("rope_theta", "partial_rotary_factor") if name in main
    }
    if main.get("rope_type", "default") != "default":
        older["rope_scaling"] = {name: value for name, value in main.items() if name != "rope_theta"}
    if by_attention and "rope_theta" in rope.get(LOCAL, {}):
        older["rope_local_base_freq"] = rope[LOCAL]["rope_theta"]
    return older | dict(config)


def _with_older_class(values: Mapping[str, Any]) -> dict[str, Any]:
    if values.get("tokenizer_class") != "TokenizersBackend":
        return dict(values)
    return {**values, "tokenizer_class": OLDER_CLASS}


def _config_values(folder: Path) -> dict[str, Any]:
    return transformers.AutoConfig.from_pretrained(folder, local_files_only=True).to_dict()


def _tokenizer_values(folder: Path) -> tuple[str, str, dict[str, Any]]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return (
        tokenizer.backend_tokenizer.to_str(),
        str(tokenizer.chat_template),
        dict(tokenizer.special_tokens_map),
    )
