"""A model's own answers to the bundled questions, to calibrate on and to distill from."""

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.resources import files

from pruning import catalog
from pruning.files import cache_folder, replacing, trim_folder
from pruning.loading.load import LoadedModel
from pruning.loading.source import Source
from pruning.progress import Reporter, silent
from pruning.text import questions
from pruning.text.answering import BATCH, iter_answers
from pruning.text.chat import ChatFormat
from pruning.text.prompt import CausalLM

MAX_NEW_TOKENS = 96
"""The most tokens of an answer."""

MOST_GENERATED = 4_096
"""The most tokens of answers that a model generates for a mix of texts: about one batch."""

MOST_ON_DISK = 20_000_000
"""Bytes of answers in the disk cache: about a hundred models."""

_FORMAT = 1
"""Raised when what is kept on disk changes its meaning."""


@dataclass(frozen=True)
class Conversation:
    """A question and what a model answered.

    Attributes:
        question: The question.
        answer: The answer.
        ended: Whether the model ended it by itself, rather than the limit on its length.
    """

    question: str
    answer: str
    ended: bool


def own_answers(model: LoadedModel, tokens: int, progress: Reporter = silent) -> tuple[Conversation, ...]:
    """Return a model's answers to bundled questions of all kinds, the likeliest token each time.

    Those of the default model come with the package. Those of another model are generated, as many as are needed;
    of a public one they are kept on disk.

    Args:
        model: The model.
        tokens: Enough questions are answered for about this number of tokens.
        progress: Called before every token.

    Raises:
        RecipeError: A question is too long for the model.
        ModelError: The tokenizer failed on a question.
    """
    source = model.source
    if are_shipped(source):
        return shipped_answers()
    asked = _in_turn()
    file = None
    if source.public and source.revision:
        name = hashlib.sha256(f"{_FORMAT}|{source.revision}|{_digest_of(asked)}".encode()).hexdigest()[:32]
        file = cache_folder() / "answers" / f"{name}.json"
    conversations: list[Conversation] = []
    if file is not None:
        with suppress(OSError, ValueError, TypeError, KeyError):
            conversations = [Conversation(**values) for values in json.loads(file.read_text("utf-8"))]
    read, known = 0, len(conversations)
    for conversation in conversations:
        read += _length(model, conversation)
    while read < tokens and len(conversations) < len(asked):
        batch = asked[len(conversations) : len(conversations) + BATCH]
        answers = dict(
            iter_answers(
                model,
                batch,
                max_new_tokens=MAX_NEW_TOKENS,
                task=f"Answering questions to calibrate on, {min(read, tokens):,} of {tokens:,} tokens",
                progress=progress,
            )
        )
        for number, question in enumerate(batch):
            conversations.append(Conversation(question, answers[number].text, answers[number].ended))
            read += _length(model, conversations[-1])
    if file is not None and len(conversations) > known:
        # If the disk is full, the next run only has to generate the answers again.
        with suppress(OSError):
            with replacing(file) as temporary:
                temporary.write_text(json.dumps([asdict(each) for each in conversations]), "utf-8")
            trim_folder(file.parent, MOST_ON_DISK)
    return tuple(conversations)


def are_shipped(source: Source) -> bool:
    """Return whether a model's answers come with the package."""
    return source.hub_id == catalog.MODELS[catalog.DEFAULT_MODEL].hub_id


@lru_cache
def shipped_answers() -> tuple[Conversation, ...]:
    """Return the default model's answers to all bundled calibration questions."""
    lines = files(questions).joinpath("answers.smollm2-135m.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(Conversation(**json.loads(line)) for line in lines)


@lru_cache(maxsize=4)
def digest_of(conversations: tuple[Conversation, ...]) -> str:
    """Return the SHA-256 of questions and answers, in hexadecimal digits."""
    written = json.dumps([asdict(each) for each in conversations])
    return hashlib.sha256(written.encode()).hexdigest()


def _in_turn() -> list[str]:
    """Return the calibration questions in an order in which every part has all kinds."""
    prompts = [question.prompt for question in questions.read("calibration")]
    return sorted(prompts, key=lambda prompt: hashlib.sha256(prompt.encode()).digest())


def _digest_of(prompts: list[str]) -> str:
    return hashlib.sha256("\0".join(prompts).encode()).hexdigest()


def _length(model: CausalLM, conversation: Conversation) -> int:
    return len(model.tokenizer(conversation.question + conversation.answer, verbose=False).input_ids)


def pack(
    model: CausalLM,
    chat_format: ChatFormat,
    conversations: tuple[Conversation, ...],
    window: int,
    tokens: int,
) -> list[list[int]]:
    """Write conversations as windows of tokens in a chat format, each as many turns of one chat as fit.

    Args:
        model: The model and its tokenizer.
        chat_format: The chat format.
        conversations: What to write, in this order.
        window: The most tokens of a window. A single conversation that is longer is cut off.
        tokens: The most tokens in all windows together.

    Returns:
        The token ids of each window.
    """
    windows: list[list[int]] = []
    turns: list[dict[str, str]] = []
    written: list[int] = []
    total = 0
    for conversation in conversations:
        turn = [
            {"role": "user", "content": conversation.question},
            {"role": "assistant", "content": conversation.answer},
        ]
        if not conversation.answer.strip():
            continue
        longer = chat_format.encode(model.tokenizer, [*turns, *turn], add_generation_prompt=False)
        if turns and len(longer) > window:
            windows.append(written)
            total += len(written)
            if total >= tokens:
                break
            turns, longer = [], chat_format.encode(model.tokenizer, turn, add_generation_prompt=False)
        turns, written = [*turns, *turn], longer[:window]
    else:
        if written:
            windows.append(written)
    excess = sum(map(len, windows)) - tokens
    if excess > 0:
        windows[-1] = windows[-1][: len(windows[-1]) - excess]
    return [each for each in windows if each]
