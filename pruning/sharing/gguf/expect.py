"""Compute with transformers what a GGUF file has to give: log-probabilities at several lengths, and tokens of texts.

Text that llama.cpp generates hides errors: a model without two layers wrote the same 88 characters, while its
log-probabilities were off by 0.3 to 4. So log-probabilities are compared, at several lengths.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pruning.architectures.anatomy import Anatomy
from pruning.architectures.families import EXPERT
from pruning.architectures.shape import Shape
from pruning.errors import ModelError
from pruning.lazy import torch
from pruning.progress import Progress, Reporter
from pruning.sharing.gguf.limits import window_of
from pruning.sharing.gguf.router_ties import rounded_states
from pruning.sharing.gguf.types import GGUFType
from pruning.text.passages import GENRES, passage

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

SHORT, LONG = 28, 480
"""Tokens of the first two prompts."""

BEYOND = 64
"""By how many tokens the third prompt is longer than a sliding window, or than what the positions were trained for."""

LONGEST = 8192
"""The longest prompt that is compared. A window beyond it is not."""

POSITIONS = 32
"""After how many positions of a prompt the next token is compared."""

TOP = 8
"""How many of the likeliest tokens are compared at each position, in addition to the actual next token."""

PASSAGE = 128
"""Tokens of each genre that perplexity is computed on before and after rounding."""

ROUNDINGS = 16
"""How many times a mixture reads a prompt with rounded hidden states."""

SAMPLED_TOKENS = 400
"""How many tokens of the vocabulary are written out and read again, each as a text."""

KINDS_OF_TEXT = (
    "The quick brown fox jumps over the lazy dog, doesn't it? I'VE been told they'll say we're done.",
    "1 22 333 4444 55555 3.14159 1,000,000 0x1F 2026-11-26 50% $9.99 #42",
    "def f(x):\n\treturn {'a': [1, 2], \"b\": x ** 2}  # comment\n\n\nclass A:\n    pass\n",
    "  two leading spaces, and  two  inside;   three at the end   ",
    "\n\n\n\t\t \n line breaks \r\n and tabs\t\tbetween",
    "Straße, naïve, façade, Ærø, Łódź, İstanbul, señor, Zażółć gęślą jaźń",
    "Москва и Санкт-Петербург; Ελληνικά; עברית; العربية; हिन्दी; ไทย",
    "日本語のテキスト、中文文本。한국어 텍스트입니다！",
    "👍 🚀🚀 😶‍🌫️ 👩‍👩‍👧 🇫🇷 ♥ ∑ √ ≤ → “quoted” — ‘it’ … ½ ²",
    "https://example.org/path?x=1&y=2 user@example.org C:\\folder\\file.txt <b>bold</b> &amp;",
    "!!! ??? ... --- *** === ~~~ ``` ''' \"\"\" ((( ]]] }}} @@@ ^^^ |||",
    "CamelCaseWord snake_case_word UPPERCASE a b c x y z",
    " ",
    "\n",
)
"""Texts that hold every kind of token: words, numbers, code, spaces, scripts, signs."""


@dataclass(frozen=True)
class Prompt:
    """A text for both programs.

    Attributes:
        ids: Its token ids.
        positions: After which of them the next token is compared.
        asked: For each position, the tokens whose log-probabilities are compared.
        expected: Those log-probabilities, as transformers computes them.
        rounded: What transformers computes in place of these with hidden states rounded at random, once for each time.
            Of mixtures, where rounding may give a token another expert; otherwise empty.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    asked: tuple[tuple[int, ...], ...]
    expected: tuple[tuple[float, ...], ...]
    rounded: tuple[tuple[tuple[float, ...], ...], ...] = ()


@dataclass(frozen=True)
class Expectation:
    """What a GGUF file has to give, computed by transformers from the model.

    Attributes:
        name: The model's name, for messages.
        vocabulary: The number of its tokens.
        prompts: Texts, shortest first.
        passages: Texts after each of whose positions only the token that follows is asked for.
        texts: Texts, whether with what begins and ends a text, and their token ids.
        remarks: What llama.cpp cannot do as the tokenizer does it, and no text here shows.
        normalized: Those of the texts that the tokenizer changes before it splits them.
    """

    name: str
    vocabulary: int
    prompts: tuple[Prompt, ...]
    passages: tuple[Prompt, ...]
    texts: tuple[tuple[str, bool, tuple[int, ...]], ...]
    remarks: tuple[str, ...] = ()
    normalized: frozenset[str] = frozenset()


