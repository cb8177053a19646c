"""Open a GGUF file with llama.cpp and compare it with the model that it was made from.

Text that llama.cpp generates hides errors: a model without two layers wrote the same 88 characters, while its
log-probabilities were off by 0.3 to 4. So log-probabilities are compared, at several lengths.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.errors import ModelError
from pruning.lazy import torch
from pruning.limited_child import Exhausted, run_limited
from pruning.progress import Progress, Reporter
from pruning.sharing.gguf.limits import window_of
from pruning.sharing.gguf.printed import last_line
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
"""How many of the likeliest next tokens are compared at each position, besides the one that follows."""

PASSAGE = 128
"""Tokens of each genre that perplexity is computed on before and after rounding."""

MOST_TIMES = 3.0
"""How many times the unrounded model's perplexity that of a rounded file may be."""

SAMPLED_TOKENS = 400
"""How many tokens of the vocabulary are written out and read again, each as a text."""

READER_MEMORY = 4 * 2**30
"""Bytes of address space that llama.cpp may take, besides three times those of the file."""

READER_SECONDS = 1800

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

_CHILD = Path(__file__).with_name("llama_child.py")


@dataclass(frozen=True)
class Prompt:
    """A text for both programs.

    Attributes:
        ids: Its token ids.
        positions: After which of them the next token is compared.
        asked: For each position, the tokens whose log-probabilities are compared.
        expected: Those log-probabilities, as transformers computes them.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    asked: tuple[tuple[int, ...], ...]
    expected: tuple[tuple[float, ...], ...]


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
    """

    name: str
    vocabulary: int
    prompts: tuple[Prompt, ...]
    passages: tuple[Prompt, ...]
    texts: tuple[tuple[str, bool, tuple[int, ...]], ...]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """How far llama.cpp's log-probabilities are from those of transformers, after a number of tokens."""

    tokens: int
    largest: float
    mean: float

    def is_within(self, kind: GGUFType) -> bool:
        """Return whether a type of file allows it. What is not a number is not."""
        return self.largest <= kind.largest and self.mean <= kind.mean


@dataclass(frozen=True)
class Comparison:
    """What llama.cpp computes with a file, beside what transformers computes with the model.

    Attributes:
        differences: How far log-probabilities are off, one for each length of text.
        perplexity_ratio: Perplexity on held-out text over that of the unrounded model; None for types of 16 bits.
    """

    differences: tuple[Difference, ...]
    perplexity_ratio: float | None = None


