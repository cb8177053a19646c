"""Write a model's vocabulary and special tokens as its tokenizer uses them."""

import json
import re
from typing import Any

from .metadata import put

# How a tokenizer splits a text into words, as tokenizer.json writes it, to the name by which llama.cpp knows it.
_LLAMA3 = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
_QWEN2 = _LLAMA3.replace("\\p{N}{1,3}", "\\p{N}")
_QWEN35 = _QWEN2.replace("\\p{L}+", "[\\p{L}\\p{M}]+").replace("[^\\s\\p{L}", "[^\\s\\p{L}\\p{M}")


def split_name(backend: dict[str, Any]) -> str | None:
    """Return llama.cpp's name for how a byte-level tokenizer splits a text, or None if it is not known here."""
    steps = backend.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    patterns, by_words = [], False
    for step in steps:
        if step["type"] == "ByteLevel":
            by_words = step.get("use_regex", True)
            if step.get("add_prefix_space"):
                return None
        elif step["type"] == "Digits" and step.get("individual_digits"):
            patterns.append("digits")
        elif step["type"] == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
            patterns.append(step["pattern"].get("Regex"))
        else:
            return None
    known = {
        ((), True): "gpt-2",
        (("digits",), True): "smollm",
        ((_LLAMA3,), False): "llama-bpe",
        ((_QWEN2,), False): "qwen2",
        ((_QWEN35,), False): "qwen35",
    }
    return known.get((tuple(patterns), by_words))


def add_sentencepiece(converter: Any, backend: dict[str, Any], gguf: Any) -> None:
    """Write a SentencePiece vocabulary; a token's score is the rank of the merge that makes it.

    llama.cpp merges the pair whose result has the highest score, so that only the order of the scores counts. Tokens
    that the model has no row for are left out.
    """
    kinds = gguf.TokenType
    model, count = backend["model"], converter.hparams["vocab_size"]
    tokens = [f"[PAD{number}]" for number in range(count)]
    scores, types = [-1e6] * count, [kinds.UNUSED] * count
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(model["merges"]):
        ranks.setdefault("".join(pair.split(" ") if isinstance(pair, str) else pair), rank)
    for token, number in model["vocab"].items():
        if number >= count:
            continue
        tokens[number], scores[number], types[number] = (
            token,
            -float(ranks.get(token, len(ranks))),
            kinds.NORMAL,
        )
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            types[number] = kinds.BYTE
        elif token == model.get("unk_token"):
            types[number] = kinds.UNKNOWN
    for added in backend["added_tokens"]:
        number = added["id"]
        if number >= count or types[number] == kinds.UNKNOWN:
            continue
        tokens[number] = added["content"]
        types[number] = kinds.CONTROL if added["special"] else kinds.USER_DEFINED
    writer = converter.gguf_writer
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    gguf.SpecialVocab(converter.dir_model, n_vocab=count).add_to_gguf(writer)
    put(writer, "tokenizer.ggml.add_space_prefix", prepends_space(backend), gguf.GGUFValueType.BOOL, gguf)


def prepends_space(backend: dict[str, Any]) -> bool:
    """Return whether a SentencePiece tokenizer writes a space before a text."""
    text = json.dumps([backend.get("normalizer"), backend.get("pre_tokenizer")])
    return '"Prepend"' in text or any(f'"prepend_scheme": "{name}"' in text for name in ("always", "first"))


def add_special_tokens(converter: Any, tokenizer: Any, gguf: Any) -> None:
    """Write which tokens begin and end a text, as the tokenizer does it."""
    writer = converter.gguf_writer
    ids = tokenizer("a").input_ids
    for name, place in (("bos", ids[:1]), ("eos", ids[-1:])):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            put(writer, f"tokenizer.ggml.{name}_token_id", number, gguf.GGUFValueType.UINT32, gguf)
        added = number is not None and place == [number]
        put(writer, f"tokenizer.ggml.add_{name}_token", added, gguf.GGUFValueType.BOOL, gguf)


def avoid_name_rules(writer: Any, tokens: set[str], gguf: Any) -> None:
    """Change a model's name that makes llama.cpp look for tokens that the model does not have."""
    name = next(part["general.name"].value for part in writer.kv_data if "general.name" in part)
    if not {"</s>", "<unk>", "<s>", "<|endoftext|>"} <= tokens:
        changed = re.sub("phi-?3", "Phi 3", name, flags=re.IGNORECASE)
        put(writer, "general.name", changed, gguf.GGUFValueType.STRING, gguf)
