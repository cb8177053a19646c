"""Which text a model reads: a name in a recipe, or a text of the user's own, which a recipe never holds."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from pruning.errors import RecipeError
from pruning.loading import datasets
from pruning.progress import Reporter, silent
from pruning.schema import Frozen
from pruning.text.passages import CALIBRATION_NAMES, GENERAL, GENRES, OWN, WIKITEXT, passage

MAX_TOKENS = 1_000_000


def read_text(file: Path) -> str:
    """The text of a file. Raises `RecipeError` where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise RecipeError(f"{file} cannot be read: {reason}.") from None


class TextChoice(Frozen):
    """A text by name.

    `text`: a bundled genre, `general` for their even mix, `self` for the model's own samples,
    `wikitext-2` from the Hub, or `own`. An own text is held in `content`, which is never written
    into a recipe; its digest is.
    """

    text: str = "general"
    sha256: str | None = None
    content: str | None = Field(default=None, exclude=True, repr=False)

    @classmethod
    def own(cls, content: str, **values) -> Self:
        """Choose a text of one's own."""
        return cls(text=OWN, content=content, **values)

    @classmethod
    def named(cls, name: str, **values) -> Self:
        """Choose a bundled text by its name, or a file. Raises `RecipeError` where there is neither."""
        if name in CALIBRATION_NAMES and name != OWN:
            return cls(text=name, **values)
        if not Path(name).is_file():
            raise RecipeError(
                f"There is no calibration text {name!r}: neither a file, nor one of "
                f"{', '.join(known for known in CALIBRATION_NAMES if known != OWN)}."
            )
        return cls.own(read_text(Path(name)), **values)

    @model_validator(mode="before")
    @classmethod
    def _digest(cls, values):
        if isinstance(values, dict) and isinstance(values.get("content"), str):
            values = {"text": OWN} | values
            digest = hashlib.sha256(values["content"].encode("utf-8", "replace")).hexdigest()
            if values.setdefault("sha256", digest) != digest:
                raise ValueError(
                    "this is not the text that the recipe was calibrated on: its sha256 is "
                    f"{digest[:12]}…, the recipe says {str(values['sha256'])[:12]}…"
                )
        return values

    @model_validator(mode="after")
    def _known(self):
        if self.text not in CALIBRATION_NAMES:
            raise ValueError(
                f"there is no calibration text {self.text!r}; choose one of: {', '.join(CALIBRATION_NAMES)}"
            )
        if self.text == OWN and self.sha256 is None:
            raise ValueError("an own calibration text needs its content")
        return self

    def to_python(self) -> str:
        """The expression that makes this choice; an own text stands as a file to be read."""
        written = ("sha256", "content", *(["text"] if self.text == OWN else []))
        values = [f"{name}={value!r}" for name, value in self if name not in written]
        if self.text == OWN:
            inner = ", ".join(['open("my-text.txt").read()', *values])
            return f"pruning.{type(self).__name__}.own({inner})"
        return f"pruning.{type(self).__name__}({', '.join(values)})"

    def with_content(self, content: str) -> Self:
        """The same choice with its own text put back in. Raises `RecipeError` for another text."""
        return type(self)(**self.model_dump() | {"content": content})


class Calibration(TextChoice):
    """The text that a model reads before it is cut, and how much of it.

    `window`: tokens that are read in one piece.
    """

    tokens: Annotated[int, Field(ge=256, le=MAX_TOKENS)] = 8192
    window: Annotated[int, Field(ge=16, le=8192)] = 512


def read_texts(choice: TextChoice, progress: Reporter = silent) -> Sequence[str]:
    """The texts of a choice that no model has to write, whole."""
    match choice.text:
        case name if name == GENERAL:
            return [passage(genre, "calibration") for genre in GENRES]
        case name if name in GENRES:
            return [passage(name, "calibration")]
        case name if name == WIKITEXT:
            return [datasets.wikitext(progress=progress)]
    if choice.content is None:
        raise RecipeError(
            "This recipe was calibrated on a text of the user's own (sha256 "
            f"{choice.sha256[:12]}…), which a recipe never holds. Give the same text again."
        )
    assert choice.text == OWN
    return [choice.content]
