"""The speed of text generation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pruning.progress import Progress, Reporter, silent
from pruning.text.generation import Sampling, generate_ids, report_each_token
from pruning.text.prompt import encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NEW_TOKENS, ROUNDS = 16, 5
"""Of five ratios between two models, the least and the greatest enclose the true median with a chance of 94 %."""


def tokens_per_second(
    models: Sequence[PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    *,
    new_tokens: int = NEW_TOKENS,
    rounds: int = ROUNDS,
    progress: Reporter = silent,
) -> tuple[float, ...]:
    """Return the median speed of each model over the rounds of `speeds_by_round`, which explains the arguments."""
    measured = speeds_by_round(models, tokenizer, new_tokens=new_tokens, rounds=rounds, progress=progress)
    return tuple(map(statistics.median, measured))


def speeds_by_round(
    models: Sequence[PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    *,
    new_tokens: int = NEW_TOKENS,
    rounds: int = ROUNDS,
    progress: Reporter = silent,
) -> tuple[tuple[float, ...], ...]:
    """Measure greedy generation at batch 1, with the key-value cache.

    The models take turns, so that other load on the machine slows all of them alike: compare the speeds of one round.

    Args:
        models: The models to compare.
        tokenizer: Tokenizes the prompt for all of them.
        new_tokens: Tokens to generate each time.
        rounds: How often each model is measured, after a short warm-up.
        progress: Called after every token.

    Returns:
        For each model, tokens per second in each round.
    """
    inputs = encode_prompt(tokenizer, "Once upon a time")
    seconds: list[list[float]] = [[] for _ in models]
    report = report_each_token(progress, Progress("Measuring speed"))
    for round_number in range(rounds + 1):
        length = new_tokens if round_number else 2
        for model, times in zip(models, seconds, strict=True):
            report()
            start = time.perf_counter()
            generate_ids(
                model, inputs.to(model.device), Sampling(max_new_tokens=length), least=length, stopped=report
            )
            if round_number:
                times.append(time.perf_counter() - start)
    return tuple(tuple(new_tokens / time for time in times) for times in seconds)
