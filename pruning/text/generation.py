"""Generate text from a model, streamed, and comparable between two models."""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from pruning.errors import RecipeError, panics_as_errors
from pruning.lazy import LazyModule, torch, transformers
from pruning.loading.given import AnyModel, CausalLM, with_tokenizer
from pruning.progress import Progress, Reporter, silent
from pruning.text.prompt import MAX_PROMPT_TOKENS as MAX_PROMPT_TOKENS
from pruning.text.prompt import Prompt, check_prompt, prepare_prompt
from pruning.text.prompt import encode_prompt as encode_prompt

if TYPE_CHECKING:
    from transformers import (
        PreTrainedModel,
        PreTrainedTokenizerBase,
        TextIteratorStreamer,
    )

if TYPE_CHECKING:
    from pruning.text import decoding
else:
    decoding = LazyModule("pruning.text.decoding")

MAX_STOP_TOKENS = 64
"""The most end-of-text tokens that are taken from a generation config."""

MAX_NEW_TOKENS = 1_024

SAMPLE_LENGTH = 256
"""Tokens in each text that a model generates for its own calibration."""

SAMPLE_BATCH = 16
"""The most texts that a model generates at the same time for its own calibration."""


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


def report_each_token(progress: Reporter, place: Progress) -> Callable[[], bool]:
    """Return a `stopped` that never stops by itself, but reports progress after every token.

    The reporter may raise `Cancelled`.
    """

    def report() -> bool:
        progress(place)
        return False

    return report


