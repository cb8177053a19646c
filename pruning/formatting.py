"""Format numbers and quoted texts for people."""

from collections.abc import Iterable
from math import isfinite

UNIT_TITLES = {
    "neurons": "neurons per layer",
    "heads": "query heads",
    "key_value_heads": "key/value heads",
    "tokens": "vocabulary",
}
"""Names for people, of the kinds of unit whose names in reports are not plain enough."""

_SCALES = {1e15: "quadrillion", 1e12: "trillion", 1e9: "billion", 1e6: "million"}

_LARGEST = 1e18


def printable(text: str) -> str:
    """Return a text with a space for each character that cannot be printed, such as a line break."""
    return "".join(each if each.isprintable() else " " for each in text)


def format_number(value: float, digits: int = 1) -> str:
    """Format a number of any size so that it stays readable.

    Args:
        value: The number, such as a perplexity, which can be astronomically large after a bad cut.
        digits: Digits after the point for values below 1,000.

    Returns:
        For example `36.7`, `2,151`, `290 million`; `off the scale` from 1e18 on, for infinity and for NaN.
    """
    if not isfinite(value) or value >= _LARGEST:
        return "off the scale"
    for size, word in _SCALES.items():
        if value >= size:
            return f"{value / size:,.{0 if value >= 100 * size else 1}f} {word}"
    return f"{value:,.0f}" if value >= 1_000 else f"{value:.{digits}f}"


def format_ranges(numbers: Iterable[int]) -> str:
    """Format numbers in ascending order with runs as ranges, such as `0-3, 7`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)
