"""Token windows: how a model is given a text."""

import hashlib
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.errors import RecipeError


@dataclass(frozen=True)
class Windows:
    """Token windows, each a vector of at most the window's length: to fit on, and held out.

    `text_sha256`: the digest of the user's own text that they are made of, if they are.
    """

    fitting: tuple[torch.Tensor, ...]
    heldout: tuple[torch.Tensor, ...]
    text_sha256: str | None = None

    @property
    def tokens(self) -> int:
        return sum(map(len, self.fitting + self.heldout))

    @property
    def digest(self) -> str:
        total = hashlib.sha256()
        for part in (self.fitting, self.heldout):
            for window in part:
                total.update(window.numpy().astype("<i8").tobytes() + b"|")
            total.update(b"#")
        return total.hexdigest()[:32]


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor) -> None:
    """Raises `RecipeError` where a text holds a token that the model has no embedding for."""
    size = model.config.vocab_size
    if ids.numel() and (highest := int(ids.max())) >= size:
        raise RecipeError(
            f"The text holds {tokenizer.convert_ids_to_tokens(highest)!r}, which is token {highest} of its "
            f"tokenizer, but this model knows {size} tokens. Remove it from the text."
        )


def token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> torch.Tensor:
    """The tokens of a text, none added. Raises `RecipeError` for one that the model does not know."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    tokens = torch.tensor(ids, dtype=torch.long)
    check_vocabulary(model, tokenizer, tokens)
    return tokens


def usable_window(model: PreTrainedModel, window: int) -> int:
    """A window's length, or the most that the model can read in one piece where that is less."""
    return min(window, getattr(model.config, "max_position_embeddings", None) or window)


def bos_ids(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """What the tokenizer begins a text with: a BOS token, or nothing."""
    return torch.tensor(tokenizer("", verbose=False).input_ids, dtype=torch.long)


def split_into_windows(
    tokenizer: PreTrainedTokenizerBase, tokens: torch.Tensor, window: int
) -> list[torch.Tensor]:
    """Cut tokens into windows, each bos_ids as the tokenizer begins a text (with a BOS token, where
    the model expects one). Nothing is padded; the last window may be short."""
    prefix = bos_ids(tokenizer)
    length = window - len(prefix)
    return [torch.cat([prefix, piece]) for piece in tokens.split(length) if len(piece)]


def sample_evenly(tokens: torch.Tensor, count: int, length: int) -> torch.Tensor:
    """`count` tokens in runs of `length`, taken evenly from all of a longer text: many subjects weigh
    more than much of one."""
    runs, there = -(-count // length), len(tokens) // length
    if len(tokens) <= count or there <= runs:
        return tokens[:count]
    starts = torch.arange(runs) * there // runs * length
    return torch.cat([tokens[start : start + length] for start in starts.tolist()])[:count]
