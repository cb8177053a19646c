"""Token windows: how a text is split before a model reads it."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from pruning.errors import ModelError, RecipeError, panics_as_errors
from pruning.lazy import torch
from pruning.progress import Progress, Reporter, silent
from pruning.text.passages import is_passage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHUNK = 50_000
"""Characters of a long text that are tokenized at a time, so that the work can be stopped in between."""

OVERLAP = 2_000
"""Characters that neighboring chunks share, to find a place where their tokens agree."""

AGREEMENT = 16
"""How many tokens in a row have to agree where two chunks are joined."""

_PASSAGES: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[str, int, int], torch.Tensor]] = (
    WeakKeyDictionary()
)
"""The token ids of bundled passages, by tokenizer, and by the text and the numbers of its tokens, all and added."""


@dataclass(frozen=True)
class Windows:
    """The windows of a calibration text: to fit on, and held out.

    Attributes:
        fitting: Token ids, each tensor `[tokens]`, at most one window long.
        heldout: The same, for measuring what was fitted.
        text_sha256: The digest of the user's own text that they are made of, if they are.
    """

    fitting: tuple[torch.Tensor, ...]
    heldout: tuple[torch.Tensor, ...]
    text_sha256: str | None = None

    @property
    def tokens(self) -> int:
        """The number of tokens in all windows together."""
        return sum(map(len, self.fitting + self.heldout))

    @property
    def digest(self) -> str:
        """32 hexadecimal digits that identify the tokens and how they are split."""
        total = hashlib.sha256()
        for part in (self.fitting, self.heldout):
            for window in part:
                total.update(window.numpy().astype("<i8").tobytes() + b"|")
            total.update(b"#")
        return total.hexdigest()[:32]


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor) -> None:
    """Check that the model has an embedding for every token.

    Raises:
        RecipeError: A token id is not below the model's vocabulary size.
    """
    size = model.config.vocab_size
    if ids.numel() and (highest := int(ids.max())) >= size:
        raise RecipeError(
            f"The text contains {tokenizer.convert_ids_to_tokens(highest)!r}, token {highest} of the "
            f"tokenizer, but the model's vocabulary has {size} tokens. Remove it from the text."
        )


@dataclass(frozen=True)
class TokenizedText:
    """The tokens of a text, without any that the tokenizer adds.

    Attributes:
        ids: The token ids.
        starts: The character at which each token begins.
        ends: The character before which each token ends.
    """

    ids: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def __getitem__(self, part: slice) -> TokenizedText:
        return TokenizedText(self.ids[part], self.starts[part], self.ends[part])

    def extend(self, other: TokenizedText) -> None:
        """Append the tokens that follow."""
        self.ids.extend(other.ids)
        self.starts.extend(other.starts)
        self.ends.extend(other.ends)


def tokenize(
    tokenizer: PreTrainedTokenizerBase, text: str, progress: Reporter = silent, limit: int | None = None
) -> TokenizedText:
    """Tokenize a text without adding special tokens.

    A text of more than `CHUNK` characters is tokenized in overlapping chunks, which are joined where their
    tokens agree. Tokenizers decide by a few characters around each token, so the result is the same as that of
    the whole text, unless a word is longer than the overlap.

    Args:
        tokenizer: The tokenizer.
        text: The text.
        progress: Called before each chunk.
        limit: Stop at the first chunk that completes this number of tokens; None for the whole text.

    Raises:
        ModelError: The tokenizer failed on the text.
    """
    done = last = TokenizedText()
    for start in range(0, max(1, len(text) - OVERLAP), CHUNK - OVERLAP):
        progress(Progress("Splitting the text into tokens, characters", start, len(text)))
        chunk = _tokenize_chunk(tokenizer, text[start : start + CHUNK], start)
        end, begin = _seam(last, chunk, start + OVERLAP // 2)
        done.extend(last[:end])
        last = chunk[begin:]
        if limit is not None and len(done.ids) >= limit:
            return done
    done.extend(last)
    return done


def _tokenize_chunk(tokenizer: PreTrainedTokenizerBase, text: str, offset: int) -> TokenizedText:
    if not tokenizer.is_fast:
        raise ModelError(
            f"The tokenizer is a {type(tokenizer).__name__}, which does not say where in a text its tokens are, so "
            "text cannot be measured or calibrated on. Choose a model whose tokenizer is in a tokenizer.json; cuts "
            "that read weights alone need no text."
        )
    with panics_as_errors():
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    places = encoded.offset_mapping
    return TokenizedText(
        encoded.input_ids, [offset + start for start, _ in places], [offset + end for _, end in places]
    )


def _seam(last: TokenizedText, chunk: TokenizedText, middle: int) -> tuple[int, int]:
    """Return where the first of two overlapping parts of a text ends, and where the second begins.

    That is the place nearest to the middle of the overlap at which a run of tokens agrees; if there is none, the
    middle itself.
    """
    places = {start: index for index, start in reversed(list(enumerate(chunk.starts)))}
    first = bisect_left(last.starts, middle - OVERLAP // 2)
    for index in sorted(range(first, len(last.ids)), key=lambda at: abs(last.starts[at] - middle)):
        other = places.get(last.starts[index])
        if other is None or (index and last.starts[index - 1] == last.starts[index]):
            continue
        one, two = last[index : index + AGREEMENT], chunk[other : other + AGREEMENT]
        if one.ids == two.ids and one.starts == two.starts:
            return index, other
    index = bisect_left(last.starts, middle)
    return index, bisect_left(chunk.starts, last.ends[index - 1] if index else 0)


def encode(tokenizer: PreTrainedTokenizerBase, text: str, progress: Reporter = silent) -> torch.Tensor:
    """Tokenize a text without adding special tokens.

    Each step of a recipe reads the bundled passages, so their tokens are kept as long as the tokenizer.

    Args:
        tokenizer: The tokenizer.
        text: The text.
        progress: Called between the parts of a long text.

    Returns:
        Token ids, `[tokens]`. They are shared: do not change them.

    Raises:
        ModelError: The tokenizer failed on the text.
    """
    known = _PASSAGES.setdefault(tokenizer, {}) if is_passage(text) else {}
    # Adding a token that the vocabulary already has changes the second number alone.
    key = text, len(tokenizer), len(tokenizer.added_tokens_decoder)
    if key not in known:
        known[key] = torch.tensor(tokenize(tokenizer, text, progress).ids, dtype=torch.long)
    return known[key]


def token_ids(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, progress: Reporter = silent
) -> torch.Tensor:
    """Tokenize a text for a model; see `encode`.

    Raises:
        RecipeError: The text contains a token that the model has no embedding for.
        ModelError: The tokenizer failed on the text.
    """
    tokens = encode(tokenizer, text, progress)
    check_vocabulary(model, tokenizer, tokens)
    return tokens


def check_words_known(tokenizer: PreTrainedTokenizerBase, text: str, ids: Sequence[int]) -> None:
    """Check that a tokenizer reads a text at all; to be called if it makes few tokens of it.

    A WordPiece tokenizer makes one unknown token of each word that it cannot put together, and of a whole text that
    it does not split into words.

    Args:
        tokenizer: The tokenizer.
        text: The text.
        ids: Its tokens.

    Raises:
        ModelError: Half of the tokens or more are the one for what the tokenizer does not know.
    """
    unknown = sum(number == tokenizer.unk_token_id for number in ids)
    if unknown and 2 * unknown >= len(ids):
        raise ModelError(
            f"The tokenizer makes {len(ids):,} tokens of a text of {len(text):,} characters, and {unknown:,} of them "
            f"are {tokenizer.unk_token}: it does not know the words. Choose another text, or a model whose tokenizer "
            "reads this one."
        )


CONTEXT_KEYS = ("max_position_embeddings", "max_seq_len", "max_target_positions")
"""The keys of a config that may hold the context length; `attribute_map` knows those that most types use."""


def usable_window(model: PreTrainedModel, window: int) -> int:
    """Return the window length in tokens, limited to the model's context length."""
    limits = [getattr(model.config, key, None) or window for key in CONTEXT_KEYS]
    return min(window, *limits)


