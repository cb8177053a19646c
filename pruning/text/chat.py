"""A chat format: what a chat template writes around the messages of a conversation.

A format is learned once from the chat template, by `pruning.text.chat_learning`, and then joins texts: a stranger's
template never runs in this process. The joined text is tokenized as a whole; control tokens in a message are text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from pruning.errors import RecipeError
from pruning.text.control_tokens import EncodedParts, Part, control_tokens, encode_parts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, str]
"""A message as transformers knows it: its `role` (system, user or assistant) and its `content`."""

THINKING_END = "</think>"


def _after_thinking(text: str) -> str:
    return text.split(THINKING_END)[-1]


def _without_thinking(text: str) -> str:
    return _after_thinking(text).lstrip("\n") if THINKING_END in text else text


def _with_thinking(text: str) -> str:
    """Return an answer with a block of thinking before it, empty if it has none, as Qwen3's template does."""
    thinking = text.split(THINKING_END)[0].rstrip("\n").split("<think>")[-1] if THINKING_END in text else ""
    thinking = thinking.strip("\n")
    return f"<think>\n{thinking}\n{THINKING_END}\n\n" + _after_thinking(text).lstrip("\n")


def _unless_thinking(text: str) -> str:
    if THINKING_END in text:
        raise RecipeError(
            f"An answer contains {THINKING_END}, and the model's chat template changes it in a way that is not "
            "known here. Leave the thinking out."
        )
    return text


CONTENT_RULES: Mapping[str, Callable[[str], str]] = {
    "as_written": str,
    "stripped": str.strip,
    "stripped_left": str.lstrip,
    "stripped_right": str.rstrip,
    "after_thinking": _after_thinking,
    "after_thinking_stripped": lambda text: _after_thinking(text).strip(),
    "without_thinking": _without_thinking,
    "with_thinking": _with_thinking,
    "unless_thinking": _unless_thinking,
    "stripped_unless_thinking": lambda text: _unless_thinking(text).strip(),
}
"""What templates do with the content of a message, by name: the simplest first."""


@dataclass(frozen=True)
class PlainText:
    """There is no chat format: the model continues texts.

    Attributes:
        reason: Why, in one sentence.
    """

    reason: str


