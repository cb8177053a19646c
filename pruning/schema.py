"""Strict, frozen values whose errors explain themselves, and whose published names are read indefinitely."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, InitErrorDetails, core_schema

from pruning.errors import RecipeError

if TYPE_CHECKING:  # Pydantic's metaclass has no public name.
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)


class _Explaining(ModelMetaclass):
    # Not in __init__, which pydantic also calls for nested values: they would not know their place.
    def __call__(cls, *args: object, **values: object) -> object:  # noqa: N805 - a metaclass
        try:
            return super().__call__(*args, **values)
        except ValidationError as error:
            raise _explain(error) from None


class Frozen(BaseModel, metaclass=_Explaining):
    """Raise `RecipeError` where pydantic would raise `ValidationError`.

    Attributes:
        published_names: For each renamed field the key that release 0.1.0 published.
        published_values: For each field with renamed values, the published value of each new one.
        published_defaults: For a field that is given, what release 0.1.0 meant by other fields that are left out.
        added: Fields that did not exist in 0.1.0; at their default they are not part of `canonical`.
        recorded: Fields that record what a run did, and ask for nothing; never part of `canonical`.

    Published keys and values are accepted wherever the new ones are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    published_names: ClassVar[Mapping[str, str]] = {}
    published_values: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    published_defaults: ClassVar[Mapping[str, Mapping[str, object]]] = {}
    added: ClassVar[frozenset[str]] = frozenset()
    recorded: ClassVar[frozenset[str]] = frozenset()
    _implied: ClassVar[frozenset[str]] = frozenset()
    """Fields that the name of the class implies."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        # Around the whole schema, so that every validator of every subclass sees the new names alone.
        return core_schema.no_info_wrap_validator_function(cls._validate, handler(source))

    @classmethod
    def _validate(cls, values: object, validate: Callable[[object], Self]) -> Self:
        if not isinstance(values, dict):
            return validate(values)
        written = {new: old for new, old in _published_names(cls).items() if old in values}
        if not written and not _published_values(cls):
            return validate(values)
        try:
            return validate(_renamed(cls, values, written))
        except ValidationError as error:
            if not any(line["loc"] and line["loc"][0] in written for line in error.errors()):
                raise
            raise _with_keys_as_written(error, written) from None

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read values as strictly as they are written.

        Raises:
            RecipeError: If a value is missing, unknown or impossible.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise _explain(error) from None

    def to_python(self) -> str:
        """Return the expression that makes this value."""
        arguments = ", ".join(
            f"{name}={value.to_python() if isinstance(value, Frozen) else repr(value)}"
            for name, value in self
            if value is not None and name not in self._implied
        )
        return f"pruning.{type(self).__name__}({arguments})"

    def canonical(self) -> dict[str, Any]:
        """Return plain values under the keys and values of release 0.1.0, from which digests are computed."""
        names, values = _published_names(type(self)), _published_values(type(self))
        recorded, added = _merged(type(self), "recorded"), _merged(type(self), "added")
        plain = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if field.exclude or name in recorded or (name in added and value == field.get_default()):
                continue
            plain[names.get(name, name)] = _canonical(value, values.get(name, {}))
        return plain


def _canonical(value: object, published: Mapping[str, str]) -> object:
    match value:
        case Frozen():
            return value.canonical()
        case tuple():
            return [_canonical(part, published) for part in value]
        case str():
            return published.get(value, value)
    return value


@cache
def _published_names(cls: type[Frozen]) -> Mapping[str, str]:
    return {
        new: old
        for base in reversed(cls.__mro__)
        for new, old in vars(base).get("published_names", {}).items()
    }


@cache
def _published_values(cls: type[Frozen]) -> Mapping[str, Mapping[str, str]]:
    return {
        field: values
        for base in reversed(cls.__mro__)
        for field, values in vars(base).get("published_values", {}).items()
    }


@cache
def _merged(cls: type[Frozen], name: str) -> frozenset[str]:
    """Collect the names in a class variable of a class and of all that it inherits from."""
    return frozenset().union(*(vars(base).get(name, ()) for base in cls.__mro__))


def _renamed(
    cls: type[Frozen], values: Mapping[str, object], written: Mapping[str, str]
) -> dict[str, object]:
    """Values under the fields' own names. `written`: for each field its published key, if that is given."""
    twice = next((new for new in written if new in values), None)
    if twice is not None:
        problem = ValueError(f"this is the former name of {twice}, which is given too; remove one of the two")
        line = InitErrorDetails(
            type="value_error", loc=(written[twice],), input=values[written[twice]], ctx={"error": problem}
        )
        raise ValidationError.from_exception_data(cls.__name__, [line])
    fields = {old: new for new, old in written.items()}
    renamed = {fields.get(key, key): value for key, value in values.items()}
    for field, published in _published_values(cls).items():
        value = renamed.get(field)
        if isinstance(value, str):
            renamed[field] = next((new for new, old in published.items() if old == value), value)
    return renamed


def _with_keys_as_written(error: ValidationError, written: Mapping[str, str]) -> ValidationError:
    """Move an error to the keys that the user wrote."""
    lines = [
        InitErrorDetails(
            type=line["type"],
            loc=(written.get(str(line["loc"][0]), line["loc"][0]), *line["loc"][1:]) if line["loc"] else (),
            input=line["input"],
            ctx=line.get("ctx", {}),
        )
        for line in error.errors()
    ]
    return ValidationError.from_exception_data(error.title, lines)


_MESSAGES = {
    "extra_forbidden": "there is no such setting; remove it",
    "union_tag_not_found": "say which step it is, for example step: neurons",
    "union_tag_invalid": "there is no step '{tag}'; choose one of {expected_tags}",
}

_RANGES = {
    "greater_than_equal": "enter {ge} or more",
    "greater_than": "enter more than {gt}",
    "less_than_equal": "enter {le} or less",
    "less_than": "enter less than {lt}",
    "too_short": "give at least {min_length}",
    "too_long": "give at most {max_length}",
    "string_too_short": "write at least {min_length} characters",
    "string_too_long": "write at most {max_length} characters",
    "literal_error": "choose {expected}",
    "int_type": "enter a whole number",
    "int_from_float": "enter a whole number",
    "float_type": "enter a number",
    "finite_number": "enter a number",
    "string_type": "write a text",
    "bool_type": "say true or false",
}
"""What to do about a value that is out of range or of another type, in place of pydantic's words."""


def _explain(error: ValidationError) -> RecipeError:
    """Return one sentence for the first thing that is wrong."""
    # A misspelled key is what is wrong, not that the right one is missing.
    first = min(error.errors(), key=lambda line: line["type"] != "extra_forbidden")
    place = ".".join(_written(first["loc"]))
    if first["type"] in _MESSAGES:
        message = _MESSAGES[first["type"]].format(**first.get("ctx", {}))
    else:
        words = _RANGES.get(first["type"])
        message = words.format(**first.get("ctx", {})) if words else first["msg"]
        message = message.removeprefix("Value error, ").replace("Input should", "it should")
        if first["type"] not in ("missing", "value_error"):
            message = f"{message}, not {str(first['input'])[:60]!r}"
    line = f"{place}: {message}." if place else f"{message[:1].upper()}{message[1:]}."
    return RecipeError(" ".join(line.split()), first["loc"])


def _written(place: tuple[str | int, ...]) -> list[str]:
    """List the parts of a place as they are written: what follows an index is the kind of the entry."""
    return [
        str(part) for before, part in zip((None, *place), place, strict=False) if not isinstance(before, int)
    ]
