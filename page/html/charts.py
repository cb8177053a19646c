"""Charts as HTML. Each shows its values as text too, for every reader. All text is escaped."""

from collections.abc import Sequence
from html import escape
from math import log10
from statistics import fmean
from typing import NamedTuple

from pruning.evaluation.inspection import NextToken, TokenLoss
from pruning.formatting import format_number


class GenreRow(NamedTuple):
    """A measure on one genre, for both models; None if it is not measured yet."""

    title: str
    original: float | None
    pruned: float | None


def genre_plot(rows: Sequence[GenreRow], measure: str = "Perplexity") -> str:
    """Draw a measure by genre as a dot plot, one dot per model, with the values beside it.

    Args:
        rows: The genres. All share one scale.
        measure: Name of the measure, for which lower is better.
    """
    known = [value for row in rows for value in (row.original, row.pruned) if value is not None]
    digits = 3 if max(known, default=100.0) < 10 else 1
    top = min(max(max(known, default=1.0) * 1.05, 0.1), 1e12)
    body = "".join(_genre_row(row, top, digits) for row in rows)
    return (
        f'<table class="genres"><caption>{escape(measure)} by kind of text, lower is better '
        '<span class="key"><i class="original"></i>original <i class="pruned"></i>pruned</span></caption>'
        f"<tbody>{body}</tbody></table>"
    )


def _genre_row(row: GenreRow, top: float, digits: int) -> str:
    dots, values = "", "…"
    if row.original is not None:
        dots = _dot("original", row.original, top)
        values = f"{row.original:.{digits}f}"
        if row.pruned is not None:
            low, high = sorted((_position(row.original, top), _position(row.pruned, top)))
            line = f'<span class="span" style="left:{low:.2f}%;width:{high - low:.2f}%"></span>'
            dots = f"{line}{dots}{_dot('pruned', row.pruned, top)}"
            values += f" → <b>{format_number(row.pruned, digits)}</b>"
    return f'<tr><th>{escape(row.title)}</th><td class="plot">{dots}</td><td>{values}</td></tr>'


def _position(value: float, top: float) -> float:
    """Return the position on the scale in percent: linear, or logarithmic once a model is ruined."""
    value = min(value, top)
    if top <= 400:
        return 100 * value / top
    return 100 * log10(max(value, 1.0)) / log10(top)


def _dot(model: str, value: float, top: float) -> str:
    return f'<i class="{model}" style="left:{_position(value, top):.2f}%" title="{format_number(value)}"></i>'


def next_token_chart(original: Sequence[NextToken], pruned: Sequence[NextToken]) -> str:
    """Draw the most likely next tokens of both models side by side, with their probabilities as bars.

    A token that only one of the two lists contains is underlined.
    """
    return (
        '<section class="next-tokens">'
        f"{_next_tokens('Original', original, pruned)}{_next_tokens('Pruned', pruned, original)}</section>"
    )


def _next_tokens(title: str, tokens: Sequence[NextToken], others: Sequence[NextToken]) -> str:
    shared = {token.text for token in others}
    rows = "".join(
        f'<tr class="{"" if token.text in shared else "unshared"}"><th>{_show_spaces(token.text)}</th>'
        f'<td class="plot"><span style="width:{100 * token.probability:.2f}%"></span></td>'
        f"<td>{100 * token.probability:.1f}%</td></tr>"
        for token in tokens
    )
    return f'<table class="probabilities"><caption>{title}</caption><tbody>{rows}</tbody></table>'


