"""Tokenize a text in which only a template may write control tokens: in what people write, they are text.

A text without a control token in the wrong place is tokenized as it is, as a whole. Otherwise the same tokenizer is
used with its control tokens under other names, which nobody can guess: the template's are written under these names.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from pruning.errors import RecipeError, panics_as_errors
from pruning.lazy import tokenizers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Part:
    """A part of a text.

    Attributes:
        text: The part.
        is_content: Whether a person or a model wrote it, and not a template.
        is_answer: Whether a model is to write it.
    """

    text: str
    is_content: bool = False
    is_answer: bool = False


@dataclass(frozen=True)
class EncodedParts:
    """The tokens of a text.

    Attributes:
        ids: The token ids.
        answer_mask: For each token, whether a model is to write it.
    """

    ids: list[int]
    answer_mask: list[bool]


def control_tokens(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> frozenset[str]:
    """Return the tokens that control a model: the special ones, and the added ones in the texts of a template.

    Args:
        tokenizer: The tokenizer.
        texts: What its template writes.
    """
    written = "\0".join(texts)
    return frozenset(
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.content and (token.special or (token.content in written and not token.content.isspace()))
    )


def find_control_tokens(text: str, tokens: Collection[str]) -> Iterator[re.Match[str]]:
    """Yield the place of each control token in a text, the longest one at each."""
    if tokens:
        longest_first = sorted(tokens, key=len, reverse=True)
        yield from re.finditer("|".join(map(re.escape, longest_first)), text)


def encode_parts(
    tokenizer: PreTrainedTokenizerBase, parts: Sequence[Part], tokens: frozenset[str]
) -> EncodedParts:
    """Tokenize a text as a whole, without adding special tokens.

    Args:
        tokenizer: A fast tokenizer.
        parts: The parts of the text. In those that are content, control tokens are tokenized as any other text.
        tokens: The control tokens.

    Raises:
        RecipeError: A part that is content has a control token that this tokenizer cannot write as text.
        ModelError: The tokenizer failed on the text.
    """
    text = "".join(part.text for part in parts)
    with panics_as_errors():
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, offsets = encoded.input_ids, encoded.offset_mapping
        control = _ids_of(tokenizer, tokens)
        places = [_without_spaces(text, *offsets[at]) for at, token in enumerate(ids) if token in control]
        contents = _spans(parts, [part.is_content for part in parts])
        if any(start < last and first < end for start, end in places for first, last in contents):
            return _encode_renamed(tokenizer, parts, tokens)
    return EncodedParts(ids, _mask(offsets, parts))


def _ids_of(tokenizer: PreTrainedTokenizerBase, tokens: Collection[str]) -> dict[int, str]:
    added = tokenizer.added_tokens_decoder.items()
    return {token_id: token.content for token_id, token in added if token.content in tokens}


def _without_spaces(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the span of an added token without the spaces around it, which some of them swallow."""
    token = text[start:end]
    return start + len(token) - len(token.lstrip()), end - len(token) + len(token.rstrip())


def _spans(parts: Sequence[Part], chosen: Sequence[bool]) -> list[tuple[int, int]]:
    spans, start = [], 0
    for part, is_chosen in zip(parts, chosen, strict=True):
        end = start + len(part.text)
        if is_chosen and part.text:
            spans.append((start, end))
        start = end
    return spans


def _mask(offsets: Sequence[tuple[int, int]], parts: Sequence[Part]) -> list[bool]:
    answers = _spans(parts, [part.is_answer for part in parts])
    mask, before, at = [], 0, 0
    for start, end in offsets:
        # Spaces may be missing from the offsets of a token: it begins where the one before it ends.
        start = min(start, before)
        while at < len(answers) and answers[at][1] <= start:
            at += 1
        mask.append(at < len(answers) and answers[at][0] < end)
        before = max(before, end)
    return mask


