"""Vocabulary: the tokens that a text needs, and the tokenizer rebuilt without the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from pruning.architectures.config import config_from_dict
from pruning.architectures.families import TOKEN
from pruning.architectures.shape import Shape
from pruning.cost.cost import Cost, in_sequence
from pruning.cost.passes import copied
from pruning.cost.plan import Plan
from pruning.cost.reading import tokenizing
from pruning.errors import ModelError, RecipeError
from pruning.lazy import torch, transformers
from pruning.loading import load as loading
from pruning.progress import Progress, Reporter, silent
from pruning.steps.base import Step, StepContext, StepResult, check_prunable, most
from pruning.steps.settings import Choices, Setting, Slider, share, whole
from pruning.steps.sizes import MULTIPLES, Multiple, Size, exactly_one, fraction_of, kept_size
from pruning.surgery import assemble, pieces
from pruning.text.bpe import BytePairs
from pruning.text.choice import TextChoice, read_texts
from pruning.text.passages import CALIBRATION_NAMES, WRITTEN_BY_MODELS
from pruning.text.tokens import encode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_LISTS_OF_IDS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")
"""Keys of configs that hold ids of tokens, beside those that end in `_token_id`."""

BYTES_PER_ENTRY = 1_500
"""Memory of a token of the vocabulary while its tokenizer is taken apart and rebuilt."""


@dataclass(frozen=True)
class VocabularyNote:
    """The tokens of the new vocabulary.

    Attributes:
        tokens: How many there are.
        needed: How many the text needs, with those that are always kept.
        read_as_before: The share of the text's tokens that are kept.
    """

    tokens: int
    needed: int
    read_as_before: float


def _read(flag: str, text: str) -> dict[str, object]:
    """Read `20%` as a share to remove, `8192` as how many to keep, and anything else as a text."""
    if text.strip().isdecimal():
        return {"vocab_size": whole(flag, text)}
    with suppress(RecipeError):
        return {"fraction": share(flag, text)}
    return {"text": TextChoice.named(text)}


def _read_text(_flag: str, text: str) -> TextChoice:
    return TextChoice.named(text)


class Vocabulary(Step):
    """Remove tokens from the vocabulary, with their rows of the embeddings and the head.

    Give either `fraction`, a share of `vocab_size` (rows that a model has beyond its tokenizer are removed
    first), or `vocab_size`. Special tokens, those of the chat template and all single bytes are always kept,
    so that any text can still be read and written; then those that `text` uses most; then those with the
    lowest ids, which were learned first. With each token those that it is made of are kept, so that a text
    whose tokens are kept is read as before. The tokenizer is rebuilt, and ids in the configs follow.

    Byte-pair tokenizers only; `apply` raises `RecipeError` for others, and for a number that is too small.

    Example:
        >>> import pruning
        >>> pruning.Vocabulary(vocab_size=8192, text="code").describe()
        'all but 8,192 tokens of the vocabulary'
    """

    title: ClassVar[str] = "Vocabulary"
    hint: ClassVar[str] = "The tokens that the model reads and writes, each with a row of the embeddings"
    changes_vocabulary: ClassVar[bool] = True
    published_names: ClassVar[Mapping[str, str]] = {"vocab_size": "size"}
    settings: ClassVar[tuple[Setting, ...]] = (
        Setting(
            "fraction",
            "--vocabulary",
            "Tokens to cut, %",
            _read,
            Slider(lambda shape: most(shape, "vocabulary", 95), percent=True),
            activates_step=True,
            usage="A share, such as 20%, or a text whose tokens are kept, by name or file",
        ),
        Setting(
            "vocab_size",
            "--vocab-size",
            "Tokens to keep, instead",
            whole,
            activates_step=True,
            usage="A number, such as 8192",
        ),
        Setting(
            "text",
            "--vocabulary-text",
            "Text that says which tokens are used",
            _read_text,
            usage="A bundled text by name, or a text file",
        ),
        Setting("multiple_of", "--vocabulary-multiple-of", "Tokens a multiple of", whole, Choices(MULTIPLES)),
    )

    step: Literal["vocabulary"] = "vocabulary"
    fraction: Annotated[float | None, fraction_of("tokens")] = Field(
        None, description="The share of the tokens to remove: those that are used least"
    )
    vocab_size: Size | None = Field(
        None, description="The number of tokens to keep, instead of a share to remove"
    )
    multiple_of: Multiple = Field(
        1, description="Rounds the number of tokens kept up: multiples run faster on many machines"
    )
    text: TextChoice = Field(TextChoice(), description="The text that shows which tokens are used")

    @field_validator("text", mode="before")
    @classmethod
    def _name_to_choice(cls, value: object) -> object:
        return TextChoice(text=value) if isinstance(value, str) else value

    @field_validator("text")
    @classmethod
    def _check_text(cls, value: TextChoice) -> TextChoice:
        if value.text in WRITTEN_BY_MODELS:
            names = ", ".join(name for name in CALIBRATION_NAMES if name not in WRITTEN_BY_MODELS)
            raise ValueError(
                f"what a model itself writes uses a little of everything; choose a text: {names}"
            )
        return value

    @model_validator(mode="after")
    def _check_alternatives(self) -> Self:
        if not exactly_one(self.fraction, self.vocab_size):
            raise ValueError("give either fraction or vocab_size for the vocabulary, and not both")
        return self

    @classmethod
    def for_model(cls, model: str, **values: Any) -> Self:
        """Make the step; if neither a size nor a share is given, with the size that `text` needs.

        Raises:
            RecipeError: If that size is needed and the model's tokenizer cannot be read.
        """
        if values.keys() & {"vocab_size", "fraction"}:
            return cls(**values)
        open_step = cls(vocab_size=1, **values)
        try:
            source = loading.find(model)
            tokenizer = loading.read_tokenizer(source)
        except ModelError as error:
            raise RecipeError(
                "How many tokens a text needs follows from the tokenizer, which cannot be read: "
                f"{error} Or give the number of tokens to keep, such as --vocab-size 8192."
            ) from None
        try:
            generation = transformers.GenerationConfig.from_pretrained(
                source.base.folder, local_files_only=True
            ).to_dict()
        except OSError:
            generation = {}
        configs = (source.config.to_dict(), generation)
        ranked = _Ranked(tokenizer, read_texts(open_step.text), configs, Shape.of(source.config).count(TOKEN))
        return open_step.model_copy(update={"vocab_size": ranked.needed})

    def reshape(self, shape: Shape) -> Shape:
        """Return the shape with fewer tokens."""
        check_prunable(shape, "vocabulary")
        tokens = shape.count(TOKEN)
        kept = kept_size(tokens, self.fraction, self.vocab_size, self.multiple_of)
        if kept >= tokens:
            raise RecipeError(
                f"This removes none of the {tokens:,} tokens: {kept:,} would be kept. "
                "Ask for a larger fraction, a smaller vocab_size or a smaller multiple."
            )
        return shape.resized(TOKEN, kept)

    def cost(self, plan: Plan) -> Cost:
        """Estimate the tokenizer's tables, the text's tokens and the copies of the rows kept."""
        tables = Cost(memory=BYTES_PER_ENTRY * plan.sizes.vocabulary)
        copies = Cost.holding(copied(plan.shape, self.reshape(plan.shape)))
        return in_sequence(tokenizing(self.text.text, 0), copies + tables)

    def apply(self, context: StepContext) -> StepResult:
        """Choose the tokens, rebuild the tokenizer and cut the rows of the embeddings and the head."""
        context.progress(Progress("Choosing the tokens to keep"))
        shape = self.reshape(context.shape)
        size = shape.count(TOKEN)
        configs = (context.model.config.to_dict(), _generation_config(context.model).to_dict())
        texts = read_texts(self.text, context.progress)
        rows = context.shape.count(TOKEN)
        ranked = _Ranked(context.tokenizer, texts, configs, rows, context.progress)
        kept = ranked.first(size)
        context.progress(Progress("Rebuilding the tokenizer"))
        tokenizer = ranked.pairs.rebuild(kept)
        model = _cut(context.model, shape, kept, context.progress)
        note = VocabularyNote(size, ranked.needed, ranked.covered(kept))
        return StepResult(model, tokenizer, (note,), kept={TOKEN: [torch.tensor(kept)]})

    def describe(self) -> str:
        """Return how many tokens are removed."""
        if self.fraction is not None:
            return f"{100 * self.fraction:.4g} % of the vocabulary"
        return f"all but {self.vocab_size:,} tokens of the vocabulary"


class _Ranked:
    """The tokens of a model, the most useful for some texts first."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        texts: Sequence[str],
        configs: Iterable[Mapping[str, object]],
        rows: int,
        progress: Reporter = silent,
    ) -> None:
        self.pairs = BytePairs(tokenizer, rows)
        self._counts: Counter[int] = Counter()
        for text in texts:
            self._counts.update(encode(tokenizer, text, progress).tolist())
        named = {number for config in configs for number in _ids_in(config)}
        self._essential = self.pairs.essential_tokens(named)

    @property
    def needed(self) -> int:
        """How many tokens the texts need, with those that are always kept."""
        return sum(1 for _ in self.pairs.with_parts(self._essential + self._by_use(used=True)))

    def first(self, size: int) -> list[int]:
        """Return the ids of the `size` most useful tokens, ascending.

        Raises:
            RecipeError: If fewer are always kept, or more than there are.
        """
        least, most = sum(1 for _ in self.pairs.with_parts(self._essential)), len(self.pairs.ids)
        if size < least:
            raise RecipeError(
                f"{size:,} tokens are too few: special tokens, those of the chat template and single bytes, "
                f"without which texts cannot be read and written, are {least:,}. Keep at least {least:,}."
            )
        if size > most:
            raise RecipeError(
                f"{size:,} tokens cannot be kept: the tokenizer has {most:,}, and the model's other rows "
                f"stand for none. Keep at most {most:,}."
            )
        order = self.pairs.with_parts(self._essential + self._by_use())
        return sorted(self.pairs.ids[token] for token in islice(order, size))

    def covered(self, kept: Sequence[int]) -> float:
        """Return the share of the texts' tokens that are kept."""
        return sum(self._counts[number] for number in kept) / max(self._counts.total(), 1)

    def _by_use(self, used: bool = False) -> list[str]:
        tokens = [token for token, number in self.pairs.ids.items() if not used or self._counts[number]]
        return sorted(tokens, key=lambda token: (-self._counts[self.pairs.ids[token]], self.pairs.ids[token]))


