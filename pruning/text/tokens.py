"""Token windows: how a text is split before a model reads it."""

import hashlib
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.errors import RecipeError


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


def token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> torch.Tensor:
    """Tokenize a text without adding special tokens.

    Returns:
        Token ids, `[tokens]`.

    Raises:
        RecipeError: The text contains a token that the model has no embedding for.
    """
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    tokens = torch.tensor(ids, dtype=torch.long)
    check_vocabulary(model, tokenizer, tokens)
    return tokens


def usable_window(model: PreTrainedModel, window: int) -> int:
    """Return the window length in tokens, limited to the model's context length."""
    return min(window, getattr(model.config, "max_position_embeddings", None) or window)


def bos_ids(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Return the ids that the tokenizer puts before a text: a BOS token, or none; `[tokens]`."""
    return torch.tensor(tokenizer("", verbose=False).input_ids, dtype=torch.long)


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
