"""Prune or quantize: size and loss of models with their weights in fewer bits, as a chart and a table."""

from html import escape

from page.html.plot import Axis, Series, plot
from page.html.render import message
from page.workers.messages import RoundedModels
from pruning.evaluation.frontier import on_frontier
from pruning.formatting import format_number
from pruning.sharing.gguf.rounded import LeftOut, RoundedPoint

DIGITS = 2
"""Of ratios. Of two models that lose the same up to these, the smaller one is better."""
SIZE = Axis("Size of the weights in a GGUF file, MB", format=lambda value: f"{value:,.0f}")
RATIO = Axis(
    "Perplexity, as a multiple of the original's (lower is better)",
    log=True,
    format=lambda value: format_number(value, DIGITS),
)
FROM_4_BITS = (
    "A caution: these weights were stored in 4 bits once and then expanded, so rounding them again says little about a "
    "model that was always in 16 bits."
)
SPEED = (
    "Size is not speed: a quantized model still does every multiplication, and a pruned one does fewer. If you do "
    "both, the losses multiply."
)


def draw_rounded(models: RoundedModels) -> str:
    """Draw size and loss of an original and a pruned model, each in several types.

    Args:
        models: What was measured so far.

    Returns:
        A chart, a table that says which points are on the frontier, and what there is to know about them.
    """
    # The first color is the pruned model's in every chart, the second the original's.
    series = [
        _series([point for point in models.points if point.is_pruned is pruned]) for pruned in (True, False)
    ]
    drawn = plot(series, SIZE, RATIO, "Prune, quantize, or both", _table(models.points))
    notes = [_sentence(left_out) for left_out in models.left_out]
    if models.points:
        notes += [SPEED, *([FROM_4_BITS] if models.from_4_bits else [])]
    return drawn + "".join(message(note) for note in notes)


def _series(points: list[RoundedPoint]) -> Series:
    name = "Pruned" if points and points[0].is_pruned else "Original"
    places = [(point.bytes / 1e6, point.ratio, _title(point)) for point in points]
    return Series(name, places, labels=[point.type for point in points])


def _table(points: tuple[RoundedPoint, ...]) -> str:
    """Return the points from the smallest to the largest."""
    efficient = on_frontier([(point.bytes, round(point.ratio, DIGITS)) for point in points])
    rows = "".join(
        f'<tr><th scope="row">{escape(_title(point))}</th><td>{escape(SIZE.format(point.bytes / 1e6))}</td>'
        f"<td>{escape(RATIO.format(point.ratio))}</td><td>{'yes' if best else 'no'}</td></tr>"
        for point, best in sorted(
            zip(points, efficient, strict=True), key=lambda pair: (pair[0].bytes, pair[0].ratio)
        )
    )
    return (
        '<table class="measures"><caption>Ratio: perplexity over that of the original. On the frontier: no other model '
        "here is as small and as good.</caption>"
        '<thead><tr><th scope="col">model</th><th scope="col">MB</th><th scope="col">ratio</th>'
        f'<th scope="col">on the frontier</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def _title(point: RoundedPoint) -> str:
    return f"{'Pruned' if point.is_pruned else 'Original'}, {point.type}"


def _sentence(left_out: LeftOut) -> str:
    model = "pruned" if left_out.is_pruned else "original"
    return f"Left out: the {model} model in {', '.join(left_out.types)}. {left_out.reason}"
