"""A recipe: an ordered list of steps on a pinned base model, small and frozen.

Same recipe, same base revision → the same weights, bit for bit, on the same machine.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import yaml
from pydantic import AfterValidator, Field, model_validator

from pruning.architectures.shape import Shape
from pruning.catalog import name_from_address
from pruning.errors import RecipeError, SavingError
from pruning.files import replacing
from pruning.schema import Frozen
from pruning.steps import STEPS, AnyStep, Layers
from pruning.text.choice import DEFAULT_CALIBRATION, Calibration, TextChoice, read_text
from pruning.text.passages import CUSTOM

FORMAT = 2
"""The format of the recipes that are written: from 2 on, chat and general text is the default to calibrate on."""

MAX_STEPS = 32
MAX_LAYERS = 4096


def _check_visible(value: str) -> str:
    if not value.isprintable():
        raise ValueError("a name holds no line breaks and no invisible characters; remove them")
    return value


Name = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_check_visible)]


class Recipe(Frozen):
    """What to prune in which model, and how.

    Example:
        >>> import pruning
        >>> recipe = pruning.Recipe(base="smollm2-135m", steps=[pruning.Neurons(fraction=0.2)])
        >>> pruning.Recipe.parse(recipe.to_yaml()) == recipe
        True
    """

    recorded: ClassVar[frozenset[str]] = frozenset({"kept_layers", "removed"})

    base: Name = Field(description="A name of the catalog, the id of a model on the Hub, or a folder")
    revision: Name | None = Field(
        None, description="The revision of the base; a run pins it to the one that it loaded"
    )
    calibration: Calibration = Field(
        DEFAULT_CALIBRATION, description="The text that the model reads before a cut"
    )
    steps: Annotated[tuple[AnyStep, ...], Field(min_length=1, max_length=MAX_STEPS)] = Field(
        description="What to do, in this order"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="The seed of all that is random")
    kept_layers: (
        Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1, max_length=MAX_LAYERS)] | None
    ) = Field(
        None,
        description="The base's number of each layer of the result, from 0 on: recorded by a run that "
        "removed layers, and never read by one",
    )
    removed: (
        Annotated[tuple[Annotated[str, Field(max_length=100_000)], ...], Field(max_length=3 * MAX_LAYERS)]
        | None
    ) = Field(
        None,
        description="The layers, heads and channels of the base that are not in a saved model, in words: recorded "
        "when it is saved, and never read",
    )

    @model_validator(mode="before")
    @classmethod
    def _plain_values(cls, values: object) -> object:
        if isinstance(values, dict):
            if isinstance(base := values.get("base"), os.PathLike):
                values = values | {"base": os.fspath(base)}
            elif isinstance(base, str):
                values = values | {"base": name_from_address(base)}
            lists = {name: values.get(name) for name in ("steps", "kept_layers", "removed")}
            values = values | {name: tuple(part) for name, part in lists.items() if isinstance(part, list)}
        return values

    def pinned(self, revision: str | None) -> Self:
        """Return the same recipe on a known revision of its base."""
        return self.model_copy(update={"revision": revision})

    @property
    def texts(self) -> tuple[TextChoice, ...]:
        """Every text that the recipe reads: first the calibration text, then those of its steps."""
        of_steps = (value for step in self.steps for _, value in step if isinstance(value, TextChoice))
        return (self.calibration, *of_steps)

    def with_custom_text(self, content: str) -> Self:
        """Return the same recipe with the user's own text put back in wherever it is missing.

        Raises:
            RecipeError: If it is not the text that the recipe was made with.
        """

        def fill_in(choice: TextChoice) -> TextChoice:
            missing = choice.text == CUSTOM and choice.content is None
            return choice.with_content(content) if missing else choice

        return self._with_texts(fill_in)

    def without_custom_text(self) -> Self:
        """Return the same recipe without the user's own text, of which the digest remains."""
        return self._with_texts(lambda choice: choice.model_copy(update={"content": None}))

    def _with_texts(self, change: Callable[[TextChoice], TextChoice]) -> Self:
        def changed(value: object) -> object:
            return change(value) if isinstance(value, TextChoice) else value

        steps = tuple(
            step.model_copy(update={name: changed(value) for name, value in step}) for step in self.steps
        )
        return self.model_copy(update={"calibration": changed(self.calibration), "steps": steps})

    def with_answers(self, digest: str | None) -> Self:
        """Return the recipe with the digest of the model's own answers that it was calibrated on, if it was."""
        if digest is None:
            return self
        return self.model_copy(
            update={"calibration": self.calibration.model_copy(update={"answers": digest})}
        )

    def with_own_text(self, content: str) -> Self:
        """Do what `with_custom_text` does, under its name in release 0.1.0."""
        return self.with_custom_text(content)

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
        """Sixteen hexadecimal digits that identify the recipe to people: the beginning of its `sha256`."""
        return self.sha256[:16]

    @property
    def sha256(self) -> str:
        """The SHA-256 of the recipe's canonical form in JSON, in hexadecimal digits."""
        canonical = json.dumps(self.canonical(), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, without those that are not set, and the format that says which defaults are meant."""
        return {"format": FORMAT, **self.model_dump(mode="json", exclude_none=True)}

    def to_yaml(self) -> str:
        """Return the recipe as YAML, which `parse` reads."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def to_python(self) -> str:
        """Return Python code that carries the recipe out."""
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

    def save(self, path: str | Path) -> Path:
        """Write the recipe to a file, as JSON if its name ends in `.json` and as YAML otherwise.

        Raises:
            SavingError: If the file cannot be written. A file that was there before is then unchanged.
        """
        file = Path(path)
        is_json = file.suffix.lower() == ".json"
        text = json.dumps(self.to_dict(), ensure_ascii=False, indent=2) + "\n" if is_json else self.to_yaml()
        try:
            with replacing(file) as temporary:
                temporary.write_text(text, encoding="utf-8")
        except OSError as error:
            raise SavingError(f"The recipe cannot be written to {file}: {error.strerror or error}.") from None
        return file

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a recipe from a YAML or JSON file.

        Raises:
            RecipeError: If the file cannot be read or is not a valid recipe, with the place and the fix.
        """
        return cls.parse(read_text(Path(path)))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a recipe from YAML or JSON.

        Raises:
            RecipeError: If it is not a valid recipe, with the place and the fix.
        """
        values = _read(text)
        if not isinstance(values, dict):
            raise RecipeError("A recipe is a mapping with the keys base and steps.")
        if any(not isinstance(key, str) for key in values):
            raise RecipeError("The keys of a recipe are words: base, steps, calibration, seed.")
        if (place := _place_of_content(values)) is not None:
            raise RecipeError(f"{place}: a recipe never holds the text itself. Remove it.")
        values = _in_todays_format(values)
        try:
            with located(text):
                return cls.from_json(json.dumps(values, default=str))
        except TypeError:
            raise RecipeError("The keys of a recipe are words; one of them is not.") from None


def removed_layers(steps: Iterable[AnyStep], total: int) -> frozenset[int] | None:
    """Return which layers of a base some steps remove, before any text is read.

    Args:
        steps: The steps.
        total: The number of the base's layers.

    Returns:
        The base's numbers of the layers, from 0 on; None if a step chooses layers by text.
    """
    kept = list(range(total))
    for step in steps:
        if isinstance(step, Layers):
            places = step.named_layers(len(kept))
            if places is None:
                return None
            kept = [layer for place, layer in enumerate(kept) if place not in places]
    return frozenset(range(total)).difference(kept)


def _in_todays_format(values: dict[str, Any]) -> dict[str, Any]:
    """Return the plain values of a written recipe with today's defaults for what it leaves out.

    A recipe without a format is of release 0.1.0: what it leaves out has the value that was the default then.

    Raises:
        RecipeError: The format is not known.
    """
    format, rest = (
        values.get("format", 1),
        {name: value for name, value in values.items() if name != "format"},
    )
    if type(format) is not int or not 1 <= format <= FORMAT:
        raise RecipeError(
            f"format: it is {str(format)[:40]!r}; this version reads recipes of the formats 1 to {FORMAT}. "
            "Update Secateur, or correct the number."
        )
    if format > 1:
        return rest
    steps = rest.get("steps")
    if isinstance(steps, list):
        rest = rest | {"steps": [_with_published_defaults(step) for step in steps]}
    return {"calibration": {}} | rest


def _with_published_defaults(step: object) -> object:
    """Return the plain values of a step of release 0.1.0 with what it then meant by what it leaves out."""
    if not isinstance(step, dict) or (kind := STEPS.get(str(step.get("step")))) is None:
        return step
    defaults = [values for field, values in kind.published_defaults.items() if step.get(field) is not None]
    return {name: value for values in defaults for name, value in values.items()} | step


def _place_of_content(values: object, outer: str = "") -> str | None:
    """Find a text itself in plain values, which only Python may give."""
    if isinstance(values, dict):
        parts = list(values.items())
    elif isinstance(values, list):
        parts = list(enumerate(values))
    else:
        return None
    for key, value in parts:
        if key == "content":
            return f"{outer}content"
        if (place := _place_of_content(value, f"{outer}{key}.")) is not None:
            return place
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
    """Return the line, from 1 on, of the innermost part of a place that is written in a recipe."""
    if not place:
        return None
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    line = None
    for part in place:
        if isinstance(node, yaml.MappingNode):
            entry = next(((key, value) for key, value in node.value if key.value == part), None)
            if entry is None:
                # Missing: the place is where the mapping begins. The kind of a step is not a key.
                line = node.start_mark.line + 1 if line is None else line
                continue
            line, node = entry[0].start_mark.line + 1, entry[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


def _read(text: str) -> object:
    """Return the plain values of a JSON or YAML text. Not every JSON is YAML: 1e-05 is a word there."""
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise RecipeError("The recipe holds aliases (*name). Write out what they stand for.")
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" on line {mark.line + 1}" if mark else ""
        raise RecipeError(f"Invalid YAML{line}.") from None
    except (ValueError, RecursionError):
        raise RecipeError("The recipe holds a value that cannot be read. Write it in another way.") from None
