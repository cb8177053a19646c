"""Distillation: the pruned model is trained to match the base, to recover what the cuts lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from pruning.architectures.anatomy import anatomy_of
from pruning.architectures.shape import Shape
from pruning.calibration.calibrate import HELD_OUT, LEAST_TOKENS, chat_windows, hold_out
from pruning.cost.cost import Cost, in_sequence
from pruning.cost.passes import FLOAT, Sizes
from pruning.cost.plan import Plan
from pruning.cost.reading import chat_answers, losses, self_generated, tokenizing
from pruning.distillation.checkpoint import Checkpoint
from pruning.distillation.data import TrainingTokens
from pruning.distillation.settings import HEAD_TOKENS, MAX_HELDOUT_TOKENS, Training
from pruning.errors import RecipeError
from pruning.lazy import LazyModule, torch
from pruning.loading import datasets
from pruning.loading import load as loading
from pruning.loading.load import LoadedModel
from pruning.loading.source import Access
from pruning.progress import Progress
from pruning.schema import Frozen
from pruning.steps.base import Step, StepContext, StepResult
from pruning.steps.settings import Setting, whole
from pruning.text.chat import PlainText
from pruning.text.chat_learning import learn_chat_format
from pruning.text.choice import MAX_TOKENS, TextChoice, read_texts
from pruning.text.generation import sample_text
from pruning.text.own_answers import MOST_GENERATED, are_shipped
from pruning.text.passages import CHAT, CHAT_AND_GENERAL, GENERAL, SELF_GENERATED
from pruning.text.tokens import (
    Windows,
    bos_ids,
    split_into_windows,
    token_ids,
    tokenize,
    usable_window,
)

if TYPE_CHECKING:
    from pruning.distillation import trainer
else:
    trainer = LazyModule("pruning.distillation.trainer")

DEFAULT_SAMPLES = 16_384
"""Tokens that the teacher writes if its own samples are the whole text and no number is given."""

HELDOUT_WINDOW = 512
"""Tokens in one window of held-out text, at most."""

CHAT_TOKENS = 49_152
"""The most tokens of a teacher's answers, in its chat format."""

DEFAULT_TEXT = TextChoice(text=CHAT_AND_GENERAL)
"""The teacher's answers, if it can chat, and all genres."""

_IN_WORDS = {CHAT: "chats", CHAT_AND_GENERAL: "chats and general text", GENERAL: "general text"}
"""How a sentence names texts that have a name of their own in recipes."""


def number(flag: str, text: str) -> float:
    """Read a number from the text of an option."""
    try:
        return float(text)
    except ValueError:
        raise RecipeError(f"{flag} is {text!r}; a number is needed.") from None


class HubDataset(Frozen):
    """The first tokens in a column of a dataset on the Hub, read as a stream."""

    name: str = Field(min_length=1, max_length=200, description="OWNER/NAME on the Hub")
    column: str = Field("text", description="The column that holds the text")
    subset: str | None = Field(None, description="The subset (configuration) of the dataset")
    split: str = Field("train", description="The split of the dataset")
    revision: str | None = Field(None, description="Branch, tag or commit; None for the newest")
    tokens: int = Field(
        MAX_TOKENS, ge=LEAST_TOKENS, le=100 * MAX_TOKENS, description="How many tokens are read at most"
    )


