"""A recipe: an ordered list of steps on a pinned base model, small and frozen.

Same recipe, same base revision → the same weights, bit for bit, on the same machine.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated

import yaml
from pydantic import AfterValidator, Field, model_validator

from pruning.architectures.shape import Shape
from pruning.errors import RecipeError
from pruning.schema import Frozen
from pruning.steps import AnyStep
from pruning.text.choice import Calibration, TextChoice
from pruning.text.passages import OWN


def _visible(value: str) -> str:
    if not value.isprintable():
        raise ValueError("a name holds no line breaks and no invisible characters; remove them")
    return value


Name = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_visible)]


class Recipe(Frozen):
    """What to cut out of which model, and how. `revision` pins the base once it was loaded."""

    base: Name
    revision: Name | None = None
    calibration: Calibration = Calibration()
    steps: Annotated[tuple[AnyStep, ...], Field(min_length=1, max_length=32)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    kept_layers: tuple[int, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, values):
        if isinstance(values, dict) and isinstance(values.get("steps"), list):
            values = values | {"steps": tuple(values["steps"])}
        return values

    def pinned(self, revision: str) -> "Recipe":
        """The same recipe on a known revision of its base."""
        return self.model_copy(update={"revision": revision})

    @property
    def texts(self) -> tuple[TextChoice, ...]:
        """Every text that the recipe reads: for calibration first, then by its steps."""
        own = (value for step in self.steps for _, value in step if isinstance(value, TextChoice))
        return (self.calibration, *own)

    def with_own_text(self, content: str) -> "Recipe":
        """The same recipe with the user's own text put back in wherever one is missing."""

        def filled(choice: object) -> object:
            missing = isinstance(choice, TextChoice) and choice.text == OWN and choice.content is None
            return choice.with_content(content) if missing else choice

        steps = tuple(
            step.model_copy(update={name: filled(value) for name, value in step}) for step in self.steps
        )
        return self.model_copy(update={"calibration": filled(self.calibration), "steps": steps})

    def check(self, shape: Shape) -> Shape:
        """Carry the recipe out on a shape alone.

        Args:
            shape: The base's shape.

        Returns:
            The shape after the last step.

        Raises:
            RecipeError: A step does not fit; its `place` says which.
        """
        previous = None
        for number, step in enumerate(self.steps):
            place = ("steps", number)
            if previous is not None and previous.must_be_last:
                raise RecipeError(
                    f"No step can follow the step {previous.step}: {previous.must_be_last}. Put it last.",
                    place,
                )
            try:
                shape = step.reshape(shape)
            except RecipeError as error:
                raise RecipeError(str(error), place) from None
            previous = step
        return shape

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that identify the recipe."""
        canonical = json.dumps(self.canonical(), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to_dict(self) -> dict:
        """Plain values, without what is not set."""
        return self.model_dump(mode="json", exclude_none=True)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def to_python(self) -> str:
        """The Python that does the same."""
        calibration = self.calibration.to_python()
        steps = "".join(f"        {step.to_python()},\n" for step in self.steps)
        revision = f"    revision={self.revision!r},\n" if self.revision else ""
        return (
            "import pruning\n\n"
            "recipe = pruning.Recipe(\n"
            f"    base={self.base!r},\n{revision}"
            f"    calibration={calibration},\n"
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
        if (place := _holds_text(values)) is not None:
            raise RecipeError(f"{place}: a recipe never holds the text itself. Remove it.")
        try:
            with located(text):
                return cls.from_json(json.dumps(values, default=str))
        except TypeError:
            raise RecipeError("The keys of a recipe are words. One of them is something else.") from None


def _holds_text(values: object, place: str = "") -> str | None:
    """Where in plain values a text itself stands, which only Python may give."""
    inside = (
        values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    )
    for key, value in inside:
        if key == "content":
            return f"{place}content"
        if (found := _holds_text(value, f"{place}{key}.")) is not None:
            return found
    return None


@contextmanager
def located(text: str) -> Iterator[None]:
    """Name the line of a written recipe in errors that know their place in it."""
    try:
        yield
    except RecipeError as error:
        line = _line(text, error.place)
        if line is None:
            raise
        raise RecipeError(f"Line {line}: {error}", error.place) from None


def _line(text: str, place: tuple[str | int, ...]) -> int | None:
    """The line, from 1 on, of the innermost part of a place that is written in a recipe."""
    if not place:
        return None
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    line = None
    for part in place:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == part), None)
            if found is None:
                # Missing: the place is where the mapping begins. The kind of a step is no key.
                line = node.start_mark.line + 1 if line is None else line
                continue
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


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