def _generation_config(model: PreTrainedModel) -> transformers.GenerationConfig:
    assert model.generation_config is not None, "every model that is loaded has one"
    return model.generation_config


def _cut(base: PreTrainedModel, shape: Shape, kept: Sequence[int], progress: Reporter) -> PreTrainedModel:
    """Return the model with the rows of the tokens kept, and their new ids in its configs."""
    new_ids = {old: new for new, old in enumerate(kept)}
    config = config_from_dict(_renumber_config(shape.config.to_dict(), new_ids))
    tensors = pieces(base, shape.anatomy, {TOKEN: [torch.tensor(kept)]})
    model = assemble(base, config, tensors, progress=progress)
    generation = _generation_config(model)
    for key, value in _renumber_config(_generation_config(base).to_dict(), new_ids).items():
        if _holds_ids(key):
            setattr(generation, key, value)
    return model


def _holds_ids(key: str) -> bool:
    return key.endswith("_token_id") or key in _LISTS_OF_IDS


def _ids_in(values: object, are_ids: bool = False) -> Iterator[int]:
    """Iterate over the ids of tokens in a config's values, nested ones included."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from _ids_in(value, _holds_ids(str(key)))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _ids_in(value, are_ids)
    elif are_ids and isinstance(values, int):
        yield values


def _renumber_config(config: Mapping[str, Any], new_ids: Mapping[int, int]) -> dict[str, Any]:
    return {key: _renumber(value, new_ids, _holds_ids(str(key))) for key, value in config.items()}


def _renumber(value: object, new_ids: Mapping[int, int], are_ids: bool) -> object:
    """Return a config's value with new ids; that of a removed token becomes None, or leaves its list."""
    if isinstance(value, Mapping):
        return _renumber_config(value, new_ids)
    if isinstance(value, list | tuple) and are_ids:
        parts = [_renumber(part, new_ids, are_ids) for part in value]
        return [part for part in parts if part is not None]
    if are_ids and isinstance(value, int) and value >= 0:
        return new_ids.get(value)
    return value