class Distillation(Training, Step):
    """Train the model to predict what its teacher predicts. By default, this is the base of the recipe.

    The last eighth of every text is held out: the student is evaluated on it, and the best weights are
    kept. A training by minutes begins with a refit of each layer in closed form, if the residual streams of both
    models compare (`pruning.repair.reconstruction`); before one by steps, that is a step of its own,
    `Reconstruction(epochs=0)`. Minutes depend on the speed of the machine, so that only a recipe with `steps`
    gives the same weights again; the report has the number of steps that were done.
    """

    title: ClassVar[str] = "Distillation"
    hint: ClassVar[str] = "Trains the smaller model to match the original, which recovers some of its quality"
    settings: ClassVar[tuple[Setting, ...]] = (
        Setting(
            "minutes",
            "--distill",
            "Minutes of distillation",
            read=number,
            activates_step=True,
            old_flags=("--distil",),
        ),
        Setting(
            "steps",
            "--distill-steps",
            "Steps of distillation, instead",
            read=whole,
            activates_step=True,
            old_flags=("--distil-steps",),
        ),
        Setting("learning_rate", "--learning-rate", "Peak learning rate of distillation", read=number),
    )

    published_defaults: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "step": {"learning_rate": 3e-4, "text": {"text": GENERAL}}
    }

    step: Literal["distillation"] = "distillation"
    teacher: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        description="Another teacher: a catalog name, a Hub id or, if the base is a folder too, a folder",
    )
    text: TextChoice = Field(DEFAULT_TEXT, description="The text to train on")
    dataset: HubDataset | None = Field(None, description="A dataset on the Hub to train on instead")
    samples: int = Field(
        0, ge=0, le=MAX_TOKENS, description="Tokens that the teacher writes itself, to train on too"
    )

    _checkpoint: Checkpoint | None = PrivateAttr(None)

    @model_serializer(mode="wrap")
    def _step_first(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"step": self.step} | plain(self)

    @field_validator("text", mode="before")
    @classmethod
    def _text_by_name(cls, value: object) -> object:
        return TextChoice(text=value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _either_text_or_dataset(self) -> Self:
        if self.dataset is not None and self.text not in (DEFAULT_TEXT, TextChoice()):
            raise ValueError("give either text or dataset to read, and not both")
        return self

    def with_checkpoint(self, file: Path, every: float = 60.0) -> Self:
        """Return the same step with a checkpoint, which belongs to a machine and is not part of a recipe.

        Args:
            file: The file to write; if it exists, the training resumes from it.
            every: Seconds between two writes.
        """
        step = self.model_copy()
        step._checkpoint = Checkpoint(file, every)
        return step

    def reshape(self, shape: Shape) -> Shape:
        """Return the same shape: distillation changes values alone."""
        return shape

    def cost(self, plan: Plan) -> Cost:
        """Estimate the text, the teacher, the steps and the evaluations; a training by minutes takes its minutes.

        A step is a forward pass of the teacher, and one forward and a backward pass (twice as much) of the
        student. See `_memory` for what is held.
        """
        student = plan.sizes
        teacher = Sizes(plan.teachers.get(self.teacher, plan.base) if self.teacher else plan.base)
        loading = Cost.holding(teacher.loaded if self.teacher else 0)
        samples = self.samples or (DEFAULT_SAMPLES if self.text.text == SELF_GENERATED else 0)
        writing = self_generated(teacher, samples) if samples else Cost()
        if self.dataset is None and self.text.text in (CHAT, CHAT_AND_GENERAL):
            writing += chat_answers(teacher, MOST_GENERATED if self.text == DEFAULT_TEXT else CHAT_TOKENS)
        splitting = tokenizing(self.text.text, self.dataset.tokens if self.dataset else samples)
        read = self.dataset.tokens if self.dataset else samples if self.text.text == SELF_GENERATED else None
        heldout = MAX_HELDOUT_TOKENS if read is None else min(MAX_HELDOUT_TOKENS, read // HELD_OUT)
        evaluation = losses(student, heldout, student.limit(HELDOUT_WINDOW))
        first = losses(teacher, heldout, teacher.limit(HELDOUT_WINDOW))
        evaluations = 2 + (0 if self.steps is None else min(self.num_evals, self.steps))
        flop = evaluations * evaluation.flop + first.flop
        if self.steps is not None:
            flop += self.steps * self._flop_of_step(student, teacher)
        trained = student.parameters - (0 if self.embeddings else student.untrained)
        peak = self._memory(student, teacher, trained, max(evaluation.memory, first.memory))
        training = Cost(flop, peak, FLOAT * trained, seconds=60 * (self.minutes or 0.0))
        return in_sequence(loading, writing, splitting, training)

    def _flop_of_step(self, student: Sizes, teacher: Sizes) -> float:
        """Count one step of the optimizer: the head's weight has a gradient only if embeddings are trained."""
        tokens, window = self.batch * self.window, self.window
        heads = (2 + self.embeddings) * student.head_flop(tokens) + teacher.head_flop(tokens)
        return 3 * student.forward_flop(tokens, window) + teacher.forward_flop(tokens, window) + heads

    def _memory(self, student: Sizes, teacher: Sizes, trained: int, evaluation: int) -> int:
        """Return the most that a training holds, in bytes.

        For each trained parameter: its copy, the two moments of AdamW after the first step, the best so far after
        the first evaluation, and either its gradient or, when the best is replaced, one copy more. For each token
        of a micro-batch what the backward pass needs. The head's logits are there for a few tokens at a time, in
        about eight arrays; a trained head adds its gradient twice.
        """
        tokens = min(self.batch, self.micro_batch_size) * self.window
        activations = student.saved_memory(tokens, self.window) + max(
            student.forward_memory(tokens, self.window), teacher.forward_memory(tokens, self.window)
        )
        if self.hidden_loss_weight:
            activations += (
                FLOAT * tokens * (student.layers * student.channels + (teacher.layers + 1) * teacher.channels)
            )
        logits = 8 * FLOAT * min(tokens, HEAD_TOKENS["cpu"]) * max(student.vocabulary, teacher.vocabulary)
        if self.embeddings:
            logits += 2 * FLOAT * student.vocabulary * student.channels
        batch = 3 * 8 * self.batch * self.window
        weights = FLOAT * trained
        steps = self.steps or 2
        backward = (5 if steps > 1 else 2) * weights + activations + logits
        return batch + max(backward, 4 * weights, (5 if steps > 1 else 4) * weights + evaluation)

    def apply(self, context: StepContext) -> StepResult:
        """Train a copy of the model.

        Raises:
            RecipeError: If the teacher lacks a token of the student, or the text is too short.
        """
        teacher = self._teacher_of(context)
        teacher_tokens = match_tokens(context, teacher)
        training = self.model_copy(update={"window": _window_of_both(context, teacher, self.window)})
        result = trainer.distill(
            context.model,
            teacher.model,
            training._training_tokens(context, teacher),
            training,
            teacher_tokens=teacher_tokens,
            origins=_layer_origins(context, teacher),
            storage_dtype=context.base.storage_dtype,
            seed=context.seed,
            progress=context.progress,
            checkpoint=self._checkpoint,
        )
        changed = frozenset(name for name, _ in result.model.named_parameters())
        return StepResult(result.model, context.tokenizer, (result.note,), changed=changed)

    def without_paths(self) -> Self:
        """Return the same step with a teacher's folder under its name alone."""
        if self.teacher is None or not Path(self.teacher).is_dir():
            return self
        return self.model_copy(update={"teacher": Path(self.teacher).resolve().name})

    def describe(self) -> str:
        """Return the length and the text in one line."""
        if self.minutes is None:
            length = f"{self.steps:,} step{'s' * (self.steps != 1)}"
        else:
            minutes = round(self.minutes, 1) or self.minutes
            length = f"{minutes:g} minute{'s' * (minutes != 1)}"
        return f"{length} of distillation on {self._name_text(_IN_WORDS)}"

    def _name_text(self, names: Mapping[str, str]) -> str:
        if self.dataset is not None:
            return self.dataset.name
        if self.text.text == SELF_GENERATED:
            return "the teacher's own samples"
        name = names.get(self.text.text, self.text.text)
        return f"{name} and the teacher's own samples" if self.samples else name

    def _teacher_of(self, context: StepContext) -> LoadedModel:
        if self.teacher is None:
            return context.base
        # The recipe may be a stranger's: only a user who named a folder as the base may read one as teacher.
        on_disk = context.base.source.hub_id is None
        return loading.load(self.teacher, access=Access(local=on_disk), progress=context.progress)

    def _training_tokens(self, context: StepContext, teacher: LoadedModel) -> TrainingTokens:
        """Read the texts as token ids, and hold out the end of each."""
        model, tokenizer = context.model, context.tokenizer
        window = _window_of_both(context, teacher, HELDOUT_WINDOW)
        chat = _chat(self.text.text if self.dataset is None else "", context, teacher)
        texts = self._texts(context, teacher) if self.text.text != CHAT else []
        streams = [token_ids(model, tokenizer, text, context.progress) for text in texts]
        if self.dataset is not None:
            streams = [streams[0][: self.dataset.tokens]]
        fitting, heldout = list(chat.fitting), list(chat.heldout)
        for tokens in streams:
            border = len(tokens) - len(tokens) // HELD_OUT
            fitting.append(tokens[:border])
            # From the end: what follows the border may still be the article that is trained on.
            share = (MAX_HELDOUT_TOKENS - sum(map(len, chat.heldout))) // len(streams)
            heldout += split_into_windows(tokenizer, tokens[border:][-share:], window)
        prefix = bos_ids(tokenizer)
        needed = max(LEAST_TOKENS, self.window)
        if (count := sum(map(len, fitting))) < needed:
            raise RecipeError(
                f"The text to train on has {count} tokens; at least {needed} are needed. Use a longer text."
            )
        return TrainingTokens(torch.cat(fitting), tuple(heldout), prefix, self._name_text({}))

    def _texts(self, context: StepContext, teacher: LoadedModel) -> list[str]:
        if self.dataset is not None:
            return [_read_dataset(self.dataset, context)]
        only_samples = self.text.text == SELF_GENERATED
        plain = TextChoice(text=GENERAL) if self.text.text == CHAT_AND_GENERAL else self.text
        texts = [] if only_samples else list(read_texts(plain, context.progress))
        if samples := self.samples or (DEFAULT_SAMPLES if only_samples else 0):
            texts.append(sample_text(teacher, samples, context.seed, context.progress))
        return texts


def _window_of_both(context: StepContext, teacher: LoadedModel, window: int) -> int:
    """Return the length of a window that both models can read, in tokens."""
    return usable_window(teacher.model, usable_window(context.model, window))


def _chat(text: str, context: StepContext, teacher: LoadedModel) -> Windows:
    """Return the teacher's answers to the bundled questions in its chat format, if a text is or includes them.

    Raises:
        RecipeError: The text is chat alone, and the teacher has no chat format.
    """
    if text not in (CHAT, CHAT_AND_GENERAL):
        return Windows((), ())
    if text == CHAT_AND_GENERAL and isinstance(learn_chat_format(teacher.tokenizer), PlainText):
        return Windows((), ())
    student, window = context.loaded, _window_of_both(context, teacher, HELDOUT_WINDOW)
    is_mixed = text == CHAT_AND_GENERAL and not are_shipped(teacher.source)
    tokens = MOST_GENERATED if is_mixed else CHAT_TOKENS
    windows = hold_out(chat_windows(student, teacher, tokens, window, context.progress))
    return replace(windows, heldout=windows.heldout[: MAX_HELDOUT_TOKENS // (2 * window)])


def _layer_origins(context: StepContext, teacher: LoadedModel) -> tuple[int, ...] | None:
    """Return the teacher's number of each layer of the student, or None if that is not known.

    If the teacher is not the recipe's base, the base may be a folder that was pruned from the teacher, and that
    recorded which layers it kept.
    """
    if teacher is context.base or context.layers is None:
        return context.layers
    kept = context.base.source.kept_layers
    if (
        kept is None
        or max(kept) >= anatomy_of(teacher.model.config).layers
        or len(kept) <= max(context.layers)
    ):
        return None
    return tuple(kept[layer] for layer in context.layers)


def _read_dataset(dataset: HubDataset, context: StepContext) -> str:
    """Read rows of a dataset until they hold the tokens asked for."""
    texts, tokens, added = [], 0, len(bos_ids(context.tokenizer))
    rows = datasets.dataset_texts(
        dataset.name,
        dataset.column,
        dataset.subset,
        dataset.split,
        dataset.revision,
        progress=context.progress,
    )
    for text in rows:
        texts.append(text)
        tokens += added + len(tokenize(context.tokenizer, text, context.progress).ids)
        context.progress(
            Progress(f"Reading {dataset.name}, tokens", min(tokens, dataset.tokens), dataset.tokens)
        )
        if tokens >= dataset.tokens:
            break
    return "\n\n".join(texts)


def match_tokens(context: StepContext, teacher: LoadedModel) -> torch.Tensor | None:
    """Return the teacher's token id for each of the student's.

    Args:
        context: The student and its tokenizer.
        teacher: The teacher and its tokenizer.

    Returns:
        `[vocabulary]` on the teacher's device, or None if both vocabularies are the same.

    Raises:
        RecipeError: If the teacher lacks a token of the student.
    """
    student_vocab: Mapping[str, int] = context.tokenizer.get_vocab()
    teacher_vocab: Mapping[str, int] = teacher.tokenizer.get_vocab()
    size = context.model.config.vocab_size
    if student_vocab == teacher_vocab and size == teacher.model.config.vocab_size:
        return None
    names = {token: name for name, token in student_vocab.items()}
    missing = next((token for token in range(size) if names.get(token) not in teacher_vocab), None)
    if missing is not None:
        raise RecipeError(
            f"The teacher {teacher.source.name} lacks token {missing} of the student, "
            f"{names.get(missing)!r}. Choose the model that the student was made from."
        )
    ids = [teacher_vocab[names[token]] for token in range(size)]
    return torch.tensor(ids, device=teacher.model.device)
