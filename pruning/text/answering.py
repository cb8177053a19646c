"""Many questions answered at the same time, greedily, as the model would answer each alone."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pruning.architectures.lm_head import backbone, logits_of
from pruning.errors import panics_as_errors
from pruning.lazy import torch, transformers
from pruning.progress import Progress, Reporter, silent
from pruning.text.generation import special_tokens
from pruning.text.prompt import CausalLM, check_prompt, prepare_prompt

BATCH = 64
"""The most questions that are answered at the same time."""


@dataclass(frozen=True)
class Answer:
    """What a model answered to a question.

    Attributes:
        prompt: The question as the model reads it, as token ids.
        ids: The token ids of the answer, without the one that ends it.
        text: The answer.
        end: The token with which the model ended its answer; None if it was cut off.
    """

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    text: str
    end: int | None

    @property
    def ended(self) -> bool:
        """Whether the model ended the answer by itself."""
        return self.end is not None


def iter_answers(
    model: CausalLM,
    questions: Sequence[str],
    *,
    max_new_tokens: int,
    task: str = "Answering questions",
    progress: Reporter = silent,
) -> Iterator[tuple[int, Answer]]:
    """Answer questions in the model's chat format, or continue them if it has none; always the likeliest token.

    Questions of similar length are answered together, padded on the left.

    Args:
        model: The model and its tokenizer.
        questions: The questions.
        max_new_tokens: The most tokens of an answer.
        task: What the progress says is done.
        progress: Called before every token.

    Yields:
        The number of a question, from 0, and its answer; the shortest questions first.

    Raises:
        RecipeError: A question is empty, or too long for the model.
        ModelError: The tokenizer failed on a question.
    """
    prompts = [prepare_prompt(model.tokenizer, question) for question in questions]
    for prompt in prompts:
        check_prompt(model, prompt.ids, max_new_tokens)
    order = sorted(range(len(prompts)), key=lambda number: prompts[number].ids.shape[1])
    stop_ids = prompts[0].stop_ids if prompts else ()
    ends = frozenset([*(special_tokens(model.model)["eos_token_id"] or ()), *stop_ids])
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        read = [prompts[number].ids[0].tolist() for number in batch]
        place = Progress(task, start, len(order))
        completed = _complete(model, read, ends, max_new_tokens, progress, place)
        for number, question, ids in zip(batch, read, completed, strict=True):
            end = ids[-1] if ids[-1] in ends else None
            ids = ids if end is None else ids[:-1]
            with panics_as_errors():
                text = str(model.tokenizer.decode(ids, skip_special_tokens=True))
            yield number, Answer(tuple(question), tuple(ids), text, end)


def _complete(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    ends: frozenset[int],
    max_new_tokens: int,
    progress: Reporter,
    place: Progress,
) -> list[list[int]]:
    """Continue prompts, each until one of the tokens that end a text, which is included."""
    with torch.inference_mode():
        body, device = backbone(model.model), model.model.device
        accepted = inspect.signature(body.forward).parameters
        cache_name = "cache" if "cache" in accepted else "past_key_values"
        longest = max(map(len, prompts))
        padding = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
        ids = torch.tensor([[0] * (longest - len(prompt)) + [*prompt] for prompt in prompts], device=device)
        cache = transformers.DynamicCache(config=model.model.config)
        completions: list[list[int]] = [[] for _ in prompts]
        running = torch.arange(len(prompts), device=device)
        for length in range(longest, longest + max_new_tokens):
            progress(place)
            positions = torch.arange(length, device=device) - padding[:, None]
            values = {"position_ids": positions[:, -ids.shape[1] :].clamp(min=0), cache_name: cache}
            hidden = body(
                input_ids=ids,
                attention_mask=(positions >= 0).long(),
                use_cache=True,
                **{name: value for name, value in values.items() if name in accepted},
            ).last_hidden_state
            tokens = logits_of(model.model, hidden[:, -1]).argmax(dim=-1)
            for number, token in zip(running.tolist(), tokens.tolist(), strict=True):
                completions[number].append(token)
            going = [row for row, token in enumerate(tokens.tolist()) if token not in ends]
            if not going:
                break
            if len(going) < len(running):
                kept = torch.tensor(going, device=device)
                running, padding, tokens = running[kept], padding[kept], tokens[kept]
                cache.batch_select_indices(kept)
            ids = tokens[:, None]
        return completions
