"""A recipe: an ordered list of steps on a pinned base model, small and frozen.

Same recipe, same base revision → the same weights, bit for bit, on the same machine.
"""

import hashlib
import json
from contextlib import suppress
from typing import Annotated

import yaml
from pydantic import AfterValidator, Field, model_validator

from pruning.errors import RecipeError
from pruning.schema import Frozen
from pruning.steps import AnyStep
from pruning.texts import CALIBRATION_NAMES, OWN

MAX_TOKENS = 1_000_000


def _visible(value: str) -> str:
    if not value.isprintable():
        raise ValueError("a name holds no line breaks and no invisible characters; remove them")
    return value


Name = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_visible)]


class Calibration(Frozen):
    """The text that a model reads before it is cut, and how much of it.

    `text`: a bundled genre, `general` for their even mix, `self` for the model's own samples,
    `wikitext-2` from the Hub, or `own`. An own text is held in `content`, which is never written
    into a recipe; its digest is. `window`: tokens that are read in one piece.
    """

    text: str = "general"
    tokens: Annotated[int, Field(ge=256, le=MAX_TOKENS)] = 8192
    window: Annotated[int, Field(ge=16, le=8192)] = 512
    sha256: str | None = None
    content: str | None = Field(default=None, exclude=True, repr=False)

    @classmethod
    def own(cls, content: str, **values) -> "Calibration":
        """Calibrate on a text of one's own."""
        return cls(text=OWN, content=content, **values)

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


class Recipe(Frozen):
    """What to cut out of which model, and how. `revision` pins the base once it was loaded."""

    base: Name
    revision: Name | None = None
    calibration: Calibration = Calibration()
    steps: Annotated[tuple[AnyStep, ...], Field(min_length=1, max_length=32)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, values):
        if isinstance(values, dict) and isinstance(values.get("steps"), list):
            values = values | {"steps": tuple(values["steps"])}
        return values

    def pinned(self, revision: str) -> "Recipe":
        """The same recipe on a known revision of its base."""
        return self.model_copy(update={"revision": revision})

    def with_own_text(self, content: str) -> "Recipe":
        """The same recipe with the text that it was calibrated on put back in."""
        values = self.calibration.model_dump() | {"content": content}
        return self.model_copy(update={"calibration": Calibration(**values)})

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that identify the recipe."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to_dict(self) -> dict:
        """Plain values, without what is not set."""
        return self.model_dump(mode="json", exclude_none=True)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def to_python(self) -> str:
        """The Python that does the same."""
        text = f"text={self.calibration.text!r}, " if self.calibration.text != OWN else ""
        own = 'content=open("my-text.txt").read(), ' if self.calibration.text == OWN else ""
        steps = "".join(f"        {step.to_python()},\n" for step in self.steps)
        revision = f"    revision={self.revision!r},\n" if self.revision else ""
        return (
            "import pruning\n\n"
            "recipe = pruning.Recipe(\n"
            f"    base={self.base!r},\n{revision}"
            f"    calibration=pruning.Calibration({text}{own}tokens={self.calibration.tokens}, "
            f"window={self.calibration.window}),\n"
            f"    steps=[\n{steps}    ],\n"
            f"    seed={self.seed},\n"
            ")\n"
            "pruned = pruning.run(recipe, progress=print)\n"
            'pruned.save("pruned-model")\n'
        )

    @classmethod
    def parse(cls, text: str) -> "Recipe":
        """Read a recipe from YAML or JSON. Raises `RecipeError` with the place and the fix."""
        values = _read(text)
        if not isinstance(values, dict):
            raise RecipeError("A recipe is a mapping with the keys base and steps.")
        if any(not isinstance(key, str) for key in values):
            raise RecipeError("The keys of a recipe are words: base, steps, calibration, seed.")
        calibration = values.get("calibration")
        if isinstance(calibration, dict) and "content" in calibration:
            raise RecipeError("calibration.content: a recipe never holds the text itself. Remove it.")
        try:
            return cls.from_json(json.dumps(values, default=str))
        except TypeError:
            raise RecipeError("The keys of a recipe are words. One of them is something else.") from None


def _read(text: str) -> object:
    """The plain values of a JSON or YAML text. Not every JSON is YAML: 1e-05 is a word there."""
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise RecipeError("The recipe holds aliases (*name). Write out what they stand for.")
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        where = f" in line {place.line + 1}" if place else ""
        raise RecipeError(f"The recipe is no valid YAML{where}. Mend it there.") from None
    except (ValueError, RecursionError):
        raise RecipeError("The recipe holds a value that no recipe has. Write it anew.") from None