def expect(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    kind: GGUFType,
    progress: Reporter,
) -> Expectation:
    """Compute with transformers what a GGUF file of a model has to give.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        name: Its name, for messages.
        kind: The type of the file. One of fewer than 16 bits takes the passages too.
        progress: Is called before each text.
    """
    anatomy, lengths = Shape.of_model(model).anatomy, prompt_lengths(model.config)
    count = model.config.vocab_size
    held_out = [passage(genre, "heldout")[:4000] for genre in GENRES]
    ids = _text_ids(tokenizer, count, "\n\n".join(held_out), lengths[-1])
    prompts, passages = [], []
    for number, length in enumerate(lengths):
        progress(Progress("Computing what llama.cpp has to give, texts", number, len(lengths)))
        step = max(1, length // POSITIONS)
        positions = range(length - 1, -1, -step)[:POSITIONS][::-1]
        prompt = _prompt(model, ids[: length + 1], positions, TOP)
        prompts.append(replace(prompt, rounded=tuple(_rounded(model, anatomy, prompt, kind, progress))))
    length = min(PASSAGE, lengths[-1])
    for number, text in enumerate(held_out if kind.is_quantized else ()):
        progress(Progress("Computing what llama.cpp has to give, passages", number, len(held_out)))
        ids = _text_ids(tokenizer, count, text, length)
        passages.append(_prompt(model, ids, range(length), 0))
    begins_with_space = "".join(tokenizer.tokenize("a")).startswith(_SPACE)
    texts = [each for each in _texts(tokenizer, begins_with_space) if max(each[2], default=0) < count]
    remarks = (
        *_remarks(tokenizer, begins_with_space),
        *_rowless(tokenizer, count),
        *_not_compared(model.config, lengths[-1]),
    )
    normalized = frozenset(text for text, _, _ in texts if _is_normalized(tokenizer, text))
    return Expectation(name, count, tuple(prompts), tuple(passages), tuple(texts), remarks, normalized)


def prompt_lengths(config: PreTrainedConfig) -> list[int]:
    """Return how long the prompts are: two lengths, and beyond a sliding window if the model has one."""
    most = min(LONGEST, getattr(config, "max_position_embeddings", LONGEST) - 1)
    window = window_of(config)
    rope: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    trained = rope.get("original_max_position_embeddings", 0) if rope.get("rope_type") == "longrope" else 0
    lengths = [SHORT, LONG, *(each + BEYOND for each in (window, trained) if each and each + BEYOND <= most)]
    return sorted({min(length, most) for length in lengths})


def _text_ids(tokenizer: PreTrainedTokenizerBase, vocabulary: int, text: str, length: int) -> list[int]:
    """Return one token more than a length, of a text that is repeated if it is too short."""
    ids = [number for number in tokenizer(text, verbose=False).input_ids if number < vocabulary]
    if not ids:
        raise ModelError("The tokenizer makes no tokens of a text, so there is nothing to compare.")
    return (ids * (1 + length // len(ids)))[: length + 1]


def _prompt(model: PreTrainedModel, ids: Sequence[int], positions: Sequence[int], top: int) -> Prompt:
    """Compute the log-probabilities of the likeliest tokens, and of the one that follows, at some positions."""
    scores = _log_probabilities(model, ids[:-1], positions)
    following = torch.tensor([ids[position + 1] for position in positions])[:, None]
    asked = torch.cat([scores.topk(min(top, scores.shape[-1])).indices, following], dim=1)
    expected = scores.gather(1, asked)
    return Prompt(
        tuple(ids[:-1]),
        tuple(positions),
        tuple(map(tuple, asked.tolist())),
        tuple(map(tuple, expected.tolist())),
    )


def _log_probabilities(model: PreTrainedModel, ids: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
    """Return the log-probabilities of all tokens after some positions, `[positions, tokens]`."""
    at = torch.tensor(positions, device=model.device)
    options = (
        {"logits_to_keep": at} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    )
    with torch.inference_mode():
        inputs = torch.tensor([list(ids)], device=model.device)
        logits = model(inputs, use_cache=False, **options).logits[0]
    if not options:
        logits = logits[at]
    return logits.float().log_softmax(-1).cpu()


def _rounded(
    model: PreTrainedModel, anatomy: Anatomy, prompt: Prompt, kind: GGUFType, progress: Reporter
) -> Iterator[tuple[tuple[float, ...], ...]]:
    """Yield what a mixture computes of a prompt with its hidden states rounded as a type of file rounds weights."""
    if EXPERT not in anatomy.units:
        return
    epsilon = torch.finfo(torch.bfloat16 if kind.name == "bf16" else torch.float16).eps / 2
    for seed in range(ROUNDINGS):
        progress(Progress(f"Rounding hidden states, {len(prompt.ids)} tokens", seed, ROUNDINGS))
        with rounded_states(model, anatomy, epsilon, seed):
            scores = _log_probabilities(model, prompt.ids, prompt.positions)
        yield tuple(map(tuple, scores.gather(1, torch.tensor(prompt.asked)).tolist()))


_SPACE = "▁"
"""How SentencePiece writes a space."""


def _remarks(tokenizer: PreTrainedTokenizerBase, begins_with_space: bool) -> Iterator[str]:
    """Yield what llama.cpp does otherwise than a tokenizer that begins a text with a space."""
    if not begins_with_space:
        return
    if not "".join(tokenizer.tokenize("  a")).startswith(3 * _SPACE):
        yield "llama.cpp writes one more space before a text that begins with spaces than this tokenizer does."
    special = tokenizer.eos_token or tokenizer.bos_token
    if special and f"{special}b" in "".join(tokenizer.tokenize(f"a{special}b")):
        yield "llama.cpp writes a space after a special token in the middle of a text, and this tokenizer does not."


def _rowless(tokenizer: PreTrainedTokenizerBase, count: int) -> Iterator[str]:
    """Yield which tokens the file leaves out because the model has no row for them; Gemma 3 has one such token."""
    beyond = sorted(token for token, number in tokenizer.get_vocab().items() if number >= count)
    if beyond:
        named = ", ".join(beyond[:3]) + (f" and {len(beyond) - 3:,} more" if len(beyond) > 3 else "")
        yield f"The model has no row for {named}. The file leaves it out, and llama.cpp reads it as ordinary text."


def _not_compared(config: PreTrainedConfig, longest: int) -> Iterator[str]:
    """Yield that texts longer than a window are not compared, if they are too long for that."""
    window = window_of(config)
    if longest < window < getattr(config, "max_position_embeddings", 0):
        yield f"Texts longer than the window of {window:,} tokens are not compared with llama.cpp."


def _texts(
    tokenizer: PreTrainedTokenizerBase, begins_with_space: bool
) -> Iterator[tuple[str, bool, tuple[int, ...]]]:
    """Yield texts of every kind, with their tokens."""
    seen: set[str] = set()
    genres = (passage(genre, "heldout")[:600] for genre in GENRES)
    sources = [*KINDS_OF_TEXT, *genres, *_written_out(tokenizer)]
    if begins_with_space:  # What `_remarks` says is left out.
        special = tokenizer.all_special_tokens
        sources = [text.lstrip(" ") for text in sources if not any(token in text for token in special)]
    for text in sources:
        if text in seen or not text:
            continue
        seen.add(text)
        yield text, False, tuple(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
    for text in KINDS_OF_TEXT[:1]:
        yield text, True, tuple(tokenizer(text, verbose=False).input_ids)


def _is_normalized(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Return whether a tokenizer changes more of a text than how it writes spaces, before it splits it."""
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    if normalizer is None:
        return False
    return normalizer.normalize_str(text).replace(_SPACE, " ").lstrip() != text.lstrip()


def _written_out(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Yield tokens as texts: some of the vocabulary, and every special one between two words."""
    count = len(tokenizer)
    for number in range(0, count, max(1, count // SAMPLED_TOKENS)):
        text = tokenizer.decode([number])
        if isinstance(text, str) and text and "\ufffd" not in text:
            yield text
    for token in list(tokenizer.all_special_tokens)[:SAMPLED_TOKENS]:
        yield f"one{token}two"