def _show_spaces(token: str) -> str:
    """Escape a token, with its spaces, tabs and line breaks made visible."""
    return escape(token.replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣")) or "(nothing)"


def token_loss_chart(rows: Sequence[TokenLoss]) -> str:
    """Draw a text once per model, each token the darker the higher its loss.

    Args:
        rows: The tokens, each with its loss under the original and under the pruned model, in nats.

    Returns:
        Both texts, with the losses on hover, and a table of the five tokens whose loss grew most.
    """
    texts = "".join(_shaded_text(title, rows, model) for model, title in enumerate(("Original", "Pruned")))
    pairs = [
        (row.text, original, pruned)
        for row in rows
        if (original := row.losses[0]) is not None and (pruned := row.losses[1]) is not None
    ]
    pairs.sort(key=lambda pair: pair[1] - pair[2])
    body = "".join(
        f"<tr><th>{_show_spaces(text)}</th><td>{original:.2f}</td><td>{pruned:.2f}</td></tr>"
        for text, original, pruned in pairs[:5]
    )
    return (
        f'<section class="token-losses">{texts}</section><table class="measures"><caption>The tokens that '
        "lost most, in nats</caption><thead><tr><th>token</th><th>original</th><th>pruned</th></tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def _shaded_text(title: str, rows: Sequence[TokenLoss], model: int) -> str:
    spans = []
    for row in rows:
        loss = row.losses[model]
        shade = 0 if loss is None else min(loss / 10, 1)
        hint = "the first token: nothing comes before it" if loss is None else f"{loss:.2f} nats"
        spans.append(f'<span style="--loss:{shade:.2f}" title="{hint}">{escape(row.text)}</span>')
    known = [loss for row in rows if (loss := row.losses[model]) is not None]
    mean = f"{fmean(known):.2f}" if known else "…"
    return f"<article><h3>{title}: {mean} nats per token</h3><p>{''.join(spans)}</p></article>"


def importance_map(
    rows: Sequence[Sequence[float]], shared: Sequence[float], fraction: float, title: str, other: str
) -> str:
    """Draw the neurons of each layer sorted by importance, with a line where the cut falls.

    Args:
        rows: For each layer, scores from the highest to the lowest, as shares of the highest.
        shared: For each layer, the share of the kept neurons that the other criterion keeps too.
        fraction: The fraction of neurons to remove, from 0 to 1.
        title: Title of the criterion that is drawn.
        other: Title of the criterion that it is compared with.
    """
    body = "".join(
        f'<tr><th>{layer}</th><td><div class="cells" style="--cut:{100 * (1 - fraction):.1f}%">'
        # The root makes the many low scores visible beside the few highest.
        + "".join(f'<i style="--share:{min(value, 1) ** 0.4:.3f}" title="{value:.3f}"></i>' for value in row)
        + f"</div></td><td>{100 * share:.0f}%</td></tr>"
        for layer, (row, share) in enumerate(zip(rows, shared, strict=True))
    )
    return (
        f'<table class="importance"><caption>{escape(title)}: the neurons of each layer, from the most to '
        f"the least important; darker means more important. A cut of {fraction:.0%} removes the neurons "
        f"right of the line. Last column: the share of the kept neurons that {escape(other)} would also keep."
        "</caption><thead><tr><th>layer</th><th>neurons, sorted</th><th>kept by both</th></tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def influence_table(values: Sequence[float]) -> str:
    """Name the three layers of least block influence, with all values as a table for screen readers."""
    rows = "".join(f"<tr><th>{layer}</th><td>{value:.4f}</td></tr>" for layer, value in enumerate(values))
    least = sorted(range(len(values)), key=values.__getitem__)[:3]
    return (
        f'<p class="note">Layers {", ".join(map(str, sorted(least)))} change their input the least.</p>'
        f'<table class="screen-reader-only"><caption>Block influence by layer</caption>{rows}</table>'
    )


def influence_chart(values: Sequence[float]) -> str:
    """Draw block influence by layer as bars, each with its value."""
    top = max(values)
    rows = "".join(
        f'<tr><th>{layer}</th><td class="plot"><span style="width:{100 * value / top:.1f}%"></span></td>'
        f"<td>{value:.3f}</td></tr>"
        for layer, value in enumerate(values)
    )
    return (
        '<table class="probabilities influence"><caption>Block influence by layer: how much each layer '
        f"changes the direction of its input</caption><tbody>{rows}</tbody></table>"
    )
