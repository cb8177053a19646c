"""The speed of text generation."""

import statistics
import time
from collections.abc import Sequence
from typing import cast

import torch
from transformers import GenerationMixin, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList

from pruning.progress import Progress, Reporter, silent
from pruning.text.generation import StopWhen, report_each_token


def tokens_per_second(
    models: Sequence[PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    *,
    new_tokens: int = 24,
    rounds: int = 3,
    progress: Reporter = silent,
) -> tuple[float, ...]:
    """Measure greedy generation at batch 1, with the key-value cache.

    The models take turns, so that other load on the machine slows all of them alike.

    Args:
        models: The models to compare.
        tokenizer: Tokenizes the prompt for all of them.
        new_tokens: Tokens to generate each time.
        rounds: How often each model is measured, after a short warm-up.
        progress: Called after every token.

    Returns:
        For each model, tokens per second: the median over the rounds.
    """
    inputs = tokenizer("Once upon a time", return_tensors="pt").input_ids
    seconds: list[list[float]] = [[] for _ in models]
    stopping = StoppingCriteriaList([StopWhen(report_each_token(progress, Progress("Measuring speed")))])
    with torch.inference_mode():
        for round_number in range(rounds + 1):
            length = new_tokens if round_number else 2
            for model, times in zip(models, seconds, strict=True):
                start = time.perf_counter()
                cast(GenerationMixin, model).generate(
                    inputs.to(model.device),
                    attention_mask=torch.ones_like(inputs, device=model.device),
                    do_sample=False,
                    pad_token_id=0,
                    max_new_tokens=length,
                    min_new_tokens=length,
                    stopping_criteria=stopping,
                )
                if round_number:
                    times.append(time.perf_counter() - start)
    return tuple(new_tokens / statistics.median(times) for times in seconds)