@dataclass(frozen=True)
class ChatFormat:
    """What a chat template writes around the messages of a conversation.

    A conversation is an optional system prompt, and then questions (of the user) and answers (of the assistant) in
    turns. Each text but the first and the last stands between two messages.

    Attributes:
        opening: Before the first question, without a system prompt; it may hold a default one.
        generation_prompt: After the last question, for the model to answer.
        question_end: After the last question otherwise; None if the template refuses that.
        answer_before: Between a question and its answer.
        last_answer_before: The same for the last answer of a conversation that ends with one.
        turn: Between an answer and the next question.
        end: After the last answer.
        system_before: Before a system prompt; None if there is none in this format.
        system_after: Between the system prompt and the first question.
        no_system_reason: Why there is no system prompt in this format, in one sentence.
        question_rule: What becomes of the content of a question: a name in `CONTENT_RULES`.
        answer_rule: The same for an answer.
        last_answer_rule: The same for the last answer of a conversation that ends with one.
        system_rule: The same for a system prompt.
        first_question_rule: The same for the question after a system prompt.
        end_of_turn: How `turn` and `end` begin, up to the token with which a model ends its answer.
        stop_tokens: The tokens that end an answer.
        date: The date that the template prints, as 2026-01-31; None if it prints none.
    """

    opening: str
    generation_prompt: str
    answer_before: str
    last_answer_before: str
    turn: str
    end: str
    question_end: str | None = None
    system_before: str | None = None
    system_after: str = ""
    no_system_reason: str = ""
    question_rule: str = "as_written"
    answer_rule: str = "as_written"
    last_answer_rule: str = "as_written"
    system_rule: str = "as_written"
    first_question_rule: str = "as_written"
    end_of_turn: str = ""
    stop_tokens: tuple[str, ...] = ()
    date: str | None = None

    @property
    def default_system(self) -> str | None:
        """The system prompt that the template writes if none is given; None if there is none."""
        before, after = self.system_before, self.system_after
        if before is None or not before or not after or len(self.opening) < len(before) + len(after):
            return None
        if not self.opening.startswith(before) or not self.opening.endswith(after):
            return None
        return self.opening[len(before) : len(self.opening) - len(after)]

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """Write a conversation as one text, as the chat template does.

        Args:
            messages: The conversation.
            add_generation_prompt: Whether the model is to answer next.

        Raises:
            RecipeError: It is not a conversation that this format can write.
        """
        return "".join(part.text for part in self._parts(messages, add_generation_prompt))

    def encode(
        self,
        tokenizer: PreTrainedTokenizerBase,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Tokenize a conversation.

        The ids are those of transformers' `apply_chat_template`, except that control tokens in a message are text.

        Args:
            tokenizer: The tokenizer that the format was learned from.
            messages: The conversation.
            add_generation_prompt: Whether the model is to answer next.

        Raises:
            RecipeError: It is not a conversation that this format can write.
            ModelError: The tokenizer failed on the text.
        """
        return self._encode(tokenizer, messages, add_generation_prompt).ids

    def encode_with_answer_mask(
        self, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]
    ) -> tuple[list[int], list[bool]]:
        """Tokenize a conversation that ends with an answer, and tell which tokens a model is to write.

        Args:
            tokenizer: The tokenizer that the format was learned from.
            messages: The conversation.

        Returns:
            The token ids, and for each whether it is part of an answer or ends one.

        Raises:
            RecipeError: It is not a conversation that this format can write.
            ModelError: The tokenizer failed on the text.
        """
        encoded = self._encode(tokenizer, messages, False)
        return encoded.ids, encoded.answer_mask

    def stop_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Return the ids of the tokens that end an answer."""
        ids = []
        for token in self.stop_tokens:
            # Not from `get_vocab`, which copies the whole vocabulary.
            number = tokenizer.convert_tokens_to_ids(token)
            # A token that the tokenizer lacks has the id of its unknown token, or none.
            if isinstance(number, int) and tokenizer.convert_ids_to_tokens(number) == token:
                ids.append(number)
        return ids

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, which JSON can hold and `from_dict` reads."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make the format that `to_dict` wrote."""
        return cls(**{**values, "stop_tokens": tuple(values["stop_tokens"])})

    def _encode(
        self, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], add_generation_prompt: bool
    ) -> EncodedParts:
        texts = [value for value in asdict(self).values() if isinstance(value, str)]
        parts = list(self._parts(messages, add_generation_prompt))
        return encode_parts(tokenizer, parts, control_tokens(tokenizer, texts))

    def _parts(self, messages: Sequence[Message], add_generation_prompt: bool) -> Iterator[Part]:
        _check(messages)
        question_rule = self.question_rule
        if messages[0]["role"] == "system":
            if self.system_before is None:
                raise RecipeError(f"A system prompt cannot be given to this model. {self.no_system_reason}")
            yield Part(self.system_before)
            yield Part(CONTENT_RULES[self.system_rule](messages[0]["content"]), is_content=True)
            yield Part(self.system_after)
            messages, question_rule = messages[1:], self.first_question_rule
        else:
            yield Part(self.opening)
        for number, message in enumerate(messages, start=1):
            is_last = number == len(messages)
            if message["role"] == "user":
                yield Part(CONTENT_RULES[question_rule](message["content"]), is_content=True)
                question_rule = self.question_rule
                if is_last:
                    yield self._after_question(add_generation_prompt)
            elif is_last and add_generation_prompt:
                raise RecipeError(
                    "The conversation ends with an answer. End it with a question to be answered."
                )
            else:
                yield from self._answer(message["content"], is_last)

    def _after_question(self, add_generation_prompt: bool) -> Part:
        after = self.generation_prompt if add_generation_prompt else self.question_end
        if after is None:
            raise RecipeError("The model's chat template refuses a conversation that ends with a question.")
        return Part(after)

    def _answer(self, content: str, is_last: bool) -> Iterator[Part]:
        rule = CONTENT_RULES[self.last_answer_rule if is_last else self.answer_rule]
        after = self.end if is_last else self.turn
        yield Part(self.last_answer_before if is_last else self.answer_before)
        yield Part(rule(content), is_content=True, is_answer=True)
        yield Part(self.end_of_turn, is_answer=True)
        yield Part(after.removeprefix(self.end_of_turn))


def _check(messages: Sequence[Message]) -> None:
    """Refuse what is not a system prompt, perhaps, and then questions and answers in turns."""
    roles = "".join(str(message.get("role", "?"))[:1] for message in messages)
    if not re.fullmatch("s?(ua)*u?", roles) or not roles.strip("s"):
        raise RecipeError(
            "A conversation is a system prompt, if there is one, and then messages of the user and the assistant "
            "in turns. Begin with the user's, and put no two of one side after each other."
        )
    for number, message in enumerate(messages, start=1):
        if message["role"] not in ("system", "user", "assistant"):
            raise RecipeError(f"There is no role {message['role'][:40]!r}: it is system, user or assistant.")
        if not isinstance(content := message.get("content"), str) or not content.strip():
            raise RecipeError(f"Message {number} of the conversation is empty. Write something in it.")