def expect(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, progress: Reporter
) -> Expectation:
    """Compute with transformers what a GGUF file of a model has to give."""
    lengths = prompt_lengths(model.config)
    count = model.config.vocab_size
    held_out = [passage(genre, "heldout") for genre in GENRES]
    ids = _text_ids(tokenizer, count, "\n\n".join(text[:4000] for text in held_out), lengths[-1])
    prompts, passages = [], []
    for number, length in enumerate(lengths):
        progress(Progress("Computing what llama.cpp has to give, texts", number, len(lengths)))
        step = max(1, length // POSITIONS)
        positions = range(length - 1, -1, -step)[:POSITIONS][::-1]
        prompts.append(_prompt(model, ids[: length + 1], positions, TOP))
    length = min(PASSAGE, lengths[-1])
    for number, text in enumerate(held_out):
        progress(Progress("Computing what llama.cpp has to give, passages", number, len(held_out)))
        ids = _text_ids(tokenizer, count, text[:4000], length)
        passages.append(_prompt(model, ids, range(length), 0))
    begins_with_space = "".join(tokenizer.tokenize("a")).startswith(_SPACE)
    texts = (each for each in _texts(tokenizer, begins_with_space) if max(each[2], default=0) < count)
    remarks = (
        *_remarks(tokenizer, begins_with_space),
        *_rowless(tokenizer, count),
        *_not_compared(model.config, lengths[-1]),
    )
    return Expectation(name, count, tuple(prompts), tuple(passages), tuple(texts), remarks)


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
    length = len(ids) - 1
    at = torch.tensor(positions, device=model.device)
    options = (
        {"logits_to_keep": at} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    )
    with torch.inference_mode():
        inputs = torch.tensor([list(ids[:length])], device=model.device)
        logits = model(inputs, use_cache=False, **options).logits[0]
    if not options:
        logits = logits[at]
    scores = logits.float().log_softmax(-1).cpu()
    following = torch.tensor([ids[position + 1] for position in positions])[:, None]
    asked = torch.cat([scores.topk(min(top, scores.shape[-1])).indices, following], dim=1)
    expected = scores.gather(1, asked)
    return Prompt(
        tuple(ids[:length]),
        tuple(positions),
        tuple(map(tuple, asked.tolist())),
        tuple(map(tuple, expected.tolist())),
    )


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


def _written_out(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Yield tokens as texts: some of the vocabulary, and every special one between two words."""
    count = len(tokenizer)
    for number in range(0, count, max(1, count // SAMPLED_TOKENS)):
        text = tokenizer.decode([number])
        if isinstance(text, str) and text and "\ufffd" not in text:
            yield text
    for token in list(tokenizer.all_special_tokens)[:SAMPLED_TOKENS]:
        yield f"one{token}two"


def compare(
    file: Path, expected: Expectation, kind: GGUFType, progress: Reporter, *, threads: int | None = None
) -> Comparison:
    """Open a file with llama.cpp and compare tokens and log-probabilities.

    Args:
        file: A GGUF file.
        expected: What it has to give.
        kind: Its type, which says how far it may be off.
        progress: Is called with each stage.
        threads: How many threads llama.cpp computes with; by default as many as torch.

    Returns:
        The differences, and what rounding does to perplexity.

    Raises:
        ModelError: llama.cpp does not open the file, or does something else with it. The message says what.
    """
    progress(Progress(f"Comparing {kind.name} with llama.cpp"))
    passages = expected.passages if kind.is_quantized else ()
    prompts = (*expected.prompts, *passages)
    answer = ask(file, prompts, expected.texts, threads or torch.get_num_threads())
    if "error" in answer:
        raise ModelError(f"{_REFUSED} {unreadable(expected.name, answer)}.")
    if answer["vocabulary"] != expected.vocabulary:
        raise ModelError(
            f"{_REFUSED} llama.cpp finds {answer['vocabulary']:,} tokens in it, and {expected.name} has "
            f"{expected.vocabulary:,}."
        )
    _check_tokens(expected, answer["tokens"])
    computed = answer["log_probabilities"]
    differences = tuple(map(difference, expected.prompts, computed))
    _check_differences(expected.name, kind, differences)
    if not passages:
        return Comparison(differences)
    ratio = perplexity_ratio(passages, computed[len(expected.prompts) :])
    _check_ratio(expected.name, kind, ratio)
    return Comparison(differences, ratio)


def difference(prompt: Prompt, computed: Sequence[Sequence[float]]) -> Difference:
    """Return how far llama.cpp's log-probabilities after one prompt are off."""
    off = (
        torch.tensor(computed, dtype=torch.float64) - torch.tensor(prompt.expected, dtype=torch.float64)
    ).abs()
    return Difference(len(prompt.ids), float(off.max()), float(off.mean()))


def perplexity_ratio(passages: Sequence[Prompt], computed: Sequence[Sequence[Sequence[float]]]) -> float:
    """Return the perplexity by llama.cpp over that by transformers, of the tokens that follow in some texts."""
    found, expected = (
        torch.tensor([value for values in each for (value,) in values], dtype=torch.float64)
        for each in (computed, [prompt.expected for prompt in passages])
    )
    return float((expected - found).mean().exp())


_REFUSED = "The GGUF file is not handed over:"


def ask(
    file: Path, prompts: Sequence[Prompt], texts: Sequence[tuple[str, bool, object]], threads: int
) -> dict[str, Any]:
    """Ask llama.cpp about a file, in a process of its own."""
    question = {
        "file": str(file),
        "threads": threads,
        "texts": [[text, special] for text, special, _ in texts],
        "prompts": [
            {"ids": prompt.ids, "asked": list(zip(prompt.positions, prompt.asked, strict=True))}
            for prompt in prompts
        ],
    }
    try:
        answer: dict[str, Any] = run_limited(
            str(_CHILD),
            content=json.dumps(question).encode(),
            packages=["xllamacpp"],
            memory=READER_MEMORY + 3 * file.stat().st_size,
            cpu_seconds=READER_SECONDS,
            seconds=READER_SECONDS,
        )
    except Exhausted as exhausted:
        line = last_line(exhausted.printed)
        return {"error": "it ended without an answer", "log": [line] if line else []}
    except ValueError:
        return {"error": "its answer cannot be read", "log": []}
    except OSError as error:
        raise ModelError(f"llama.cpp could not be started: {error}.") from None
    return answer


def measure(file: Path, prompt: Prompt, threads: int) -> Difference:
    """Open a file with llama.cpp and compare it on one prompt. Raises `ModelError` if it cannot be opened."""
    answer = ask(file, [prompt], (), threads)
    if "error" in answer:
        raise ModelError(f"{file.name} cannot be used: {unreadable(file.name, answer)}.")
    return difference(prompt, answer["log_probabilities"][0])


def unreadable(name: str, answer: Mapping[str, Any]) -> str:
    """Say why llama.cpp cannot read a file."""
    log = " ".join(answer["log"])
    if "wrong number of tensors" in log:
        reason = f"its architecture in llama.cpp has no place for some of the tensors of {name}"
    elif "wrong shape" in log or "has wrong shape" in log:
        reason = f"its architecture in llama.cpp derives sizes from one another that {name} does not have"
    else:
        told = [line.split("error loading model: ")[-1] for line in answer["log"]]
        reason = f"{answer['error']} ({told[0][:200]})" if told else str(answer["error"])
    return f"llama.cpp does not open it: {reason}"


def _check_tokens(expected: Expectation, found: Sequence[Sequence[int]]) -> None:
    for (text, special, ids), tokens in zip(expected.texts, found, strict=True):
        if list(ids) != list(tokens):
            where = " with what begins and ends a text" if special else ""
            shown = text if len(text) <= 40 else text[:40] + "…"
            raise ModelError(
                f"{_REFUSED} llama.cpp makes other tokens of the text {shown!r}{where} than the tokenizer of "
                f"{expected.name}: {_brief(tokens)} in place of {_brief(ids)}."
            )


def _brief(ids: Sequence[int]) -> str:
    return f"{len(ids)} tokens" if len(ids) > 6 else "[" + ", ".join(map(str, ids)) + "]"


def _check_differences(name: str, kind: GGUFType, differences: Sequence[Difference]) -> None:
    wrong = [each for each in differences if not each.is_within(kind)]
    if not wrong:
        return
    worst = max(wrong, key=lambda each: each.largest)
    if kind.is_quantized:
        raise ModelError(
            f"{_REFUSED} rounded to {kind.name}, {name} is another model: log-probabilities differ by "
            f"{worst.mean:.2f} on average and by up to {worst.largest:.2f}, and {kind.mean:g} and {kind.largest:g} are "
            "allowed. Choose a type with more bits."
        )
    raise ModelError(
        f"{_REFUSED} llama.cpp computes something else with it than transformers with {name}. After a text of "
        f"{worst.tokens} tokens, the log-probability of a next token differs by up to {worst.largest:.3f} and by "
        f"{worst.mean:.3f} on average, and {kind.largest:g} and {kind.mean:g} are allowed for {kind.name}."
        f"{_cause(kind, differences, worst)}"
    )


def _check_ratio(name: str, kind: GGUFType, ratio: float) -> None:
    if not ratio <= MOST_TIMES:
        raise ModelError(
            f"{_REFUSED} rounded to {kind.name}, {name} has a perplexity on held-out text {ratio:.3g} times as high, "
            f"and {MOST_TIMES:g} times are allowed. Choose a type with more bits."
        )


def _cause(kind: GGUFType, differences: Sequence[Difference], worst: Difference) -> str:
    """Say where a difference comes from, as far as the differences of other lengths of text show it."""
    if all(each.mean <= kind.mean for each in differences):
        return (
            " Few tokens differ, so it may be that 16 bits round off too much of this model's large values."
        )
    right = [each.tokens for each in differences if each.is_within(kind)]
    if right and max(right) < worst.tokens:
        return (
            f" Texts of {max(right)} tokens agree, so it is in what depends on positions: a window, or the rotary "
            "embedding."
        )
    return ""
