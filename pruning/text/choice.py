"""Which text a model reads: a name in a recipe, or the user's own text, which a recipe never holds."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from pruning.errors import RecipeError
from pruning.loading import datasets
from pruning.progress import Reporter, silent
from pruning.schema import Frozen
from pruning.text.passages import (
    CALIBRATION_NAMES,
    CHAT_AND_GENERAL,
    CUSTOM,
    GENERAL,
    GENRES,
    PUBLISHED_NAMES,
    WIKITEXT,
    passage,
)
from pruning.text.sources import HUB, AnySource, Kind, read_source
from pruning.text.sources import read_text as read_text

MAX_TOKENS = 1_000_000

MIX_TOKENS = 24_576
"""How many tokens are read of chat and general text together, by default."""


class TextChoice(Frozen):
    """A text by name. A custom text is held in `content`, which is never written into a recipe."""

    published_values: ClassVar[Mapping[str, Mapping[str, str]]] = {"text": PUBLISHED_NAMES}

    text: str = Field(
        GENERAL,
        description="A bundled genre, `general` for their even mix, `chat` for bundled questions and the model's "
        "own answers in its chat format, `chat_and_general` for both, `self_generated` for the model's own samples, "
        "`wikitext-2` from the Hub, or `custom` for the user's own text",
    )
    sha256: str | None = Field(None, description="The SHA-256 digest of a custom text, in hexadecimal digits")
    content: str | None = Field(None, exclude=True, repr=False, description="A custom text itself")

    @classmethod
    def custom(cls, content: str, **values: Any) -> Self:
        """Choose the user's own text.

        Args:
            content: The text itself.
            **values: The other fields, such as `tokens` of a `Calibration`.

        Raises:
            RecipeError: If a value is impossible, or `sha256` is the digest of another text.
        """
        return cls(text=CUSTOM, content=content, **values)

    @classmethod
    def own(cls, content: str, **values: Any) -> Self:
        """Do what `custom` does, under its name in release 0.1.0."""
        return cls.custom(content, **values)

    @classmethod
    def named(cls, name: str, **values: Any) -> Self:
        """Choose a text by its name, or a text file by its path.

        Raises:
            RecipeError: If there is neither such a text nor such a file, or the file cannot be read.
        """
        published = {old: new for new, old in PUBLISHED_NAMES.items()}
        text = published.get(name, name)
        if text in CALIBRATION_NAMES and text != CUSTOM:
            return cls(text=text, **values)
        if not Path(name).is_file():
            names = ", ".join(text for text in CALIBRATION_NAMES if text != CUSTOM)
            raise RecipeError(
                f"There is no calibration text {name!r}: it is neither a file nor one of {names}."
            )
        return cls.custom(read_text(Path(name)), **values)

    @model_validator(mode="before")
    @classmethod
    def _fill_in_digest(cls, values: object) -> object:
        if isinstance(values, dict) and isinstance(values.get("content"), str):
            values = {"text": CUSTOM} | values
            digest = _digest(values["content"])
            # Release 0.1.0 read every line end as a line feed.
            older = values["content"].replace("\r\n", "\n").replace("\r", "\n")
            if older != values["content"] and values.get("sha256") == _digest(older):
                values = {**values, "content": older}
                digest = str(values["sha256"])
            if values.setdefault("sha256", digest) != digest:
                raise ValueError(
                    "this is not the text that the recipe was calibrated on: its sha256 is "
                    f"{digest[:12]}…, the recipe has {str(values['sha256'])[:12]}…"
                )
        return values

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        if self.text not in CALIBRATION_NAMES:
            raise ValueError(
                f"there is no calibration text {self.text!r}; choose one of: {', '.join(CALIBRATION_NAMES)}"
            )
        if self.text == CUSTOM and self.sha256 is None:
            raise ValueError("a custom calibration text needs its content")
        return self

    def to_python(self) -> str:
        """Return the expression that makes this choice; a custom text is read from a file."""
        left_out = {"sha256", "content", "kind", "address", "answers"} | (
            {"text"} if self.text == CUSTOM else set()
        )
        values = [f"{name}={value!r}" for name, value in self if name not in left_out]
        if self.text == CUSTOM:
            address, kind = getattr(self, "address", None), getattr(self, "kind", "text")
            if address or kind != "text":
                arguments = ", ".join([repr(address or "my-text.jsonl"), *values])
                return f"pruning.{type(self).__name__}.of({arguments})"
            arguments = ", ".join(['open("my-text.txt").read()', *values])
            return f"pruning.{type(self).__name__}.custom({arguments})"
        return f"pruning.{type(self).__name__}({', '.join(values)})"

    def with_content(self, content: str) -> Self:
        """Return the same choice with its custom text put back in.

        Raises:
            RecipeError: If it is another text.
        """
        return type(self)(**self.model_dump() | {"content": content})


class Calibration(TextChoice):
    """The text that a model reads before it is cut, and how much of it."""

    added: ClassVar[frozenset[str]] = frozenset({"kind"})
    recorded: ClassVar[frozenset[str]] = frozenset({"address", "answers"})

    tokens: Annotated[int, Field(ge=256, le=MAX_TOKENS, description="How many tokens are read at most")] = (
        8192
    )
    window: Annotated[int, Field(ge=16, le=8192, description="How many tokens are read in one piece")] = 512

    kind: Kind = Field(
        "text",
        description="What a custom text holds: a text, conversations that are written in the model's chat format, or "
        "token ids",
    )
    address: str | None = Field(
        None,
        min_length=1,
        max_length=300,
        description="Where a custom text comes from: a file, or a dataset on the Hub",
    )
    answers: str | None = Field(
        None,
        min_length=64,
        max_length=64,
        description="The SHA-256 digest of the model's own answers to the bundled questions, in hexadecimal digits: "
        "recorded by a run that reads them",
    )

    @classmethod
    def of(cls, source: "AnyCalibration", *, progress: Reporter = silent, **values: Any) -> Self:
        """Make a calibration of whatever holds a text.

        Args:
            source: The name of a bundled text; a text file; a JSONL file or rows with `text`, `prompt` and
                `completion`, or `messages`; a dataset on the Hub as `hub:OWNER/NAME[:COLUMN]`; a list of texts;
                conversations, as lists of messages with `role` and `content`; or batches of token ids, such as a
                `DataLoader` yields.
            progress: Called while a dataset is downloaded.
            **values: The other fields: `tokens` and `window`.

        Returns:
            The calibration, with the digest of what was read.

        Raises:
            RecipeError: It is empty, or cannot be read as a text.
            ModelError: The dataset on the Hub cannot be read.

        Example:
            >>> import pruning
            >>> chat = [[{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}]]
            >>> pruning.Calibration.of(chat).kind
            'messages'
        """
        if isinstance(source, Calibration):
            return cls(**dict(source) | values)
        if isinstance(source, str) and not source.startswith(HUB) and not Path(source).is_file():
            return super().named(source, **values)
        content = read_source(source, values.get("tokens", MIX_TOKENS), progress)
        return cls.custom(content.text, kind=content.kind, address=content.address, **values)

    @classmethod
    def named(cls, name: str, **values: Any) -> Self:
        """Choose a text by its name, a file by its path, or a dataset by its address; see `of`."""
        return cls.of(name, **values)

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if self.text != CUSTOM and (self.kind != "text" or self.address is not None):
            raise ValueError("only a custom text has a kind and an address")
        if self.address is not None and not self.address.isprintable():
            raise ValueError("an address holds no line breaks and no invisible characters; remove them")
        return self

    @model_validator(mode="before")
    @classmethod
    def _read_more_of_a_mix(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("text") == CHAT_AND_GENERAL:
            return {"tokens": MIX_TOKENS} | values
        return values


AnyCalibration = Calibration | AnySource
"""What `Calibration.of` accepts."""

DEFAULT_CALIBRATION = Calibration(text=CHAT_AND_GENERAL)
"""What a new recipe reads: it keeps what the model is used for, and text of every kind."""


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode("utf-8", "replace")).hexdigest()


def read_texts(choice: TextChoice, progress: Reporter = silent) -> Sequence[str]:
    """Return the whole texts of a choice, one for each source.

    Args:
        choice: Any text but those that only a model can write: its own samples and its own answers.
        progress: Told of a download.

    Raises:
        RecipeError: If the choice is a custom text and its content is missing.
    """
    match choice.text:
        case name if name == GENERAL:
            return [passage(genre, "calibration") for genre in GENRES]
        case name if name in GENRES:
            return [passage(name, "calibration")]
        case name if name == WIKITEXT:
            return [datasets.wikitext(progress=progress)]
    if choice.content is None:
        raise RecipeError(
            f"This recipe was calibrated on the user's own text ({_described(choice)}), which a "
            "recipe never holds. Give the same text again."
        )
    assert choice.text == CUSTOM
    return [choice.content]


def _described(choice: TextChoice) -> str:
    """Say which custom text it was."""
    digest = f"sha256 {str(choice.sha256)[:12]}…"
    return f"{address}, {digest}" if (address := getattr(choice, "address", None)) else digest
