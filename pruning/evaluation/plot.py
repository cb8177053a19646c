"""Small charts as SVG files, which browsers and word processors open."""

from collections.abc import Mapping, Sequence
from html import escape
from math import isfinite
from pathlib import Path

from pruning.errors import RecipeError, SavingError
from pruning.files import replacing
from pruning.formatting import format_number

WIDTH, HEIGHT = 720, 360
MARGIN = 60
COLORS = ("#1b6e53", "#b4552d", "#3b5fa8", "#8a6d1d", "#7a3f8f", "#4c5866")

Points = Sequence[tuple[float, float]]


def check_plot(file: Path | None) -> None:
    """Refuse before any work a file that no picture can be written to. Raises `RecipeError`."""
    if file is not None and file.suffix.lower() != ".svg":
        raise RecipeError(
            f"Pictures are written as SVG, which every browser opens. Write --plot {file.with_suffix('.svg')}."
        )


def draw(title: str, series: Mapping[str, Points], horizontal: str, vertical: str, bars: bool = False) -> str:
    """Draw a chart.

    Args:
        title: What it shows.
        series: For each name, its points; those that are not finite are left out.
        horizontal: What the horizontal axis shows.
        vertical: What the vertical axis shows.
        bars: Whether to draw a bar for each point instead of a line through them.
    """
    points = [point for each in series.values() for point in each if isfinite(point[1])]
    left, right = min((x for x, _ in points), default=0.0), max((x for x, _ in points), default=1.0)
    top = max((y for _, y in points), default=1.0) or 1.0
    low = 0.0 if bars else min((y for _, y in points), default=0.0)
    thick = (WIDTH - 2 * MARGIN) / (right - left + 1) * 0.8 if bars else 0.0

    def place(x: float, y: float) -> tuple[float, float]:
        inner = WIDTH - 2 * MARGIN - thick
        across = MARGIN + thick / 2 + inner * (x - left) / ((right - left) or 1)
        return across, HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (y - low) / ((top - low) or 1)

    parts = [_text(WIDTH / 2, 24, title, size=16), _text(WIDTH / 2, HEIGHT - 12, horizontal)]
    parts.append(_text(MARGIN, 44, vertical, anchor="start"))
    for x in sorted({left, (left + right) / 2, right}) if not bars else sorted({left, right}):
        parts.append(_text(place(x, low)[0], HEIGHT - MARGIN + 18, f"{x:g}"))
    for y in (low, (low + top) / 2, top):
        across, down = MARGIN, place(left, y)[1]
        parts.append(f'<path d="M{across} {down:.1f}H{WIDTH - MARGIN}" stroke="#ddd"/>')
        parts.append(_text(across - 6, down + 4, format_number(y, 2), anchor="end"))
    for number, (name, values) in enumerate(series.items()):
        color = COLORS[number % len(COLORS)]
        placed = [place(*value) for value in values if isfinite(value[1])]
        if bars:
            parts += [
                f'<rect x="{x - thick / 2:.1f}" y="{y:.1f}" width="{thick:.1f}" '
                f'height="{HEIGHT - MARGIN - y:.1f}" fill="{color}"/>'
                for x, y in placed
            ]
        else:
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in placed]
        if len(series) > 1:
            parts.append(_text(WIDTH - MARGIN, 60 + 18 * number, name, anchor="end", color=color))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>{"".join(parts)}</svg>\n'
    )


def save_plot(file: Path, picture: str) -> None:
    """Write a picture. Raises `SavingError` if it cannot be written."""
    try:
        with replacing(file) as temporary:
            temporary.write_text(picture, encoding="utf-8")
    except OSError as error:
        raise SavingError(f"The picture cannot be written to {file}: {error.strerror or error}.") from None


def _text(x: float, y: float, text: str, size: int = 12, anchor: str = "middle", color: str = "#222") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{color}"'
    return f"<text {place}>{escape(text)}</text>"
