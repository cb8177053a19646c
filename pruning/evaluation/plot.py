"""Charts as picture files, drawn by matplotlib."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

from pruning.errors import RecipeError, SavingError
from pruning.files import replacing

FORMATS = ("png", "svg", "pdf")
SIZE = (7.2, 3.6)
"""Width and height in inches."""
DOTS_PER_INCH = 200

Points = Sequence[tuple[float, float]]


def check_plot(file: Path) -> None:
    """Refuse before any work a file that no picture can be written to.

    Raises:
        RecipeError: The file's name ends in something else than a known format, or matplotlib is missing.
    """
    if file.suffix.lower().removeprefix(".") not in FORMATS:
        raise RecipeError(
            f"A picture is a file that ends in .{', .'.join(FORMATS[:-1])} or .{FORMATS[-1]}. "
            f"Write --plot {file.with_suffix('.png')}."
        )
    if importlib.util.find_spec("matplotlib") is None:
        raise RecipeError("Pictures are drawn by matplotlib. Install it with: pip install matplotlib")


def save_plot(
    file: Path,
    title: str,
    series: Mapping[str, Points],
    horizontal: str,
    vertical: str,
    bars: bool = False,
) -> None:
    """Draw a chart into a file.

    Args:
        file: The file, whose name ends in one of `FORMATS`.
        title: What the chart shows.
        series: For each name, its points. Points that are not finite are left out.
        horizontal: What the horizontal axis shows.
        vertical: What the vertical axis shows.
        bars: Whether to draw a bar for each point instead of a line through them.

    Raises:
        SavingError: The file cannot be written.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - optional

    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    for name, points in series.items():
        places, values = zip(*points, strict=True) if points else ((), ())
        if bars:
            axes.bar(places, values, label=name)
        else:
            axes.plot(places, values, marker="o", label=name)
    # Names may hold dollar signs, which would otherwise begin a formula.
    axes.set_title(title, parse_math=False)
    axes.set_xlabel(horizontal, parse_math=False)
    axes.set_ylabel(vertical, parse_math=False)
    axes.grid(axis="y", alpha=0.3)
    if len(series) > 1:
        for text in axes.legend().get_texts():
            text.set_parse_math(False)
    try:
        with replacing(file) as temporary:
            figure.savefig(temporary, format=file.suffix.lower().removeprefix("."), dpi=DOTS_PER_INCH)
    except OSError as error:
        raise SavingError(f"The picture cannot be written to {file}: {error.strerror or error}.") from None
