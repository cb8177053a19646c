"""A byte-pair tokenizer laid open, and made again with fewer tokens."""

import json
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from math import inf
from pathlib import Path

from jinja2 import Environment, TemplateSyntaxError
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerBase

from pruning.errors import RecipeError

SPACE = "▁"
"""A space in SentencePiece's tokens. Made of its bytes, it would be read back as itself, not as a space."""


class BytePairs:
    """The tokens of a byte-pair tokenizer, and how merges make them of one another.

    Byte-level ones (GPT-2, Llama 3, Qwen, SmolLM2) and those that fall back to bytes for characters they
    do not know (Llama 2, Gemma). Raises `RecipeError` for others.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._file = _laid_open(tokenizer)
        self.ids: dict[str, int] = tokenizer.get_vocab()
        self._added = {token["content"] for token in self._file["added_tokens"]}
        self._ranks: dict[tuple[str, str], int] = {}
        self._pairs: dict[str, list[tuple[str, str]]] = {}
        for merge in self._file["model"]["merges"]:
            pair = tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge)
            self._ranks[pair] = len(self._ranks)
            self._pairs.setdefault("".join(pair), []).append(pair)

    def essential(self, named: Collection[int] = ()) -> list[str]:
        """Tokens without which texts could not be read, begun or ended: the special ones, those of what the
        chat template writes, those `named` by id in a config, and all single bytes."""
        wanted = {SPACE, self._file["model"].get("unk_token"), *self._tokenizer.all_special_tokens}
        wanted |= {token["content"] for token in self._file["added_tokens"] if token["special"]}
        for text in _written_by(self._tokenizer.chat_template):
            wanted |= set(self._tokenizer.tokenize(text))
        wanted |= {token for token, number in self.ids.items() if number in named}
        wanted |= set(_names(self._file["post_processor"]))
        wanted |= {(self._file.get("padding") or {}).get("pad_token")}
        wanted |= set(pre_tokenizers.ByteLevel.alphabet() if _byte_level(self._file) else _BYTES)
        return sorted(wanted & self.ids.keys(), key=self.ids.get)

    def with_parts(self, tokens: Iterable[str]) -> Iterator[str]:
        """The tokens, each once and after those that it is made of: however many are taken, they are
        closed under merges."""
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
        """The two tokens that the last merge joins to make this one; none where no merge makes it.

        Merges inside of a token do not depend on what stands around it, for none of them crosses its
        borders; so a text whose tokens are kept with their parts is merged as before.
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

    def rebuilt(self, kept: Sequence[int]) -> PreTrainedTokenizerBase:
        """The same tokenizer with the tokens `kept`, by id; each gets its place there as its new id.

        Merges stay where both parts and the whole do.
        """
        number = {old: new for new, old in enumerate(kept)}
        ids = {token: number[old] for token, old in self.ids.items() if old in number}
        model = self._file["model"]
        words = {token: ids[token] for token in model["vocab"] if token in ids}
        merges = [list(pair) for pair in self._ranks if words.keys() >= {*pair, "".join(pair)}]
        added = [
            token | {"id": ids[token["content"]]}
            for token in self._file["added_tokens"]
            if token["content"] in ids
        ]
        padding = self._file.get("padding")
        file = self._file | {
            "added_tokens": added,
            "padding": padding and padding | {"pad_id": ids[padding["pad_token"]]},
            "post_processor": _renumbered(self._file["post_processor"], ids),
            "model": model | {"vocab": words, "merges": merges},
        }
        # What is saved is what is read: classes differ in what they make of a file.
        with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
            self._tokenizer.save_pretrained(folder)
            text = json.dumps(file, ensure_ascii=False)
            (Path(folder) / "tokenizer.json").write_text(text, encoding="utf-8")
            rebuilt = type(self._tokenizer).from_pretrained(folder, local_files_only=True)
        rebuilt.name_or_path = self._tokenizer.name_or_path
        if rebuilt.get_vocab() != ids:
            raise RecipeError(
                f"The tokenizer, a {type(rebuilt).__name__}, does not keep to the tokens it is given, so "
                "its vocabulary cannot be cut. Leave the vocabulary as it is."
            )
        return rebuilt


ROLES = ("system", "user", "assistant")

_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _laid_open(tokenizer: PreTrainedTokenizerBase) -> dict:
    """The values of tokenizer.json. Raises `RecipeError` where the vocabulary cannot be cut."""
    if not tokenizer.is_fast:
        raise _refusal(f"it is a {type(tokenizer).__name__}, which has no tokenizer.json")
    file = json.loads(tokenizer.backend_tokenizer.to_str())
    model = file["model"]
    if model["type"] != "BPE":
        raise _refusal(
            f"it is of the kind {model['type']}, and only byte-pair encoding says which tokens are made "
            "of which"
        )
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _refusal("it marks the beginnings or ends of words inside of its tokens")
    if not _byte_level(file) and not (model.get("byte_fallback") and model["vocab"].keys() >= set(_BYTES)):
        raise _refusal("it does not know all single bytes, so what it lost could not be written any more")
    return file


def _refusal(reason: str) -> RecipeError:
    return RecipeError(
        f"The vocabulary cannot be cut with this tokenizer: {reason}. Cut something else, or choose a model "
        "with a byte-level tokenizer, such as GPT-2, Llama 3, Qwen or SmolLM2."
    )


def _written_by(template: str | Mapping[str, str] | None) -> Iterator[str]:
    """What a chat template writes by itself, and the roles; the template is not carried out."""
    templates = template.values() if isinstance(template, Mapping) else [template] if template else []
    yield from ROLES if templates else ()
    for source in templates:
        with suppress(TemplateSyntaxError):
            for token in Environment().lexer.tokenize(source):
                if token.type in ("data", "string"):
                    yield token.value


def _byte_level(file: Mapping) -> bool:
    """Whether every character of a token stands for a byte."""
    decoder = file["decoder"] or {}
    return any(part["type"] == "ByteLevel" for part in decoder.get("decoders", [decoder]) if part)


def _names(processor: Mapping | None) -> Iterator[str]:
    """The tokens that a post-processor puts around a text."""
    for part in (processor or {}).get("processors", [processor] if processor else []):
        for special in part.get("special_tokens", {}).values():
            yield from special["tokens"]
        yield from (part[key][0] for key in ("cls", "sep") if key in part)


def _renumbered(processor: Mapping | None, ids: Mapping[str, int]) -> Mapping | None:
    """The same post-processor with new ids for the tokens that it puts around a text."""
    if processor is None:
        return None
    if "processors" in processor:
        return processor | {"processors": [_renumbered(part, ids) for part in processor["processors"]]}
    new = dict(processor)
    if "special_tokens" in processor:
        new["special_tokens"] = {
            name: special | {"ids": [ids[token] for token in special["tokens"]]}
            for name, special in processor["special_tokens"].items()
        }
    return new | {key: [new[key][0], ids[new[key][0]]] for key in ("cls", "sep") if key in new}
