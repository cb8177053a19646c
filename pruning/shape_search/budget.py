"""How large a pruned model may be."""

import re
from dataclasses import dataclass

from pruning.architectures.shape import Shape
from pruning.errors import RecipeError

_PATTERN = re.compile(r"\s*([\d.,_]+)\s*(%|[kmg]?b|[kmg]|)\s*(smaller|parameters|on disk|)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Budget:
    """The most parameters that a model may have."""

    parameters: int

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
