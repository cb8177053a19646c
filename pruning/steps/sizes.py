"""How much goes: the fields that several steps have."""

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

MULTIPLES = {1: "any", 8: "8", 32: "32", 64: "64", 128: "128", 256: "256"}
"""What a size may be rounded up to a multiple of, where a person chooses."""

Width = Annotated[int, Field(ge=1)]
Multiple = Annotated[int, Field(ge=1, le=4096)]


def share_of(units: str):
    """The type of a share of some units, greater than 0 and less than 1."""

    def check(value: float) -> float:
        if not 0 < value < 1:
            raise ValueError(
                f"a share of the {units} greater than 0 and less than 1 is needed, not {value:g}"
            )
        return value

    return Annotated[float, AfterValidator(check)]


def one_number(why: str) -> BeforeValidator:
    """Refuses several numbers, such as one for each layer, and says why."""

    def check(value: object) -> object:
        if isinstance(value, list | tuple | dict):
            raise ValueError(f"{why}. Give one number")
        return value

    return BeforeValidator(check)