def ids_around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer puts before a text, and those that it puts after it."""
    with panics_as_errors():
        try:
            whole = list(tokenizer("a", verbose=False).input_ids)
            text = list(tokenizer("a", add_special_tokens=False, verbose=False).input_ids)
        except Exception:  # It has no token for the letter, and none for what is unknown.
            whole, text = list(tokenizer("", verbose=False).input_ids), []
    if not text:
        ends = [tokenizer.eos_token_id] if tokenizer.eos_token_id != tokenizer.bos_token_id else []
        return [each for each in whole if each not in ends], [each for each in whole if each in ends]
    for start in range(len(whole) - len(text) + 1):
        if whole[start : start + len(text)] == text:
            return whole[:start], whole[start + len(text) :]
    return [], []


def bos_ids(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Return the ids that the tokenizer puts before a text: a BOS token, or none; `[tokens]`."""
    return torch.tensor(ids_around(tokenizer)[0], dtype=torch.long)


def split_into_windows(
    tokenizer: PreTrainedTokenizerBase, tokens: torch.Tensor, window: int
) -> list[torch.Tensor]:
    """Split tokens into windows, each starting as the tokenizer starts a text (see `bos_ids`).

    Args:
        tokenizer: Decides whether a window starts with a BOS token.
        tokens: Token ids, `[tokens]`.
        window: Length of a window in tokens, the BOS token included.

    Returns:
        Windows, each `[at most window]`. Nothing is padded; the last one may be short.
    """
    prefix = bos_ids(tokenizer)
    length = window - len(prefix)
    return [torch.cat([prefix, piece]) for piece in tokens.split(length) if len(piece)]


def sample_evenly(tokens: torch.Tensor, count: int, length: int) -> torch.Tensor:
    """Take tokens in runs spread evenly over a longer text: many subjects matter more than much of one.

    Args:
        tokens: The text's token ids, `[tokens]`.
        count: How many tokens to take.
        length: Tokens in a run.

    Returns:
        Token ids, `[count]`, or all of them if there are fewer.
    """
    wanted, available = -(-count // length), len(tokens) // length
    if len(tokens) <= count or available <= wanted:
        return tokens[:count]
    starts = torch.arange(wanted) * available // wanted * length
    return torch.cat([tokens[start : start + length] for start in starts.tolist()])[:count]
