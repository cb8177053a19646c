"""Open a GGUF file with llama.cpp and compare it with what transformers computed with its model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruning.errors import ModelError, SavingError
from pruning.lazy import torch
from pruning.limited_child import Exhausted, run_limited
from pruning.progress import Progress, Reporter
from pruning.sharing.gguf.expect import Expectation, Prompt
from pruning.sharing.gguf.printed import last_line
from pruning.sharing.gguf.types import GGUFType

MOST_TIMES = 3.0
"""How many times the unrounded model's perplexity that of a rounded file may be."""

READER_MEMORY = 4 * 2**30
"""Bytes of address space that llama.cpp may take, besides three times those of the file."""

READER_SECONDS = 1800

_CHILD = Path(__file__).with_name("llama_child.py")


class ResultsDiffer(ModelError):
    """llama.cpp computes something else with a file of 16-bit weights than transformers with its model.

    Attributes:
        largest: The largest difference of a log-probability.
        by_rounding: Whether it computes the same with all bits of the weights.
    """

    def __init__(self, message: str, largest: float, *, by_rounding: bool = False) -> None:
        """Create an error.

        Args:
            message: What the user is told.
            largest: The largest difference of a log-probability.
            by_rounding: Whether llama.cpp computes the same with all bits of the weights.
        """
        super().__init__(message)
        self.largest, self.by_rounding = largest, by_rounding


@dataclass(frozen=True)
class Difference:
    """How far llama.cpp's log-probabilities are from those of transformers, in one text.

    Attributes:
        tokens: The length of the text.
        largest: The largest difference.
        mean: The mean difference.
        positions: After how many positions next tokens are compared.
        undecided: How many of them agree with transformers if hidden states are rounded, and not otherwise.
    """

    tokens: int
    largest: float
    mean: float
    positions: int
    undecided: int = 0

    def is_within(self, kind: GGUFType) -> bool:
        """Return whether a type of file allows it. What is not a number is not."""
        return self.largest <= kind.largest and self.mean <= kind.mean

    @property
    def summary(self) -> str:
        """The difference as a sentence."""
        agrees = (
            f"llama.cpp agrees after {self.tokens} tokens: log-probabilities differ by {self.mean:.4f} on average "
            f"and {self.largest:.4f} at most."
        )
        if not self.undecided:
            return agrees
        return (
            f"{agrees} At {self.undecided} of {self.positions} positions, it agrees with what transformers computes "
            "with rounded hidden states: two experts score almost alike, and rounding decides between them."
        )


@dataclass(frozen=True)
class Comparison:
    """What llama.cpp computes with a file, beside what transformers computes with the model.

    Attributes:
        differences: How far log-probabilities are off, one for each length of text.
        perplexity_ratio: Perplexity on held-out text over that of the unrounded model; None for types of 16 bits.
    """

    differences: tuple[Difference, ...]
    perplexity_ratio: float | None = None


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
    count = len(expected.prompts)
    values = zip(expected.prompts, computed[:count], strict=True)
    differences = tuple(difference(prompt, found, kind) for prompt, found in values)
    _check_differences(expected.name, kind, differences)
    if not passages:
        return Comparison(differences)
    ratio = perplexity_ratio(passages, computed[count:])
    _check_ratio(expected.name, kind, ratio)
    return Comparison(differences, ratio)


def compare_16_bits(
    file: Path,
    expected: Expectation,
    kind: GGUFType,
    progress: Reporter,
    convert_exactly: Callable[[Path], object],
) -> Comparison:
    """Compare a file of 16-bit weights, and if it differs, say whether rounding alone is the cause.

    Args:
        file: A GGUF file.
        expected: What it has to give.
        kind: Its type.
        progress: Is called with each stage.
        convert_exactly: Writes a file of the same model with 32-bit weights. It is compared and removed.

    Raises:
        ModelError: As `compare`.
    """
    try:
        return compare(file, expected, kind, progress)
    except ResultsDiffer as difference:
        exact = file.with_name("exact.gguf")
        try:
            convert_exactly(exact)
            compare(exact, expected, kind, progress)
        except (ModelError, SavingError):
            raise difference from None
        finally:
            exact.unlink(missing_ok=True)
        raise ResultsDiffer(
            f"{difference} With all 32 bits of its weights it computes the same, so that rounding to {kind.name} is "
            "the cause. In a mixture, it gives a token whose experts score almost alike other experts.",
            difference.largest,
            by_rounding=True,
        ) from None


