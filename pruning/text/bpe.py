"""A byte-pair tokenizer's vocabulary and merges, and the same tokenizer rebuilt with fewer tokens."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, TemplateSyntaxError

from pruning.errors import RecipeError
from pruning.files import temporary_folder
from pruning.lazy import tokenizers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPACE = "▁"
"""A space in SentencePiece's tokens. Made of its bytes, it would be read back as itself, not as a space."""

ROLES = ("system", "user", "assistant")

_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]

Json = dict[str, Any]
"""Part of a tokenizer.json."""


class BytePairs:
    """The tokens of a byte-pair tokenizer, and the merges that join them to one another.

    Supports byte-level tokenizers (GPT-2, Llama 3, Qwen, SmolLM2) and those that fall back to bytes
    for unknown characters (Llama 2, Gemma).

    Args:
        tokenizer: The tokenizer.
        rows: How many rows the model's embeddings have; tokens beyond them are left out. None for all tokens.

    Attributes:
        ids: The id of each token.

    Raises:
        RecipeError: The vocabulary of this tokenizer cannot be cut.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rows: int | None = None):
        self._tokenizer = tokenizer
        self._file = _parse(tokenizer)
        self.ids: dict[str, int] = {
            token: number for token, number in tokenizer.get_vocab().items() if rows is None or number < rows
        }
        self._added = {token["content"] for token in self._file["added_tokens"]}
        self._ranks: dict[tuple[str, str], int] = {}
        self._pairs: dict[str, list[tuple[str, str]]] = {}
        for merge in self._file["model"]["merges"]:
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            self._ranks[left, right] = len(self._ranks)
            self._pairs.setdefault(left + right, []).append((left, right))

    def essential_tokens(self, named: Collection[int] = ()) -> list[str]:
        """Return the tokens without which texts cannot be read, begun or ended, by id.

        These are the special tokens, those of the text in the chat template, the `named` ids (of a
        config), and all single bytes.
        """
        wanted = {SPACE, self._file["model"].get("unk_token"), *self._tokenizer.all_special_tokens}
        wanted |= {token["content"] for token in self._file["added_tokens"] if token["special"]}
        for text in _template_texts(self._tokenizer.chat_template):
            wanted |= set(self._tokenizer.tokenize(text))
        wanted |= {token for token, token_id in self.ids.items() if token_id in named}
        wanted |= set(_post_processor_tokens(self._file["post_processor"]))
        wanted |= {(self._file.get("padding") or {}).get("pad_token")}
        wanted |= set(
            tokenizers.pre_tokenizers.ByteLevel.alphabet() if _is_byte_level(self._file) else _BYTES
        )
        return sorted(wanted & self.ids.keys(), key=lambda token: self.ids[token])

    def with_parts(self, tokens: Iterable[str]) -> Iterator[str]:
        """Yield each token once, after the tokens that it is merged from.

        So every prefix of the result is closed under merges, however many tokens are taken.
        """
        seen: set[str] = set()

        def visit(token: str) -> Iterator[str]:
            if token not in seen:
                seen.add(token)
                for part in self._parts(token):
                    yield from visit(part)
                yield token

        for token in tokens:
            yield from visit(token)

    def _parts(self, token: str) -> tuple[str, ...]:
        """Return the two tokens that the last merge joins to this one; none if no merge makes it.

        Merges inside a token do not depend on the text around it, because none of them crosses its
        borders; so a text whose tokens are kept with their parts is tokenized as before.
        """
        pairs = self._pairs.get(token, [])
        if token in self._added or len(pairs) < 2:
            return () if token in self._added or not pairs else pairs[0]
        pieces = list(token)
        while len(pieces) > 2:
            ranks = [self._ranks.get(pair, inf) for pair in pairwise(pieces)]
            rank = min(ranks)
            if rank == inf:
                return ()  # Found as a whole word only (`ignore_merges`).
            place = ranks.index(rank)
            pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
        return tuple(pieces) if tuple(pieces) in self._ranks else ()

    def rebuild(self, kept: Sequence[int]) -> PreTrainedTokenizerBase:
        """Build the same tokenizer with fewer tokens.

        A merge is kept if its result and both of its parts are.

        Args:
            kept: The ids to keep; the position of each becomes its new id.

        Raises:
            RecipeError: The tokenizer's class adds tokens of its own or renumbers them.
        """
        new_ids = {old: new for new, old in enumerate(kept)}
        ids = {token: new_ids[old] for token, old in self.ids.items() if old in new_ids}
        model = self._file["model"]
        vocabulary = {token: ids[token] for token in model["vocab"] if token in ids}
        merges = [list(pair) for pair in self._ranks if vocabulary.keys() >= {*pair, "".join(pair)}]
        added = [
            token | {"id": ids[token["content"]]}
            for token in self._file["added_tokens"]
            if token["content"] in ids
        ]
        padding = self._file.get("padding")
        file = self._file | {
            "added_tokens": added,
            "padding": padding and padding | {"pad_id": ids[padding["pad_token"]]},
            "post_processor": _renumber(self._file["post_processor"], ids),
            "model": model | {"vocab": vocabulary, "merges": merges},
        }
        # Read back from a folder, as a user will: classes differ in what they make of a file.
        with temporary_folder() as folder:
            self._tokenizer.save_pretrained(folder)
            text = json.dumps(file, ensure_ascii=False)
            (folder / "tokenizer.json").write_text(text, encoding="utf-8")
            rebuilt = type(self._tokenizer).from_pretrained(folder, local_files_only=True)
        rebuilt.name_or_path = self._tokenizer.name_or_path
        if rebuilt.get_vocab() != ids:
            raise RecipeError(
                f"The tokenizer, a {type(rebuilt).__name__}, changes the tokens it is given, so "
                "its vocabulary cannot be cut. Leave the vocabulary as it is."
            )
        return rebuilt


def _parse(tokenizer: PreTrainedTokenizerBase) -> Json:
    """Return the values of tokenizer.json. Raises `RecipeError` if the vocabulary cannot be cut."""
    if not tokenizer.is_fast:
        raise _refusal(f"it is a {type(tokenizer).__name__}, which has no tokenizer.json")
    file = json.loads(tokenizer.backend_tokenizer.to_str())
    model = file["model"]
    if model["type"] != "BPE":
        raise _refusal(
            f"it is a {model['type']} tokenizer, and only byte-pair encoding records which tokens "
            "are made of which"
        )
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _refusal("it marks the beginnings or ends of words inside its tokens")
    if not _is_byte_level(file) and not (model.get("byte_fallback") and model["vocab"].keys() >= set(_BYTES)):
        raise _refusal("it does not have all single bytes, so text with a removed token could not be written")
    return file


def _refusal(reason: str) -> RecipeError:
    return RecipeError(
        f"The vocabulary cannot be cut with this tokenizer: {reason}. Cut something else, or choose a model "
        "with a byte-level tokenizer, such as GPT-2, Llama 3, Qwen or SmolLM2."
    )


def _template_texts(template: str | Mapping[str, str] | None) -> Iterator[str]:
    """Yield the literal texts of a chat template, and the roles; the template is not run."""
    templates = template.values() if isinstance(template, Mapping) else [template] if template else []
    yield from ROLES if templates else ()
    for source in templates:
        with suppress(TemplateSyntaxError):
            for token in Environment().lexer.tokenize(source):
                if token.type in ("data", "string"):
                    yield token.value


def _is_byte_level(file: Json) -> bool:
    """Return whether every character of a token stands for a byte."""
    decoder = file["decoder"] or {}
    return any(part["type"] == "ByteLevel" for part in decoder.get("decoders", [decoder]) if part)


def _post_processor_tokens(processor: Json | None) -> Iterator[str]:
    """Yield the tokens that a post-processor puts around a text."""
    for part in (processor or {}).get("processors", [processor] if processor else []):
        for special in part.get("special_tokens", {}).values():
            yield from special["tokens"]
        yield from (part[key][0] for key in ("cls", "sep") if key in part)


def _renumber(processor: Json | None, ids: Mapping[str, int]) -> Json | None:
    """Return the post-processor with new ids for the tokens that it puts around a text."""
    if processor is None:
        return None
    if "processors" in processor:
        return processor | {"processors": [_renumber(part, ids) for part in processor["processors"]]}
    new = dict(processor)
    if "special_tokens" in processor:
        new["special_tokens"] = {
            name: special | {"ids": [ids[token] for token in special["tokens"]]}
            for name, special in processor["special_tokens"].items()
        }
    return new | {key: [new[key][0], ids[new[key][0]]] for key in ("cls", "sep") if key in new}
