"""Token windows of conversations and of batches of tokens that a user gave."""

from __future__ import annotations

from collections.abc import Iterator

from pruning.errors import RecipeError
from pruning.lazy import torch
from pruning.loading.load import LoadedModel
from pruning.text.chat import ChatFormat, PlainText
from pruning.text.chat_learning import learn_chat_format
from pruning.text.choice import Calibration, read_texts
from pruning.text.sources import parse_conversations, parse_rows
from pruning.text.tokens import check_vocabulary, usable_window


def read_windows(base: LoadedModel, calibration: Calibration) -> list[torch.Tensor]:
    """Return the windows of a calibration text that is not a plain text, each `[tokens]`.

    A conversation is written in the model's chat format, and short ones share a window; one that is longer than a
    window is cut into several. Batches are read as they are.

    Raises:
        RecipeError: The model has no chat format, a row is longer than its context, or an id has no embedding.
    """
    (content,) = read_texts(calibration)
    if calibration.kind == "messages":
        window = usable_window(base.model, calibration.window)
        windows = list(_packed(_conversations(base, parse_conversations(content)), window))
    else:
        windows = list(_rows(base, parse_rows(content)))
    tensors = [torch.tensor(ids, dtype=torch.long) for ids in windows]
    for ids in tensors:
        check_vocabulary(base.model, base.tokenizer, ids)
    return list(_first(tensors, calibration.tokens))


def _conversations(base: LoadedModel, lines: Iterator[list[dict[str, str]]]) -> Iterator[list[int]]:
    chat_format: ChatFormat | PlainText = learn_chat_format(base.tokenizer)
    if isinstance(chat_format, PlainText):
        raise RecipeError(
            f"The calibration text holds conversations, and this model cannot chat. {chat_format.reason} "
            "Give plain texts."
        )
    for number, messages in enumerate(lines, start=1):
        try:
            yield chat_format.encode(
                base.tokenizer, messages, add_generation_prompt=messages[-1]["role"] == "user"
            )
        except RecipeError as error:
            raise RecipeError(f"Conversation {number} of the calibration text: {error}") from None


def _packed(conversations: Iterator[list[int]], window: int) -> Iterator[list[int]]:
    """Put whole conversations into windows, as many as fit."""
    written: list[int] = []
    for ids in conversations:
        if written and len(written) + len(ids) > window:
            yield written
            written = []
        while len(ids) > window:
            yield ids[:window]
            ids = ids[window:]
        written = written + ids
    if written:
        yield written


def _rows(base: LoadedModel, lines: Iterator[list[int]]) -> Iterator[list[int]]:
    context, size = usable_window(base.model, 10**9), base.model.config.vocab_size
    for number, ids in enumerate(lines, start=1):
        if len(ids) > context:
            raise RecipeError(
                f"Row {number} of the calibration text has {len(ids):,} tokens, and the model's context is "
                f"{context:,}. Cut it into shorter ones."
            )
        if min(ids) < 0 or max(ids) >= size:
            wrong = next(each for each in ids if not 0 <= each < size)
            raise RecipeError(
                f"Row {number} of the calibration text holds the id {wrong}, and the model's vocabulary has {size:,} "
                "tokens. Use the model's own tokenizer."
            )
        yield ids


def _first(windows: list[torch.Tensor], tokens: int) -> Iterator[torch.Tensor]:
    """Yield windows up to a number of tokens; the last one is cut off."""
    left = tokens
    for ids in windows:
        if left <= 0:
            return
        yield ids[:left]
        left -= len(ids)
