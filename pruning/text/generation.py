"""Generate text from a model, streamed, and comparable between two models."""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from transformers import (
    GenerationMixin,
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

SAMPLE_LENGTH = 256
"""Tokens in each text that a model generates for its own calibration."""

SAMPLE_BATCH = 16
"""The most texts that a model generates at the same time for its own calibration."""


class CausalLM(Protocol):
    """A model with the tokenizer that belongs to it, such as `LoadedModel` and `Pruned`."""

    @property
    def model(self) -> PreTrainedModel: ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...


@dataclass(frozen=True)
class Sampling:
    """How to continue a prompt.

    Attributes:
        max_new_tokens: The most tokens to generate, from 1 to `MAX_NEW_TOKENS`.
        temperature: From 0 to 2; 0 always takes the likeliest token.
        seed: Fixes the sampling noise; without effect at temperature 0.

    Raises:
        RecipeError: A value is out of range.
    """

    max_new_tokens: int = 40
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check_integer("max_new_tokens", self.max_new_tokens, 1, MAX_NEW_TOKENS)
        _check_integer("seed", self.seed, 0, 2**63 - 1)
        if isinstance(self.temperature, bool) or not isinstance(self.temperature, int | float):
            raise RecipeError(f"temperature is {self.temperature!r}; it must be a number from 0 to 2.")
        if not 0 <= self.temperature <= 2:
            raise RecipeError(f"temperature is {self.temperature:g}; it must be from 0 to 2.")


def _check_integer(name: str, value: int, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise RecipeError(f"{name} is {value!r}; it must be a whole number from {least} to {most}.")


class GumbelNoise(LogitsProcessor):
    """Sampling as an argmax: logits + temperature · Gumbel noise drawn from (seed, position).

    The largest of the noisy logits is a draw from the softmax (Gumbel-max trick; Maddison et al.,
    2014, A* Sampling, §2). Two models that get the same noise differ only where their predictions
    do, so the texts of a base and a pruned model can be compared; and no global random state is
    touched.
    """

    def __init__(self, temperature: float, seed: int):
        self.temperature, self.seed = temperature, seed

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Add the noise of the next position to the scores, `[batch, vocabulary]`."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 % 2**62 + input_ids.shape[1])
        noise = torch.rand(scores.shape, generator=generator, dtype=torch.float64)
        gumbel = -torch.log(-torch.log(noise.clamp(1e-300, 1 - 1e-16)))
        return scores + self.temperature * gumbel.to(scores)


class StopWhen(StoppingCriteria):
    """Ends a generation as soon as `stopped`, called after every token, returns true."""

    def __init__(self, stopped: Callable[[], bool]):
        self._stopped = stopped

    def __call__(self, input_ids: torch.Tensor, _scores: torch.Tensor, **_: Any) -> torch.Tensor:
        """Return whether each sequence of the batch ends here, `[batch]`."""
        return torch.full((input_ids.shape[0],), self._stopped(), device=input_ids.device)


def report_each_token(progress: Reporter, place: Progress) -> Callable[[], bool]:
    """Return a `stopped` that never stops by itself, but reports progress after every token.

    The reporter may raise `Cancelled`.
    """

    def report() -> bool:
        progress(place)
        return False

    return report


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> torch.Tensor:
    """Tokenize a prompt.

    Returns:
        Token ids, `[1, tokens]`.

    Raises:
        RecipeError: The prompt is empty, or longer than `MAX_PROMPT_CHARACTERS`.
    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise RecipeError("The prompt is empty. Write a few words for the model to continue.")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise RecipeError(
            f"The prompt has {len(prompt):,} characters; at most {MAX_PROMPT_CHARACTERS:,} are allowed. "
            "Shorten it."
        )
    return tokenizer(prompt, return_tensors="pt", verbose=False).input_ids


def generate(
    model: CausalLM,
    prompt: str,
    sampling: Sampling | None = None,
    *,
    stopped: Callable[[], bool] = lambda: False,
) -> str:
    """Generate the continuation of a prompt.

    The same model, prompt and sampling give the same text. See `stream` for the arguments and errors.

    Returns:
        The new text alone, without the prompt and special tokens.

    Example:
        >>> import pruning
        >>> base = pruning.load("smollm2-135m")
        >>> text = pruning.generate(base, "Paris is the capital of", pruning.Sampling(max_new_tokens=8))
    """
    return "".join(stream(model, prompt, sampling, stopped=stopped))


def stream(
    model: CausalLM,
    prompt: str,
    sampling: Sampling | None = None,
    *,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[str]:
    """Generate the continuation of a prompt, piece by piece.

    Args:
        model: The model and its tokenizer.
        prompt: The text to continue.
        sampling: How to sample; by default 40 tokens, each time the likeliest.
        stopped: Called after every token; the generation ends as soon as it returns true.

    Returns:
        An iterator over pieces of text. Closing it early ends the generation.

    Raises:
        RecipeError: The model cannot continue this prompt. Raised here, before the first piece.

    Example:
        >>> import pruning
        >>> base = pruning.load("smollm2-135m")
        >>> pieces = list(pruning.stream(base, "Paris is the capital of", pruning.Sampling(max_new_tokens=8)))
    """
    sampling = sampling or Sampling()
    inputs = encode_prompt(model.tokenizer, prompt).to(model.model.device)
    check_vocabulary(model.model, model.tokenizer, inputs)
    context = getattr(model.model.config, "max_position_embeddings", None)
    if context and inputs.shape[1] + sampling.max_new_tokens > context:
        raise RecipeError(
            f"The prompt has {inputs.shape[1]} tokens; with {sampling.max_new_tokens} new ones that is "
            f"more than the model's context of {context}. Shorten it."
        )
    return _stream_in_thread(model, inputs, sampling, stopped)


def _stream_in_thread(
    model: CausalLM, inputs: torch.Tensor, sampling: Sampling, stopped: Callable[[], bool]
) -> Iterator[str]:
    """Run the generation in a thread of its own; yield its text, and raise its error."""
    pieces = TextIteratorStreamer(model.tokenizer, skip_prompt=True, skip_special_tokens=True)
    abandoned = threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with torch.inference_mode():
                cast(GenerationMixin, model.model).generate(
                    inputs,
                    attention_mask=torch.ones_like(inputs),
                    streamer=pieces,
                    stopping_criteria=StoppingCriteriaList(
                        [StopWhen(lambda: abandoned.is_set() or stopped())]
                    ),
                    **_generation_options(model.model, sampling),
                )
        except BaseException as error:
            failures.append(error)
            pieces.end()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        for piece in pieces:
            if piece:
                yield piece
    finally:
        abandoned.set()
        thread.join()
    if failures:
        raise failures[0]


def _generation_options(model: PreTrainedModel, sampling: Sampling) -> dict[str, Any]:
    """Return the keyword arguments of transformers' `generate` for a way to sample.

    What the model's own generation config suggests (top-p, repetition penalty) is switched off.
    """
    noise = [GumbelNoise(sampling.temperature, sampling.seed)] if sampling.temperature else []
    config = model.generation_config
    return {
        "max_new_tokens": sampling.max_new_tokens,
        "do_sample": False,
        "temperature": None,
        "top_p": None,
        "top_k": None,
        "repetition_penalty": 1.0,
        "logits_processor": LogitsProcessorList(noise),
        "pad_token_id": config.pad_token_id
        if config.pad_token_id is not None
        else model.config.eos_token_id
        if isinstance(model.config.eos_token_id, int)
        else 0,
    }


def stream_pair(
    first: CausalLM,
    second: CausalLM,
    prompt: str,
    sampling: Sampling | None = None,
    *,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[str, str]]:
    """Generate the continuations of one prompt by two models at the same time.

    Both use the same sampling noise, so they diverge only where the models disagree.

    Args:
        first: A model and its tokenizer.
        second: Another one.
        prompt: The text to continue.
        sampling: How to sample; by default 40 tokens, each time the likeliest.
        stopped: Called after every token of either; both end as soon as it returns true.

    Yields:
        Both texts as they are, each time one of them has grown.

    Raises:
        RecipeError: One of the models cannot continue this prompt.
    """
    pieces: queue.Queue[tuple[int, str | BaseException | None]] = queue.Queue()
    over = threading.Event()

    def work(index: int, model: CausalLM) -> None:
        try:
            for piece in stream(model, prompt, sampling, stopped=lambda: over.is_set() or stopped()):
                pieces.put((index, piece))
            pieces.put((index, None))
        except BaseException as error:
            pieces.put((index, error))

    threads = [
        threading.Thread(target=work, args=(index, model), daemon=True)
        for index, model in enumerate((first, second))
    ]
    for thread in threads:
        thread.start()
    texts, running = ["", ""], 2
    try:
        while running:
            index, piece = pieces.get()
            if isinstance(piece, BaseException):
                raise piece
            if piece is None:
                running -= 1
            else:
                texts[index] += piece
                yield texts[0], texts[1]
    finally:
        over.set()
        for thread in threads:
            thread.join()


def sample_text(base: CausalLM, tokens: int, seed: int = 0, progress: Reporter = silent) -> str:
    """Let a model generate text from its beginning-of-text token alone, for calibration.

    Args:
        base: The model and its tokenizer.
        tokens: The least number of tokens to generate.
        seed: Fixes the text; sampled at temperature 1, several texts at the same time.
        progress: Called after every token.

    Returns:
        The texts, separated by empty lines.
    """
    model, tokenizer = base.model, base.tokenizer
    start = next(token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, 0) if token is not None)
    texts: list[str] = []
    generated = 0
    while generated < tokens:
        batch = min(SAMPLE_BATCH, -(-(tokens - generated) // SAMPLE_LENGTH))
        place = Progress("Generating calibration text, tokens", generated, tokens)
        progress(place)
        inputs = torch.full((batch, 1), start, device=model.device)
        with torch.inference_mode():
            ids = cast(GenerationMixin, model).generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                min_new_tokens=SAMPLE_LENGTH,
                stopping_criteria=StoppingCriteriaList([StopWhen(report_each_token(progress, place))]),
                **_generation_options(model, Sampling(SAMPLE_LENGTH, temperature=1.0, seed=seed)),
            )
        seed += 1
        texts += tokenizer.batch_decode(ids[:, 1:], skip_special_tokens=True)
        generated += sum(len(tokenizer(text, verbose=False).input_ids) for text in texts[-batch:])
    return "\n\n".join(texts)
