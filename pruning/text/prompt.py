"""A prompt as token ids: a text to continue, or a question in the model's chat format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pruning.errors import RecipeError, panics_as_errors
from pruning.lazy import torch
from pruning.loading.given import CausalLM as CausalLM
from pruning.text.chat import PlainText
from pruning.text.chat_learning import learn_chat_format
from pruning.text.tokens import check_vocabulary, ids_around, usable_window

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_PROMPT_CHARACTERS = 20_000

MAX_PROMPT_TOKENS = 8_192
"""The most tokens of a prompt, however long a context the model's config claims."""


@dataclass(frozen=True)
class Prompt:
    """What a model reads before it generates.

    Attributes:
        ids: The token ids, `[1, tokens]`.
        stop_ids: The tokens that end its answer, besides the model's EOS tokens.
        is_chat: Whether it is a question in the model's chat format, and not a text to continue.
    """

    ids: torch.Tensor
    stop_ids: tuple[int, ...] = ()
    is_chat: bool = False


def prepare_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str, *, chat: bool | None = None, system: str | None = None
) -> Prompt:
    """Tokenize a question in the chat format of a tokenizer's chat template, or a text to continue.

    Args:
        tokenizer: The tokenizer.
        prompt: The question or the text.
        chat: Whether it is a question; None: if there is a chat format.
        system: A system prompt for the chat; None for that of the chat template, if it has one.

    Raises:
        RecipeError: The prompt is empty or too long, or there is no chat format for what is asked.
        ModelError: The tokenizer failed on the text, or the chat template could not be tried out.
    """
    if chat is False:
        if system is not None:
            raise RecipeError("A system prompt is for a chat. Leave it out, or ask in the chat format.")
        return Prompt(encode_prompt(tokenizer, prompt))
    _check_text(prompt, "question" if chat else "prompt", "for the model to answer")
    if system is not None:
        _check_text(system, "system prompt", "that say how to answer")
    chat_format = learn_chat_format(tokenizer)
    if isinstance(chat_format, PlainText):
        if chat or system is not None:
            raise RecipeError(f"This model cannot chat. {chat_format.reason} Let it continue a plain text.")
        return Prompt(encode_prompt(tokenizer, prompt))
    messages = [{"role": "user", "content": prompt}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    ids = chat_format.encode(tokenizer, messages)
    return Prompt(torch.tensor([ids]), tuple(chat_format.stop_ids(tokenizer)), is_chat=True)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> torch.Tensor:
    """Tokenize a prompt, without what the tokenizer puts after a text: the model goes on from its last word.

    Returns:
        Token ids, `[1, tokens]`.

    Raises:
        RecipeError: The prompt is empty, or longer than `MAX_PROMPT_CHARACTERS`.
    """
    _check_text(prompt, "prompt", "for the model to continue")
    after = ids_around(tokenizer)[1]
    with panics_as_errors():
        ids = tokenizer(prompt, return_tensors="pt", verbose=False).input_ids
    return ids[:, : ids.shape[1] - len(after)] if after and ids[0, -len(after) :].tolist() == after else ids


def _check_text(text: str, what: str, use: str) -> None:
    if not isinstance(text, str) or not text.strip():
        raise RecipeError(f"The {what} is empty. Write a few words {use}.")
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise RecipeError(
            f"The {what} has {len(text):,} characters; at most {MAX_PROMPT_CHARACTERS:,} are allowed. Shorten it."
        )


def check_prompt(model: CausalLM, ids: torch.Tensor, new_tokens: int = 0) -> None:
    """Check that a model can read a prompt and continue it.

    Args:
        model: The model and its tokenizer.
        ids: The token ids of the prompt, `[1, tokens]`.
        new_tokens: How many tokens are to follow.

    Raises:
        RecipeError: The prompt is too long for the model, or contains a token that it has no embedding for.
    """
    check_vocabulary(model.model, model.tokenizer, ids)
    tokens = ids.shape[1]
    if tokens > MAX_PROMPT_TOKENS:
        raise RecipeError(
            f"The prompt has {tokens:,} tokens; at most {MAX_PROMPT_TOKENS:,} are allowed. Shorten it."
        )
    needed = tokens + new_tokens
    if needed > (context := usable_window(model.model, needed)):
        followed = f"; with {new_tokens} new ones that is" if new_tokens else ","
        raise RecipeError(
            f"The prompt has {tokens} tokens{followed} more than the model's context of {context}. Shorten it."
        )
