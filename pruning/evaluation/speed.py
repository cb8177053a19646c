"""The speed of text generation."""

import statistics
import time
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList

from pruning.progress import Progress, Reporter, silent
from pruning.text.generation import StopWhen, report_each_token


def tokens_per_second(
    models: Sequence[PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    new_tokens: int = 24,
    rounds: int = 3,
    progress: Reporter = silent,
) -> tuple[float, ...]:
    """Greedy generation at batch 1, with the cache: the median over rounds for each model.

    The models take turns, so that what else the machine does weighs on all of them alike.
    """
    inputs = tokenizer("Once upon a time", return_tensors="pt").input_ids
    seconds: list[list[float]] = [[] for _ in models]
    listening = StoppingCriteriaList([StopWhen(report_each_token(progress, Progress("Measuring speed")))])
    with torch.inference_mode():
        for round_number in range(rounds + 1):
            length = new_tokens if round_number else 2
            for model, times in zip(models, seconds, strict=True):
                start = time.perf_counter()
                model.generate(
                    inputs.to(model.device),
                    attention_mask=torch.ones_like(inputs, device=model.device),
                    do_sample=False,
                    pad_token_id=0,
                    max_new_tokens=length,
                    min_new_tokens=length,
                    stopping_criteria=listening,
                )
                if round_number:
                    times.append(time.perf_counter() - start)
    return tuple(new_tokens / statistics.median(times) for times in seconds)
