"""Distillation: what the cuts lost, learnt again from the dense model."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, PrivateAttr, field_validator, model_serializer, model_validator
from transformers import PreTrainedTokenizerBase

from pruning.architectures.shape import Shape
from pruning.calibration.calibrate import HELD_OUT, LEAST_TOKENS
from pruning.distillation.checkpoint import Checkpoint
from pruning.distillation.data import TrainingTokens
from pruning.distillation.settings import Training
from pruning.distillation.trainer import HELD_OUT_TOKENS, distill
from pruning.errors import RecipeError
from pruning.loading import datasets
from pruning.loading import load as loading
from pruning.loading.load import LoadedModel
from pruning.loading.source import Access
from pruning.progress import Progress
from pruning.schema import Frozen
from pruning.steps.base import Step, StepContext, StepResult
from pruning.steps.settings import Setting, whole
from pruning.text.choice import MAX_TOKENS, TextChoice, read_texts
from pruning.text.generation import sample_text
from pruning.text.passages import SELF_GENERATED
from pruning.text.tokens import split_into_windows, token_ids, usable_window

SAMPLES = 16_384
"""Tokens that the teacher writes where its own samples are the text and nothing says how many."""

HELD_OUT_WINDOW = 512


def number(flag: str, text: str) -> float:
    """A number."""
    try:
        return float(text)
    except ValueError:
        raise RecipeError(f"{flag} is {text!r}; a number is needed.") from None


def settings_from(dataset: str | None, words: Sequence[str]) -> dict[str, object]:
    """`owner/name:column` and `NAME=VALUE` as fields of a distillation."""
    fields: dict[str, object] = {}
    if dataset is not None:
        name, _, column = dataset.partition(":")
        fields["dataset"] = HubText(name=name, column=column or "text")
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise RecipeError(f"--set is {word!r}; NAME=VALUE is needed, such as batch=8.")
        fields[name] = value
        with suppress(ValueError):  # A word stays a word.
            fields[name] = json.loads(value)
    return fields


class HubText(Frozen):
    """The first `tokens` tokens in a column of a dataset on the Hub, read as a stream."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    column: str = "text"
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    tokens: Annotated[int, Field(ge=LEAST_TOKENS, le=100 * MAX_TOKENS)] = MAX_TOKENS