@dataclass(frozen=True)
class _Renamed:
    """A tokenizer whose control tokens have other names.

    Attributes:
        backend: The tokenizer.
        names: The new name of each control token.
        ids: The original ids of its added tokens.
    """

    backend: tokenizers.Tokenizer
    names: dict[str, str]
    ids: dict[int, int]


_renamed: WeakKeyDictionary[PreTrainedTokenizerBase, dict[frozenset[str], _Renamed]] = WeakKeyDictionary()


def _encode_renamed(
    tokenizer: PreTrainedTokenizerBase, parts: Sequence[Part], tokens: frozenset[str]
) -> EncodedParts:
    known = _renamed.setdefault(tokenizer, {})
    if tokens not in known:
        known.clear()
        known[tokens] = _rename(tokenizer, tokens)
    renamed = known[tokens]
    written, places = _with_names(parts, renamed.names, frozenset())
    encoded = renamed.backend.encode("".join(part.text for part in written), add_special_tokens=False)
    found = [span for token, span in zip(encoded.ids, encoded.offsets, strict=True) if token in renamed.ids]
    missed = frozenset(
        number
        for number, (start, end) in enumerate(places)
        if not any(first < end and start < last for first, last in found)
    )
    if missed:
        # The tokenizer itself takes these for text: its normalizer changes what stands around them.
        written, _ = _with_names(parts, renamed.names, missed)
        encoded = renamed.backend.encode("".join(part.text for part in written), add_special_tokens=False)
    control = _ids_of(tokenizer, tokens)
    for token in encoded.ids:
        if token not in renamed.ids and token in control:
            raise _cannot_be_text(control[token])
    ids = [renamed.ids.get(token, token) for token in encoded.ids]
    return EncodedParts(ids, _mask(encoded.offsets, written))


def _with_names(
    parts: Sequence[Part], names: dict[str, str], excepted: frozenset[int]
) -> tuple[list[Part], list[tuple[int, int]]]:
    """Write the template's control tokens under other names.

    Args:
        parts: The parts of a text.
        names: The new name of each control token.
        excepted: The numbers of the places where the old name remains.

    Returns:
        The parts, and where in their text the tokens stand.
    """
    written: list[Part] = []
    places: list[tuple[int, int]] = []
    length = 0
    for part in parts:
        text, end = "", 0
        for place in find_control_tokens("" if part.is_content else part.text, names):
            text += part.text[end : place.start()]
            start = length + len(text)
            text += place[0] if len(places) in excepted else names[place[0]]
            places.append((start, length + len(text)))
            end = place.end()
        text += part.text[end:]
        written.append(replace(part, text=text))
        length += len(text)
    return written, places


def _rename(tokenizer: PreTrainedTokenizerBase, tokens: frozenset[str]) -> _Renamed:
    """Rebuild a tokenizer with random names for its control tokens, of characters that are in no text."""
    names = {
        token: "".join(chr(0xE000 + value) for value in secrets.token_bytes(16)) for token in sorted(tokens)
    }
    values = json.loads(tokenizer.backend_tokenizer.to_str())
    added = values["added_tokens"]
    values |= {
        "added_tokens": [
            token | {"content": names.get(token["content"], token["content"])} for token in added
        ],
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }
    backend = tokenizers.Tokenizer.from_str(json.dumps(values, ensure_ascii=False))
    new_ids = backend.get_vocab(with_added_tokens=True)
    ids = {new_ids[names.get(token["content"], token["content"])]: token["id"] for token in added}
    taken = set(backend.get_vocab(with_added_tokens=False).values())
    for token, name in names.items():
        if new_ids.get(name) in taken:
            raise _cannot_be_text(token)
    return _Renamed(backend, names, ids)


def _cannot_be_text(token: str) -> RecipeError:
    return RecipeError(
        f"The text contains {token!r}, which controls the model, and its tokenizer cannot write it as text. "
        "Remove it."
    )
