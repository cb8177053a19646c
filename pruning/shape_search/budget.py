"""How large a pruned model may be."""

import re
from dataclasses import dataclass

from pruning.architectures.families import KEY_VALUE, LAYER, QUERY
from pruning.architectures.shape import Shape
from pruning.errors import RecipeError

_PATTERN = re.compile(r"\s*([\d.,_]+)\s*(%|[kmg]?b|[kmg]|)\s*(smaller|parameters|on disk|)\s*", re.IGNORECASE)


CONTEXT = 2048
"""The tokens whose keys and values count as memory, if no other number is given."""


@dataclass(frozen=True)
class Budget:
    """How large a model may be.

    Attributes:
        parameters: The most parameters; None for any number.
        memory_bytes: The most bytes that the weights and the cache of keys and values take; None for any number.
        latency: The most seconds for each new token, predicted from the base's on this machine; None for any time.
        context: How many tokens the cache holds.
    """

    parameters: int | None = None
    memory_bytes: int | None = None
    latency: float | None = None
    context: int = CONTEXT

    def allows(
        self, shape: Shape, parameters: int, bytes_each: int, base_latency: float | None = None
    ) -> bool:
        """Return whether a model is within the budget.

        Args:
            shape: Its shape, for the cache.
            parameters: Its parameters.
            bytes_each: The bytes of a stored number.
            base_latency: The seconds that the base takes for each parameter and new token.
        """
        return (
            (self.parameters is None or parameters <= self.parameters)
            and (
                self.memory_bytes is None
                or parameters * bytes_each + cache_bytes(shape, self.context, bytes_each) <= self.memory_bytes
            )
            and (self.latency is None or base_latency is None or parameters * base_latency <= self.latency)
        )

    def describe(self) -> str:
        """Return the budget as the end of a sentence."""
        parts = []
        if self.parameters is not None:
            parts.append(f"at most {self.parameters:,} parameters")
        if self.memory_bytes is not None:
            parts.append(
                f"at most {self.memory_bytes:,} bytes of memory with {self.context:,} tokens of context"
            )
        if self.latency is not None:
            parts.append(f"at most {self.latency:g} seconds for each token")
        return " and ".join(parts) or "any size"

    @classmethod
    def parse(cls, text: str, shape: Shape, bytes_per_parameter: int) -> "Budget":
        """Read a budget: `100M` or `100000000` parameters, `300MB` on disk, or `30%` smaller.

        Args:
            text: The budget as the user wrote it.
            shape: The shape of the base model, which a percentage refers to.
            bytes_per_parameter: The size of a stored parameter, for a budget in bytes.

        Raises:
            RecipeError: The text is not a budget, or not one between 0 and the size of the base.
        """
        match = _PATTERN.fullmatch(str(text))
        try:
            number = float(match[1].replace(",", "").replace("_", "")) if match else None
        except ValueError:
            number = None
        if match is None or number is None:
            raise RecipeError(
                f"{str(text)[:40]!r} is not a size. Write 100M for parameters, 250MB for the file, or 30% for a model "
                "that is 30% smaller."
            )
        unit, current = match[2].lower(), shape.parameters
        if unit == "%":
            parameters = current * (1 - number / 100)
        elif unit in ("kb", "mb", "gb"):
            parameters = number * {"k": 1e3, "m": 1e6, "g": 1e9}[unit[0]] / bytes_per_parameter
        else:
            parameters = number * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9}[unit]
        if not 0 < parameters < current:
            raise RecipeError(
                f"The budget {text} comes to {max(parameters, 0):,.0f} parameters, and the model has "
                f"{current:,}. Choose a size above 0 and below that."
            )
        return cls(int(parameters))


def cache_bytes(shape: Shape, context: int, bytes_each: int) -> int:
    """Return the bytes of the keys and values that a model keeps of some tokens."""
    heads = shape.count(KEY_VALUE) if KEY_VALUE in shape.anatomy.units else shape.count(QUERY)
    return 2 * shape.count(LAYER) * heads * shape.anatomy.head_width * context * bytes_each


def read_bytes(text: str) -> int:
    """Read a number of bytes, such as `300MB`.

    Raises:
        RecipeError: The text is not one.
    """
    match = re.fullmatch(r"\s*([\d.]+)\s*([kmg]?)b?\s*", text, re.IGNORECASE)
    try:
        number = float(match[1]) if match else 0.0
    except ValueError:
        number = 0.0
    if match is None or not number:
        raise RecipeError(f"The memory is {text[:40]!r}. Write it as 300MB or 2GB.")
    return int(number * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}[match[2].lower()])