class Distillation(Training, Step):
    """Train the model to say what its teacher says, which is the dense model that the recipe began with.

    `teacher`: another one, by catalogue name, Hub id or, where the base is a folder too, folder. `text`:
    what is read, all of it but the last eighth of each text, which is held out to measure on and to choose
    the best; `dataset`: a column of a dataset on the Hub instead; `samples`: tokens that the teacher writes
    itself, read as well. With `minutes` the weights depend on how fast the machine is, so that only a
    recipe with `steps` gives the same ones again; the report says how many steps were done.
    """

    title: ClassVar[str] = "Distillation"
    hint: ClassVar[str] = "The dense model teaches the smaller one what the cuts took away"
    settings: ClassVar[tuple[Setting, ...]] = (
        Setting("minutes", "--distil", "Minutes of distillation", read=number, activates_step=True),
        Setting("steps", "--distil-steps", "Steps of distillation, instead", read=whole, activates_step=True),
        Setting("learning_rate", "--learning-rate", "Highest learning rate of distillation", read=number),
    )

    step: Literal["distillation"] = "distillation"
    teacher: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    text: TextChoice = TextChoice()
    dataset: HubText | None = None
    samples: Annotated[int, Field(ge=0, le=MAX_TOKENS)] = 0

    _checkpoint: Checkpoint | None = PrivateAttr(None)

    @model_serializer(mode="wrap")
    def _named_first(self, plain):
        return {"step": self.step} | plain(self)

    @field_validator("text", mode="before")
    @classmethod
    def _by_name(cls, value):
        return TextChoice(text=value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_text(self):
        if self.dataset is not None and self.text != TextChoice():
            raise ValueError("give either text or dataset to read, and not both")
        return self

    def keeping(self, file: Path, every: float = 60.0) -> Self:
        """The same step, which writes a checkpoint every so many seconds and goes on from one. It belongs
        to a machine, so no recipe holds it."""
        step = self.model_copy()
        step._checkpoint = Checkpoint(file, every)
        return step

    def reshape(self, shape: Shape) -> Shape:
        return shape

    def apply(self, context: StepContext) -> StepResult:
        teacher = self._teacher_of(context)
        tokens = teachers_tokens(context, teacher)
        result = distill(
            context.model,
            teacher.model,
            self._reading(context, teacher),
            self,
            tokens=tokens,
            storage_dtype=context.base.storage_dtype,
            seed=context.seed,
            progress=context.progress,
            checkpoint=self._checkpoint,
        )
        return StepResult(result.model, context.tokenizer, (result.notes,))

    def without_paths(self) -> Self:
        if self.teacher is None or not Path(self.teacher).is_dir():
            return self
        return self.model_copy(update={"teacher": Path(self.teacher).resolve().name})

    def describe(self) -> str:
        long = f"{self.minutes:g} minutes" if self.steps is None else f"{self.steps:,} steps"
        return f"{long} of distillation on {self._text_name}"

    @property
    def _text_name(self) -> str:
        if self.dataset is not None:
            return self.dataset.name
        own = self.text.text == SELF_GENERATED or self.samples
        return f"{self.text.text} and the teacher's own samples" if own else self.text.text

    def _teacher_of(self, context: StepContext) -> LoadedModel:
        if self.teacher is None:
            return context.base
        # Only who may name a folder as the base may name one as the teacher: a recipe may be a stranger's.
        on_disk = context.base.source.hub_id is None
        return loading.load(self.teacher, access=Access(local=on_disk), progress=context.progress)

    def _reading(self, context: StepContext, teacher: LoadedModel) -> TrainingTokens:
        model, tokenizer = context.model, context.tokenizer
        streams = [token_ids(model, tokenizer, text) for text in self._texts(context, teacher)]
        if self.dataset is not None:
            streams = [streams[0][: self.dataset.tokens]]
        window = usable_window(model, HELD_OUT_WINDOW)
        fitting, heldout = [], []
        for tokens in streams:
            border = len(tokens) - len(tokens) // HELD_OUT
            fitting.append(tokens[:border])
            # From the end: what follows the border may still be the article that is trained on.
            share = HELD_OUT_TOKENS // len(streams)
            heldout += split_into_windows(tokenizer, tokens[border:][-share:], window)
        prefix = torch.tensor(tokenizer("", verbose=False).input_ids, dtype=torch.long)
        least = max(LEAST_TOKENS, self.window)
        if (there := sum(map(len, fitting))) < least:
            raise RecipeError(
                f"The text to train on has {there} tokens; at least {least} are needed. Use a longer text."
            )
        return TrainingTokens(torch.cat(fitting), tuple(heldout), prefix, self._text_name)

    def _texts(self, context: StepContext, teacher: LoadedModel) -> list[str]:
        if self.dataset is not None:
            return [self._streamed(context)]
        alone = self.text.text == SELF_GENERATED
        texts = [] if alone else list(read_texts(self.text, context.progress))
        samples = self.samples or (SAMPLES if alone else 0)
        return texts + ([sample_text(teacher, samples, context.seed, context.progress)] if samples else [])

    def _streamed(self, context: StepContext) -> str:
        wanted, texts, tokens = self.dataset, [], 0
        rows = datasets.dataset_texts(
            wanted.name, wanted.column, wanted.subset, wanted.split, wanted.revision
        )
        for text in rows:
            texts.append(text)
            tokens += len(context.tokenizer(text, verbose=False).input_ids)
            context.progress(
                Progress(f"Reading {wanted.name}, tokens", min(tokens, wanted.tokens), wanted.tokens)
            )
            if tokens >= wanted.tokens:
                break
        return "\n\n".join(texts)


def teachers_tokens(context: StepContext, teacher: LoadedModel) -> torch.Tensor | None:
    """The teacher's token for each of the student's, `[vocabulary]`; None where they are the same.

    Raises `RecipeError` where the teacher does not know a token of the student's.
    """
    ours: PreTrainedTokenizerBase = context.tokenizer
    known, theirs = ours.get_vocab(), teacher.tokenizer.get_vocab()
    size = context.model.config.vocab_size
    if known == theirs and size == teacher.model.config.vocab_size:
        return None
    names = {token: name for name, token in known.items()}
    strange = next((token for token in range(size) if names.get(token) not in theirs), None)
    if strange is not None:
        raise RecipeError(
            f"The teacher {teacher.source.name} does not know token {strange} of the student, "
            f"{names.get(strange)!r}. Choose the model that the student was made from."
        )
    return torch.tensor([theirs[names[token]] for token in range(size)], device=teacher.model.device)
