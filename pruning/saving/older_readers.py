"""What older versions of transformers read in a saved folder, beside what the installed one reads.

transformers 5 writes the settings of rotary embeddings under one key, which older versions pass over without a word:
they then compute with default settings. It also names a tokenizer class that they do not have.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
GLOBAL, LOCAL = "full_attention", "sliding_attention"
OLDER_CLASS = "PreTrainedTokenizerFast"
"""What `TokenizersBackend` was called."""

OLDER_NAMES: Mapping[str, Mapping[str, str]] = {
    "gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
}
"""Model types whose older configs have other names for these settings."""


def write_for_older_readers(folder: Path) -> None:
    """Add to the files in a saved folder what older versions read, as far as the installed one reads the same then."""
    _rewrite(folder / CONFIG, _with_older_rope, lambda: AutoConfig.from_pretrained(folder).to_dict())
    if (folder / "tokenizer.json").exists():
        _rewrite(folder / TOKENIZER_CONFIG, _with_older_class, lambda: _tokenizer_values(folder))


def _rewrite(file: Path, change: Any, read: Any) -> None:
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


def _tokenizer_values(folder: Path) -> tuple[str, str, dict[str, Any]]:
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return (
        tokenizer.backend_tokenizer.to_str(),
        str(tokenizer.chat_template),
        dict(tokenizer.special_tokens_map),
    )
