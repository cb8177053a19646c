"""A chart with axes, as HTML and SVG: points and lines of several series, and the same as a table.

Nothing is scaled as a picture, so that text keeps its size on every screen. All text is escaped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, isfinite, log10

from pruning.formatting import format_number

MARKS = 8
"""The number of distinct colors and shapes; further series reuse them from the start."""
LARGEST = 1e12
"""Values beyond are drawn at the upper end."""


@dataclass(frozen=True)
class Series:
    """Points of one kind.

    Attributes:
        name: Its name in the key.
        points: Each an x, a y, and a few words on it or none.
        line: Whether a line joins them, instead of marks.
        large: Whether its mark is large and bears its name, because all others are compared with it.
        labels: What stands beside each mark, if anything does.
    """

    name: str
    points: Sequence[tuple[float, float] | tuple[float, float, str]]
    line: bool = False
    large: bool = False
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Axis:
    """One axis of a chart.

    Attributes:
        title: What it measures, with its unit.
        log: Whether each step multiplies instead of adding.
        format: Writes a value.
    """

    title: str
    log: bool = False
    format: Callable[[float], str] = format_number

    def place(self, value: float, low: float, high: float) -> float:
        """Return where a value lies between two others, in percent."""
        value = min(max(value, low), high)
        if self.log:
            value, low, high = log10(value), log10(low), log10(high)
        return 100 * (value - low) / (high - low)

    def ends(self, values: Sequence[float]) -> tuple[float, float]:
        """Return the ends of the axis for its values, with some room around them."""
        low, high = min(values), max(values)
        if self.log:
            return low / 1.1, max(high * 1.15, low * 1.5)
        room = (high - low or abs(high) or 1) * 0.06
        return low - room, high + room

    def label(self, tick: float) -> str:
        """Write a round value without digits that say nothing."""
        return f"{tick:g}" if self.format is format_number and abs(tick) < 1_000 else self.format(tick)

    def ticks(self, low: float, high: float) -> list[float]:
        """Return round values between the ends, few enough to be labeled."""
        return _log_ticks(low, high) if self.log else _ticks(low, high)


def _ticks(low: float, high: float, most: int = 5) -> list[float]:
    rough = (high - low) / most
    power = 10.0 ** floor(log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [number * step for number in range(ceil(low / step), floor(high / step) + 1)]


def _log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    for factors in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        ticks = [factor * 10.0**power for power in powers for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= most:
            return ticks
    return ticks[:: ceil(len(ticks) / most)]


def plot(series: Sequence[Series], x: Axis, y: Axis, caption: str, table: str = "") -> str:
    """Draw series on shared axes.

    Args:
        series: The series; those without points are left out, but keep the colors of the others as they are.
        x: The horizontal axis.
        y: The vertical axis.
        caption: What is drawn, in one line.
        table: The table of its points, as HTML; by default one that is made of them, and collapsed.

    Returns:
        The chart, its key, and the table of its points; an empty string if there are no points.
    """
    drawn = [(number, each) for number, each in enumerate(series) if each.points]
    points = [point for _, each in drawn for point in each.points]
    if not points:
        return ""
    x_ends = x.ends([point[0] for point in points])
    y_ends = y.ends([_bounded(point[1]) for point in points])
    key = "".join(
        f'<li><i class="{"stroke" if each.line else "mark"} series-{number % MARKS}"></i>{escape(each.name)}</li>'
        for number, each in drawn
    )
    inside = "".join(_draw(each, number, x, y, x_ends, y_ends) for number, each in drawn)
    return (
        f'<figure class="chart"><figcaption>{escape(caption)}</figcaption><ul class="key">{key}</ul>'
        f'<p class="y-title">{escape(y.title)}</p>'
        f'<div class="plane" aria-hidden="true">{_grid(x, x_ends, y, y_ends)}{inside}</div>'
        f'<p class="x-title">{escape(x.title)}</p>{table or _table(drawn, x, y)}</figure>'
    )


def _bounded(value: float) -> float:
    return min(value, LARGEST) if isfinite(value) else LARGEST


def _grid(x: Axis, x_ends: tuple[float, float], y: Axis, y_ends: tuple[float, float]) -> str:
    columns = "".join(
        f'<span class="tick-x" style="left:{x.place(tick, *x_ends):.2f}%">{escape(x.label(tick))}</span>'
        for tick in x.ticks(*x_ends)
    )
    rows = "".join(
        f'<span class="tick-y" style="bottom:{y.place(tick, *y_ends):.2f}%">'
        f"<span>{escape(y.label(tick))}</span></span>"
        for tick in y.ticks(*y_ends)
    )
    return columns + rows


def _draw(
    series: Series, number: int, x: Axis, y: Axis, x_ends: tuple[float, float], y_ends: tuple[float, float]
) -> str:
    kind = f"series-{number % MARKS}"
    places = [(x.place(point[0], *x_ends), y.place(_bounded(point[1]), *y_ends)) for point in series.points]
    if series.line:
        line = " ".join(f"{left:.2f},{100 - bottom:.2f}" for left, bottom in places)
        return (
            '<svg viewBox="0 0 100 100" preserveAspectRatio="none">'
            f'<polyline class="{kind}" points="{line}"></polyline></svg>'
        )
    marks = "".join(
        f'<i class="mark {kind}{" large" if series.large else ""}" style="left:{left:.2f}%;bottom:{bottom:.2f}%" '
        f'title="{escape(_title(series, point, x, y))}"></i>'
        for (left, bottom), point in zip(places, series.points, strict=True)
    )
    named = [(series.name, places[-1])] if series.large else zip(series.labels, places, strict=False)
    return marks + "".join(_name(text, *place) for text, place in named)


def _name(text: str, left: float, bottom: float) -> str:
    side = "before" if left > 70 else "after"
    return f'<b class="name {side}" style="left:{left:.2f}%;bottom:{bottom:.2f}%">{escape(text)}</b>'


def _title(series: Series, point: tuple[float, float] | tuple[float, float, str], x: Axis, y: Axis) -> str:
    name = point[2] if len(point) == 3 else series.name
    return f"{name}: {x.format(point[0])}, {y.format(point[1])}"


def _table(drawn: Sequence[tuple[int, Series]], x: Axis, y: Axis) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(point[2] if len(point) == 3 else each.name)}</th>'
        f"<td>{escape(x.format(point[0]))}</td><td>{escape(y.format(point[1]))}</td></tr>"
        for _, each in drawn
        for point in each.points
    )
    return (
        '<details><summary>Show as a table</summary><table class="measures"><thead><tr>'
        f'<th scope="col">model</th><th scope="col">{escape(x.title)}</th><th scope="col">{escape(y.title)}</th>'
        f"</tr></thead><tbody>{rows}</tbody></table></details>"
    )
