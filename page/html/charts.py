"""Charts as HTML. Each shows its values as text too, for every reader. All text is escaped."""

from collections.abc import Sequence
from html import escape
from statistics import fmean
from typing import NamedTuple

from page.html.plot import LARGEST, Axis
from pruning.evaluation.inspection import NextToken, TokenLoss
from pruning.formatting import format_number


class GenreRow(NamedTuple):
    """A measure on one genre, for both models; None if it is not measured yet."""

    title: str
    original: float | None
    pruned: float | None


def genre_plot(rows: Sequence[GenreRow], measure: str = "Perplexity", log: bool = True) -> str:
    """Draw a measure by genre as a dot plot, one dot per model, with the values beside it.

    Args:
        rows: The genres. All share one scale.
        measure: Name of the measure, for which lower is better.
        log: Whether its scale is logarithmic.
    """
    known = [min(value, LARGEST) for row in rows for value in (row.original, row.pruned) if value is not None]
    digits = 3 if max(known, default=100.0) < 10 else 1
    axis = Axis(measure, log=log)
    ends = axis.ends(known or [1.0])
    body = "".join(_genre_row(row, axis, ends, digits) for row in rows)
    ticks = "".join(
        f'<span class="tick" style="left:{axis.place(tick, *ends):.2f}%">{axis.label(tick)}</span>'
        for tick in axis.ticks(*ends)
        if known
    )
    return (
        f'<table class="genres"><caption>{escape(measure)} by kind of text, lower is better '
        '<span class="key"><i class="original"></i>original <i class="pruned"></i>pruned</span></caption>'
        f'<tbody>{body}</tbody><tfoot aria-hidden="true"><tr><td></td><td class="plot">{ticks}</td><td></td></tr>'
        "</tfoot></table>"
    )


def _genre_row(row: GenreRow, axis: Axis, ends: tuple[float, float], digits: int) -> str:
    dots, values = "", "…"
    if row.original is not None:
        before = axis.place(row.original, *ends)
        dots = _dot("original", before)
        values = f"{row.original:.{digits}f}"
        if row.pruned is not None:
            after = axis.place(row.pruned, *ends)
            low, high = sorted((before, after))
            line = f'<span class="span" style="left:{low:.2f}%;width:{high - low:.2f}%"></span>'
            dots = f"{line}{dots}{_dot('pruned', after)}"
            values += f" → <b>{format_number(row.pruned, digits)}</b>"
    return f'<tr><th scope="row">{escape(row.title)}</th><td class="plot">{dots}</td><td>{values}</td></tr>'


def _dot(model: str, place: float) -> str:
    return f'<i class="{model}" style="left:{place:.2f}%"></i>'


def next_token_chart(original: Sequence[NextToken], pruned: Sequence[NextToken]) -> str:
    """Draw the most likely next tokens of both models side by side, with their probabilities as bars.

    A token that only one of the two lists contains is underlined.
    """
    return (
        '<section class="next-tokens">'
        f"{_next_tokens('Original', original, pruned)}{_next_tokens('Pruned', pruned, original)}</section>"
        '<p class="note">An underlined word is in only one of the two lists.</p>'
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
        Both texts, a table of the five tokens whose loss grew most, and one of all tokens, folded up.
    """
    texts = "".join(_shaded_text(title, rows, model) for model, title in enumerate(("Original", "Pruned")))
    pairs = [
        (row.text, original, pruned)
        for row in rows
        if (original := row.losses[0]) is not None and (pruned := row.losses[1]) is not None
    ]
    hurt = sorted(pairs, key=lambda pair: pair[1] - pair[2])
    return (
        f'<section class="token-losses">{texts}</section>'
        f"{_losses_table('Tokens hurt most by the cut (nats)', hurt[:5])}"
        f"<details><summary>Show every token</summary>{_losses_table('Every token (nats)', pairs)}</details>"
    )


def _losses_table(caption: str, pairs: Sequence[tuple[str, float, float]]) -> str:
    body = "".join(
        f'<tr><th scope="row">{_show_spaces(text)}</th><td>{original:.2f}</td><td>{pruned:.2f}</td></tr>'
        for text, original, pruned in pairs
    )
    return (
        f'<table class="measures"><caption>{caption}</caption><thead><tr><th scope="col">token</th>'
        f'<th scope="col">original</th><th scope="col">pruned</th></tr></thead><tbody>{body}</tbody></table>'
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
    return f"<article><h3>{title}: {mean} nats per token (average surprise)</h3><p>{''.join(spans)}</p></article>"


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
        f'<table class="importance"><caption>{escape(title)}. Each row is a layer; its neurons run from most to '
        f"least important. The {fraction:.0%} right of the line are removed. Last column: share of the kept "
        f"neurons that {escape(other)} keeps as well.</caption>"
        '<thead><tr><th scope="col">layer</th><th scope="col">neurons, sorted</th>'
        '<th scope="col">kept by both</th></tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def influence_chart(values: Sequence[float]) -> str:
    """Draw block influence by layer as bars, each with its value, and name the three layers with the least."""
    top = max(values)
    least = sorted(sorted(range(len(values)), key=values.__getitem__)[:3])
    names = " and ".join(
        [", ".join(map(str, least[:-1])), str(least[-1])] if len(least) > 1 else map(str, least)
    )
    rows = "".join(
        f'<tr><th scope="row">{layer}</th><td class="plot"><span style="width:{100 * value / top:.1f}%"></span></td>'
        f"<td>{value:.3f}</td></tr>"
        for layer, value in enumerate(values)
    )
    return (
        f'<p class="note">Layers {names} change their input the least.</p>'
        '<table class="probabilities influence"><caption>Block influence by layer: how much each layer '
        f"rotates its input</caption><tbody>{rows}</tbody></table>"
    )