def difference(prompt: Prompt, computed: Sequence[Sequence[float]], kind: GGUFType | None) -> Difference:
    """Return how far llama.cpp's log-probabilities after one prompt are off.

    Args:
        prompt: The prompt, with what transformers computed.
        computed: What llama.cpp computed.
        kind: The type of the file. A position that is off by more than it allows is compared with what transformers
            computes with rounded hidden states.
    """
    found = torch.tensor(computed, dtype=torch.float64)
    off = (found - torch.tensor(prompt.expected, dtype=torch.float64)).abs()
    undecided = 0
    if kind and prompt.rounded:
        once = (found - torch.tensor(prompt.rounded, dtype=torch.float64)).abs()  # [times, positions, tokens]
        closest = once[once.amax(2).argmin(0), torch.arange(len(off))]
        agrees = (off.amax(1) > kind.largest) & (closest.amax(1) <= kind.largest)
        off[agrees] = closest[agrees]
        undecided = int(agrees.sum())
    return Difference(len(prompt.ids), float(off.max()), float(off.mean()), len(off), undecided)


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


def measure(file: Path, prompt: Prompt, kind: GGUFType | None, threads: int) -> Difference:
    """Open a file of a type with llama.cpp and compare it on one prompt.

    Raises:
        ModelError: It cannot be opened.
    """
    answer = ask(file, [prompt], (), threads)
    if "error" in answer:
        raise ModelError(f"{file.name} cannot be used: {unreadable(file.name, answer)}.")
    return difference(prompt, answer["log_probabilities"][0], kind)


def unreadable(name: str, answer: Mapping[str, Any]) -> str:
    """Say why llama.cpp cannot read a file."""
    log = " ".join(answer["log"])
    if "wrong number of tensors" in log:
        reason = f"its architecture in llama.cpp has no place for some of the tensors of {name}"
    elif "wrong shape" in log:
        shapes = re.search(r"tensor '([\w.]+)' has wrong shape; expected ([\d ,]+), got ([\d ,]+)", log)
        reason = f"its architecture in llama.cpp derives sizes from one another that {name} does not have"
        if shapes:
            reason += f" ({shapes[1]}: {_shape(shapes[2])} in place of {_shape(shapes[3])})"
    else:
        told = [line.split("error loading model: ")[-1] for line in answer["log"]]
        reason = f"{answer['error']} ({told[0][:200]})" if told else str(answer["error"])
    return f"llama.cpp does not open it: {reason}"


def _shape(printed: str) -> str:
    """Return a shape as llama.cpp prints it, without the ones at its end."""
    sizes = re.findall(r"\d+", printed)
    while len(sizes) > 1 and sizes[-1] == "1":
        sizes.pop()
    return " × ".join(sizes)


def _check_tokens(expected: Expectation, found: Sequence[Sequence[int]]) -> None:
    for (text, special, ids), tokens in zip(expected.texts, found, strict=True):
        if list(ids) != list(tokens):
            where = " with what begins and ends a text" if special else ""
            shown = text if len(text) <= 40 else text[:40] + "…"
            cause = " The tokenizer normalizes the text first, and llama.cpp does not."
            raise ModelError(
                f"{_REFUSED} llama.cpp makes other tokens of the text {shown!r}{where} than the tokenizer of "
                f"{expected.name}: {_brief(tokens)} in place of {_brief(ids)}.{cause * (text in expected.normalized)}"
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
    raise ResultsDiffer(
        f"{_REFUSED} llama.cpp computes something else with it than transformers with {name}. After a text of "
        f"{worst.tokens} tokens, the log-probability of a next token differs by up to {worst.largest:.3f} and by "
        f"{worst.mean:.3f} on average, and {kind.largest:g} and {kind.mean:g} are allowed for {kind.name}."
        f"{_cause(kind, differences, worst)}",
        worst.largest,
    )


def _check_ratio(name: str, kind: GGUFType, ratio: float) -> None:
    if not ratio <= MOST_TIMES:
        raise ModelError(
            f"{_REFUSED} rounded to {kind.name}, {name} has a perplexity on held-out text {ratio:.3g} times as high, "
            f"and {MOST_TIMES:g} times are allowed. Choose a type with more bits."
        )


def _cause(kind: GGUFType, differences: Sequence[Difference], worst: Difference) -> str:
    """Say where a difference comes from, as far as the differences of other lengths of text show it."""
    right = [each.tokens for each in differences if each.is_within(kind)]
    if right and max(right) < worst.tokens:
        return (
            f" Texts of {max(right)} tokens agree, so it is in what depends on positions: a window, or the rotary "
            "embedding."
        )
    return ""