def generate(
    model: AnyModel,
    prompt: str,
    sampling: Sampling | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    chat: bool | None = None,
    system: str | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> str:
    """Generate the answer to a question, or the continuation of a text.

    The same model, prompt and sampling give the same text. See `stream` for the arguments and errors.

    Returns:
        The new text alone, without the prompt and special tokens.

    Example:
        >>> import pruning
        >>> base = pruning.load("smollm2-135m")
        >>> text = pruning.generate(base, "Paris is the capital of", pruning.Sampling(max_new_tokens=8))
    """
    options = {"tokenizer": tokenizer, "chat": chat, "system": system, "stopped": stopped}
    return "".join(stream(model, prompt, sampling, **options))  # type: ignore[arg-type]


def stream(
    model: AnyModel,
    prompt: str,
    sampling: Sampling | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    chat: bool | None = None,
    system: str | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[str]:
    """Generate the answer to a question, or the continuation of a text, piece by piece.

    Args:
        model: The model: a name, a folder, one that is loaded, or one that was pruned.
        prompt: The question, or the text to continue.
        sampling: How to sample; by default 40 tokens, each time the likeliest.
        tokenizer: The tokenizer of a model that transformers loaded.
        chat: Whether to ask the question in the model's chat format; None to do so if it has one.
        system: A system prompt for the chat; None for the one of the model's chat template, if it has one.
        stopped: Called after every token; the generation ends as soon as it returns true.

    Returns:
        An iterator over pieces of text. Closing it early ends the generation.

    Raises:
        ModelError: The model cannot be used.
        RecipeError: The model cannot continue this prompt, or cannot chat. Raised here, before the first piece.

    Example:
        >>> import pruning
        >>> base = pruning.load("smollm2-135m")
        >>> pieces = list(pruning.stream(base, "Paris is the capital of", pruning.Sampling(max_new_tokens=8)))
    """
    sampling, given = sampling or Sampling(), with_tokenizer(model, tokenizer)
    prepared = prepare_prompt(given.tokenizer, prompt, chat=chat, system=system)
    check_prompt(given, prepared.ids, sampling.max_new_tokens)
    return _stream_in_thread(given, prepared, sampling, stopped)


def _stream_in_thread(
    model: CausalLM, prompt: Prompt, sampling: Sampling, stopped: Callable[[], bool]
) -> Iterator[str]:
    """Run the generation in a thread of its own; yield its text, and raise its error."""
    pieces = decoding.TextStreamer(model, prompt.stop_ids)
    abandoned = threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with panics_as_errors():
                generate_ids(
                    model.model,
                    prompt.ids.to(model.model.device),
                    sampling,
                    stop_ids=prompt.stop_ids,
                    stopped=lambda: abandoned.is_set() or stopped(),
                    streamer=pieces,
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


def generate_ids(
    model: PreTrainedModel,
    inputs: torch.Tensor,
    sampling: Sampling,
    *,
    least: int = 0,
    stop_ids: Sequence[int] = (),
    stopped: Callable[[], bool] = lambda: False,
    streamer: TextIteratorStreamer | None = None,
) -> torch.Tensor:
    """Generate tokens with a generation config of our own, which takes only token ids from the model's.

    What else a model's generation_config.json or config.json sets (beams, penalties, stop strings, time limits,
    caches) would change what is compared and measured, or what it costs.

    Args:
        model: The model.
        inputs: Token ids to continue, `[batch, tokens]`.
        sampling: How to sample.
        least: The least number of tokens to generate.
        stop_ids: Tokens that end a text, besides the model's EOS tokens.
        stopped: Called after every token; the generation ends as soon as it returns true.
        streamer: Receives the tokens.

    Returns:
        Token ids, the inputs included, `[batch, tokens]`.
    """
    noise = [decoding.GumbelNoise(sampling.temperature, sampling.seed)] if sampling.temperature else []
    tokens = special_tokens(model)
    ends = {*(tokens["eos_token_id"] or ()), *(each for each in stop_ids if each < model.config.vocab_size)}
    config = transformers.GenerationConfig(
        **tokens | {"eos_token_id": sorted(ends) or None},
        max_new_tokens=sampling.max_new_tokens,
        min_new_tokens=least or None,
        do_sample=False,
    )
    # transformers fills whatever this config leaves open from the model's own: a shallow copy has no other.
    runner = copy.copy(model)
    runner.generation_config = config
    with torch.inference_mode():
        return cast(transformers.GenerationMixin, runner).generate(
            inputs,
            generation_config=config,
            attention_mask=torch.ones_like(inputs),
            logits_processor=transformers.LogitsProcessorList(noise),
            stopping_criteria=transformers.StoppingCriteriaList([decoding.StopWhen(stopped)]),
            streamer=streamer,
        )


def special_tokens(model: PreTrainedModel) -> dict[str, Any]:
    """Return the BOS, EOS and padding token ids of a model, as a generation config holds them.

    Values that are not ids of its vocabulary are left out.
    """

    def ids(name: str) -> list[int]:
        for holder in (model.generation_config, model.config):
            value = getattr(holder, name, None)
            if value is not None:
                values = value if isinstance(value, list | tuple) else [value]
                return [each for each in values if type(each) is int and 0 <= each < model.config.vocab_size]
        return []

    bos, eos, pad = ids("bos_token_id")[:1], ids("eos_token_id")[:MAX_STOP_TOKENS], ids("pad_token_id")[:1]
    return {
        "bos_token_id": bos[0] if bos else None,
        "eos_token_id": eos or None,
        "pad_token_id": (pad or eos or [0])[0],
    }


def stream_together(
    models: Sequence[CausalLM],
    prompt: str,
    sampling: Sampling | None = None,
    *,
    chat: bool | None = False,
    system: str | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[str, ...]]:
    """Generate what several models make of one prompt, at the same time.

    All use the same sampling noise, so they diverge only where the models disagree.

    Args:
        models: The models and their tokenizers.
        prompt: The text to continue, or the question.
        sampling: How to sample; by default 40 tokens, each time the likeliest.
        chat: Whether to ask the question in each model's chat format; None to do so if it has one.
        system: A system prompt for the chat; None for that of the model's chat template, if it has one.
        stopped: Called after every token of each; all end as soon as it returns true.

    Yields:
        The texts as they are, each time one of them has grown.

    Raises:
        RecipeError: One of the models cannot continue this prompt.
    """
    pieces: queue.Queue[tuple[int, str | BaseException | None]] = queue.Queue()
    over = threading.Event()

    def ended() -> bool:
        return over.is_set() or stopped()

    def work(index: int, model: CausalLM) -> None:
        try:
            for piece in stream(model, prompt, sampling, chat=chat, system=system, stopped=ended):
                pieces.put((index, piece))
            pieces.put((index, None))
        except BaseException as error:
            pieces.put((index, error))

    threads = [
        threading.Thread(target=work, args=(index, model), daemon=True) for index, model in enumerate(models)
    ]
    for thread in threads:
        thread.start()
    texts, running = [""] * len(models), len(models)
    try:
        while running:
            index, piece = pieces.get()
            if isinstance(piece, BaseException):
                raise piece
            if piece is None:
                running -= 1
            else:
                texts[index] += piece
                yield tuple(texts)
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
        ids = generate_ids(
            model,
            inputs,
            Sampling(SAMPLE_LENGTH, temperature=1.0, seed=seed),
            least=SAMPLE_LENGTH,
            stopped=report_each_token(progress, place),
        )
        seed += 1
        with panics_as_errors():
            texts += tokenizer.batch_decode(ids[:, 1:], skip_special_tokens=True)
            generated += sum(len(tokenizer(text, verbose=False).input_ids) for text in texts[-batch:])
    return "\n\n".join(texts)
