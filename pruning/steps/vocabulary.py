"""Vocabulary: the tokens that a text needs, the tokenizer made again without the others."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import ClassVar, Literal

import torch
from pydantic import field_validator, model_validator
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from pruning.architectures.config import config_from_dict
from pruning.architectures.families import TOKEN
from pruning.architectures.shape import Shape
from pruning.errors import ModelError, RecipeError
from pruning.loading import load as loading
from pruning.progress import Progress
from pruning.steps.base import Step, StepContext, StepResult
from pruning.steps.settings import Choices, Setting, Slider, share, whole
from pruning.steps.sizes import MULTIPLES, Multiple, Width, share_of
from pruning.surgery import assemble, pieces
from pruning.text.bpe import BytePairs
from pruning.text.choice import TextChoice, read_texts
from pruning.text.passages import CALIBRATION_NAMES, SELF

_LISTS_OF_IDS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")
"""Keys of configs that hold ids of tokens, beside those that end in `_token_id`."""


def _read(flag: str, text: str) -> dict:
    """`20%` as a share to cut; `8192` as how many to keep; otherwise the text to keep readable."""
    if text.strip().isdecimal():
        return {"size": whole(flag, text)}
    with suppress(RecipeError):
        return {"fraction": share(flag, text)}
    return {"text": TextChoice.named(text)}


def _read_text(flag: str, text: str) -> TextChoice:
    return TextChoice.named(text)


class Vocabulary(Step):
    """Cut tokens out of the vocabulary, with their rows of the embeddings and the head.

    Give either `size`, the number of tokens to keep, or `fraction`, the share to remove (of
    `vocab_size`; what a model has beyond its tokenizer goes first). `multiple_of` rounds the number up.
    Special tokens, those of what the chat template writes and all single bytes stay, so that any text can
    still be read and written; then those that `text` uses most; then those with the lowest ids, which
    were learnt first. With each token stay those that it is made of, so a text whose tokens stay is read
    as before. The tokenizer is made again, and ids in the configs follow.

    Byte-pair tokenizers only; `apply` raises `RecipeError` for others, and for a number that is too small.
    """

    title: ClassVar[str] = "Vocabulary"
    hint: ClassVar[str] = "The tokens that the model reads and writes, each with a row of the embeddings"
    changes_vocabulary: ClassVar[bool] = True
    settings: ClassVar[tuple[Setting, ...]] = (
        Setting(
            "fraction",
            "--vocabulary",
            "Tokens to cut, %",
            "Those that are used least; in the shell also how many to keep, or a text to keep readable",
            _read,
            Slider(lambda shape: 95, percent=True),
            activates_step=True,
        ),
        Setting("text", "--vocabulary-text", "Text that says which tokens are used", read=_read_text),
        Setting(
            "multiple_of",
            "--vocabulary-multiple-of",
            "Tokens a multiple of",
            "Multiples run faster on many machines; more tokens are kept",
            whole,
            Choices(MULTIPLES),
        ),
    )

    step: Literal["vocabulary"] = "vocabulary"
    fraction: share_of("tokens") | None = None
    size: Width | None = None
    multiple_of: Multiple = 1
    text: TextChoice = TextChoice()

    @field_validator("text", mode="before")
    @classmethod
    def _by_name(cls, value):
        return TextChoice(text=value) if isinstance(value, str) else value

    @field_validator("text")
    @classmethod
    def _written(cls, value: TextChoice) -> TextChoice:
        if value.text == SELF:
            names = ", ".join(name for name in CALIBRATION_NAMES if name != SELF)
            raise ValueError(f"the model's own samples use a little of everything; choose a text: {names}")
        return value

    @model_validator(mode="after")
    def _one_size(self):
        if (self.fraction is None) == (self.size is None):
            raise ValueError("give either fraction or size for the vocabulary, and not both")
        return self

    @classmethod
    def for_model(cls, model: str, **values) -> "Vocabulary":
        """Without a size or a fraction: the size that `text` needs, as the model's tokenizer says."""
        if values.keys() & {"size", "fraction"}:
            return cls(**values)
        open_step = cls(size=1, **values)
        try:
            source = loading.find(model)
            tokenizer = loading.read_tokenizer(source)
        except ModelError as error:
            raise RecipeError(
                "How many tokens a text needs is for the tokenizer to say, and that cannot be read: "
                f"{error} Or say how many tokens to keep, such as --vocabulary 8192."
            ) from None
        try:
            generation = GenerationConfig.from_pretrained(source.folder, local_files_only=True).to_dict()
        except OSError:
            generation = {}
        ranked = _Ranked(tokenizer, read_texts(open_step.text), (source.config.to_dict(), generation))
        return open_step.model_copy(update={"size": ranked.needed})

    def reshape(self, shape: Shape) -> Shape:
        there = shape.count(TOKEN)
        kept = there - int(self.fraction * there) if self.size is None else self.size
        kept = -(-kept // self.multiple_of) * self.multiple_of
        if kept >= there:
            raise RecipeError(
                f"This removes none of the {there:,} tokens: {kept:,} would be kept. "
                "Ask for a larger fraction, a smaller size or a smaller multiple."
            )
        return shape.resized(TOKEN, kept)

    def apply(self, context: StepContext) -> StepResult:
        context.progress(Progress("Choosing the tokens that stay"))
        shape = self.reshape(context.shape)
        size = shape.count(TOKEN)
        configs = (context.model.config.to_dict(), context.model.generation_config.to_dict())
        ranked = _Ranked(context.tokenizer, read_texts(self.text, context.progress), configs)
        kept = ranked.first(size)
        context.progress(Progress("Making the tokenizer again"))
        tokenizer = ranked.pairs.rebuild(kept)
        model = _cut(context.model, shape, kept)
        notes = {"tokens": size, "needed": ranked.needed, "read_as_before": ranked.covered(kept)}
        return StepResult(model, tokenizer, (notes,))

    def describe(self) -> str:
        what = f"{100 * self.fraction:.4g} %" if self.fraction else f"all but {self.size:,} tokens"
        return f"{what} of the vocabulary"


class _Ranked:
    """The tokens of a model, the most useful for some texts first."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], configs: Iterable[Mapping]):
        self.pairs = BytePairs(tokenizer)
        self._counts: Counter[int] = Counter()
        for text in texts:
            self._counts.update(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
        named = {number for config in configs for number in _ids_in(config)}
        self._essential = self.pairs.essential_tokens(named)

    @property
    def needed(self) -> int:
        """How many tokens the texts need, with what must stay in any case."""
        return sum(1 for _ in self.pairs.with_parts(self._essential + self._by_use(used=True)))

    def first(self, size: int) -> list[int]:
        """The ids of the first so many, ascending. Raises `RecipeError` where they cannot be had."""
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
        """The share of the texts' tokens that are kept."""
        return sum(self._counts[number] for number in kept) / max(self._counts.total(), 1)

    def _by_use(self, used: bool = False) -> list[str]:
        tokens = [token for token, number in self.pairs.ids.items() if not used or self._counts[number]]
        return sorted(tokens, key=lambda token: (-self._counts[self.pairs.ids[token]], self.pairs.ids[token]))


def _cut(base: PreTrainedModel, shape: Shape, kept: Sequence[int]) -> PreTrainedModel:
    """The model with the rows of the tokens kept, and configs that know their new ids."""
    number = {old: new for new, old in enumerate(kept)}
    config = config_from_dict(_renumbered(shape.config.to_dict(), number))
    model = assemble(base, config, pieces(base, shape.anatomy, {TOKEN: [torch.tensor(kept)]}))
    for key, value in _renumbered(base.generation_config.to_dict(), number).items():
        if _holds_ids(key):
            setattr(model.generation_config, key, value)
    return model


def _holds_ids(key: str) -> bool:
    return key.endswith("_token_id") or key in _LISTS_OF_IDS


def _ids_in(values: object, counted: bool = False) -> Iterator[int]:
    """The ids of tokens that a config names, in those inside of it too."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from _ids_in(value, _holds_ids(str(key)))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _ids_in(value, counted)
    elif counted and isinstance(values, int):
        yield values


def _renumbered(values: object, number: Mapping[int, int], counted: bool = False) -> object:
    """A config's values with new ids; one that stands for no token becomes None, or leaves its list."""
    if isinstance(values, Mapping):
        return {key: _renumbered(value, number, _holds_ids(str(key))) for key, value in values.items()}
    if isinstance(values, list | tuple) and counted:
        new = [_renumbered(value, number, counted) for value in values]
        return [value for value in new if value is not None]
    if counted and isinstance(values, int) and values >= 0:
        return number.get(values)
    return values
