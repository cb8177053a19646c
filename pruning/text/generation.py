"""Text from a model, streamed, and comparable between two models."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from pruning.errors import RecipeError
from pruning.progress import Progress, Reporter, silent
from pruning.text.tokens import check_vocabulary

MAX_PROMPT_CHARACTERS = 20_000

MAX_NEW_TOKENS = 1_024


@dataclass(frozen=True)
class Sampling:
    """How to continue a prompt. `temperature` 0 takes the likeliest token each time."""

    max_new_tokens: int = 40
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self):
        _check_whole("max_new_tokens", self.max_new_tokens, 1, MAX_NEW_TOKENS)
        _check_whole("seed", self.seed, 0, 2**63 - 1)
        if isinstance(self.temperature, bool) or not isinstance(self.temperature, int | float):
            raise RecipeError(f"temperature is {self.temperature!r}; a number from 0 to 2 is needed.")
        if not 0 <= self.temperature <= 2:
            raise RecipeError(f"temperature is {self.temperature:g}; it must be from 0 to 2.")


def _check_whole(name: str, value: int, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise RecipeError(f"{name} is {value!r}; a whole number from {least} to {most} is needed.")


class CausalLM(Protocol):
    """A model with the tokenizer that it reads and writes with."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


class GumbelNoise(LogitsProcessor):
    """Sampling as an argmax: logits + temperature · Gumbel noise drawn from (seed, position).

    The largest of the noisy logits is a draw from the softmax (Gumbel-max trick; Maddison et al.,
    2014, A* Sampling, §2). Two models that get the same noise differ only where their predictions
    do, so texts before and after a cut can be compared; and no global random state is touched.
    """

    def __init__(self, temperature: float, seed: int):
        self.temperature, self.seed = temperature, seed

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 % 2**62 + input_ids.shape[1])
        noise = torch.rand(scores.shape, generator=generator, dtype=torch.float64)
        gumbel = -torch.log(-torch.log(noise.clamp(1e-300, 1 - 1e-16)))
        return scores + self.temperature * gumbel.to(scores)


class StopWhen(StoppingCriteria):
    """Ends all that is being written once `stopped` says so; it is asked after every token."""

    def __init__(self, stopped: Callable[[], bool]):
        self._stopped = stopped

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((input_ids.shape[0],), self._stopped(), device=input_ids.device)


def report_each_token(progress: Reporter, place: Progress) -> Callable[[], bool]:
    """For `stopped`: never stops by itself, but the reporter may raise `Cancelled` after every token."""

    def told() -> bool:
        progress(place)
        return False

    return told


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> torch.Tensor:
    """A prompt as `[1, tokens]`. Raises `RecipeError` for an empty or an enormous one."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise RecipeError("The prompt is empty. Write a few words for the model to continue.")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise RecipeError(
            f"The prompt has {len(prompt):,} characters; at most {MAX_PROMPT_CHARACTERS:,} are read. "
            "Shorten it."
        )
    return tokenizer(prompt, return_tensors="pt", verbose=False).input_ids


def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    sampling: Sampling | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[str]:
    """The continuation of a prompt, piece by piece; `stopped` is asked after every token.

    Raises `RecipeError` at once for a prompt that the model cannot continue.
    """
    sampling = sampling or Sampling()
    inputs = encode_prompt(tokenizer, prompt).to(model.device)
    check_vocabulary(model, tokenizer, inputs)
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest and inputs.shape[1] + sampling.max_new_tokens > longest:
        raise RecipeError(
            f"The prompt has {inputs.shape[1]} tokens; with {sampling.max_new_tokens} new ones that is "
            f"more than the {longest} that this model can read. Shorten it."
        )
    return _written(model, tokenizer, inputs, sampling, stopped)


def _written(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: torch.Tensor,
    sampling: Sampling,
    stopped: Callable[[], bool],
) -> Iterator[str]:
    pieces = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    given_up = threading.Event()
    failure: list[BaseException] = []

    def work():
        try:
            with torch.inference_mode():
                model.generate(
                    inputs,
                    attention_mask=torch.ones_like(inputs),
                    streamer=pieces,
                    stopping_criteria=StoppingCriteriaList(
                        [StopWhen(lambda: given_up.is_set() or stopped())]
                    ),
                    **_settings(model, sampling),
                )
        except BaseException as error:
            failure.append(error)
            pieces.end()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        for piece in pieces:
            if piece:
                yield piece
    finally:
        given_up.set()
        thread.join()
    if failure:
        raise failure[0]


def _settings(model: PreTrainedModel, sampling: Sampling) -> dict:
    noise = [GumbelNoise(sampling.temperature, sampling.seed)] if sampling.temperature else []
    settings = model.generation_config
    return {
        "max_new_tokens": sampling.max_new_tokens,
        "do_sample": False,
        "temperature": None,
        "top_p": None,
        "top_k": None,
        "repetition_penalty": 1.0,
        "logits_processor": LogitsProcessorList(noise),
        "pad_token_id": settings.pad_token_id
        if settings.pad_token_id is not None
        else model.config.eos_token_id
        if isinstance(model.config.eos_token_id, int)
        else 0,
    }


def compare(
    models: Sequence[CausalLM],
    prompt: str,
    sampling: Sampling | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[str, ...]]:
    """The continuations of one prompt by several models at once, each time one of them grows.

    They share the sampling noise, so they part only where the models disagree.
    """
    pieces: queue.Queue = queue.Queue()
    over = threading.Event()

    def write(which: int) -> None:
        try:
            for piece in stream(
                models[which].model,
                models[which].tokenizer,
                prompt,
                sampling,
                lambda: over.is_set() or stopped(),
            ):
                pieces.put((which, piece))
            pieces.put((which, None))
        except BaseException as error:
            pieces.put((which, error))

    threads = [threading.Thread(target=write, args=(which,), daemon=True) for which in range(len(models))]
    for thread in threads:
        thread.start()
    written, writing = [""] * len(models), len(models)
    try:
        while writing:
            which, piece = pieces.get()
            if isinstance(piece, BaseException):
                raise piece
            if piece is None:
                writing -= 1
            else:
                written[which] += piece
                yield tuple(written)
    finally:
        over.set()
        for thread in threads:
            thread.join()


def complete(
    model,
    tokenizer,
    prompt: str,
    sampling: Sampling | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> str:
    """The whole continuation of a prompt."""
    return "".join(stream(model, tokenizer, prompt, sampling, stopped))


def sample_text(base, tokens: int, seed: int = 0, progress: Reporter = silent) -> str:
    """Text that a model writes by itself from nothing, for calibration; at least `tokens` tokens.

    Sampled at temperature 1 from the model's beginning-of-text token, many texts at once.
    """
    model, tokenizer = base.model, base.tokenizer
    start = next(token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, 0) if token is not None)
    texts, written, length = [], 0, 256
    while written < tokens:
        batch = min(16, -(-(tokens - written) // length))
        place = Progress("The model writes its calibration text, tokens", written, tokens)
        progress(place)
        inputs = torch.full((batch, 1), start, device=model.device)
        with torch.inference_mode():
            drawn = model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                min_new_tokens=length,
                stopping_criteria=StoppingCriteriaList([StopWhen(report_each_token(progress, place))]),
                **_settings(model, Sampling(length, temperature=1.0, seed=seed)),
            )
        seed += 1
        texts += tokenizer.batch_decode(drawn[:, 1:], skip_special_tokens=True)
        written += sum(len(tokenizer(text, verbose=False).input_ids) for text in texts[-batch:])
    return "\n\n".join(texts)
