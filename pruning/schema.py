"""Strict, frozen values that say what is wrong with them."""

from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from pruning.errors import RecipeError


class _Explaining(type(BaseModel)):
    # Not in __init__, which pydantic also calls for the values inside of others: they would not
    # know their place.
    def __call__(cls, *args, **values):
        try:
            return super().__call__(*args, **values)
        except ValidationError as error:
            raise _explain(error) from None


class Frozen(BaseModel, metaclass=_Explaining):
    """Raises `RecipeError` where pydantic would raise `ValidationError`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read values as strictly as they are written."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise _explain(error) from None


_MESSAGES = {
    "extra_forbidden": "there is no such setting; remove it",
    "union_tag_not_found": "say which step it is, for example step: neurons",
    "union_tag_invalid": "there is no step '{tag}'; choose one of {expected_tags}",
}


def _explain(error: ValidationError) -> RecipeError:
    """One sentence for the first thing that is wrong."""
    # A misspelt key is what is wrong, not that the right one is missing.
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    place = ".".join(_written(first["loc"]))
    if first["type"] in _MESSAGES:
        message = _MESSAGES[first["type"]].format(**first.get("ctx", {}))
    else:
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] not in ("missing", "value_error"):
            message = f"{message}, not {str(first['input'])[:60]!r}"
    line = f"{place}: {message}." if place else f"{message[:1].upper()}{message[1:]}."
    return RecipeError(" ".join(line.split()), first["loc"])


def _written(place: tuple[str | int, ...]) -> list[str]:
    """The parts of a place as they are written: what follows an index is the kind of the entry."""
    return [
        str(part) for before, part in zip((None, *place), place, strict=False) if not isinstance(before, int)
    ]
