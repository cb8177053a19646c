"""Figures as people read them."""

from math import isfinite

WORDS = {1e15: "quadrillion", 1e12: "trillion", 1e9: "billion", 1e6: "million"}


def format_number(value: float, digits: int = 1) -> str:
    """A figure that may be astronomic, with so many digits after the point where it is small."""
    if not isfinite(value) or value >= 1e18:
        return "beyond counting"
    for size, word in WORDS.items():
        if value >= size:
            return f"{value / size:,.{0 if value >= 100 * size else 1}f} {word}"
    return f"{value:,.0f}" if value >= 1_000 else f"{value:.{digits}f}"
