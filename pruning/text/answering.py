"""Many questions answered at the same time, greedily, as the model would answer each alone."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from pruning.errors import panics_as_errors
from pruning.progress import Progress, Reporter, silent
from pruning.text.generation import Sampling, generate_ids, report_each_token, special_tokens
from pruning.text.prompt import CausalLM, Prompt, check_prompt, prepare_prompt

BATCH = 24
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

    Questions of the same number of tokens are answered together, so that nothing is padded.

    Args:
        model: The model and its tokenizer.
        questions: The questions.
        max_new_tokens: The most tokens of an answer.
        task: What the progress says is done.
        progress: Called after every token.

    Yields:
        The number of a question, from 0, and its answer; the shortest questions first.

    Raises:
        RecipeError: A question is empty, or too long for the model.
        ModelError: The tokenizer failed on a question.
    """
    prompts = [prepare_prompt(model.tokenizer, question) for question in questions]
    lengths: dict[int, list[int]] = defaultdict(list)
    for number, prompt in enumerate(prompts):
        check_prompt(model, prompt.ids, max_new_tokens)
        lengths[prompt.ids.shape[1]].append(number)
    done = 0
    for _, numbers in sorted(lengths.items()):
        for start in range(0, len(numbers), BATCH):
            batch = numbers[start : start + BATCH]
            place = Progress(task, done, len(questions))
            progress(place)
            yield from zip(
                batch,
                _answer(model, [prompts[number] for number in batch], max_new_tokens, progress, place),
                strict=True,
            )
            done += len(batch)


def _answer(
    model: CausalLM, prompts: Sequence[Prompt], max_new_tokens: int, progress: Reporter, place: Progress
) -> Iterator[Answer]:
    stop_ids = prompts[0].stop_ids
    ends = {*(special_tokens(model.model)["eos_token_id"] or ()), *stop_ids}
    inputs = torch.cat([prompt.ids for prompt in prompts]).to(model.model.device)
    rows = generate_ids(
        model.model,
        inputs,
        Sampling(max_new_tokens),
        stop_ids=stop_ids,
        stopped=report_each_token(progress, place),
    )
    for row in rows.tolist():
        prompt, ids = row[: inputs.shape[1]], row[inputs.shape[1] :]
        end = next((place for place, token in enumerate(ids) if token in ends), None)
        kept = ids[:end]
        with panics_as_errors():
            text = model.tokenizer.decode(kept, skip_special_tokens=True)
        yield Answer(tuple(prompt), tuple(kept), text, None if end is None else ids[end])
