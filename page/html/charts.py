"""The drawings of a closer look and of the course, as HTML: each with its values, for every reader."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from pruning.evaluation.inspection import NextToken, TokenLoss
from pruning.formatting import format_number
from pruning.pipeline import Report


def next_words(before: Sequence[NextToken], after: Sequence[NextToken]) -> str:
    """The likeliest next tokens of both models side by side, with their probabilities as bars."""
    return (
        '<section class="next-words">'
        f"{_likeliest('Before', before, after)}{_likeliest('After', after, before)}</section>"
    )


def _likeliest(title: str, own: Sequence[NextToken], other: Sequence[NextToken]) -> str:
    shared = {token.text for token in other}
    rows = "".join(
        f'<tr class="{"" if token.text in shared else "alone"}"><th>{_visible(token.text)}</th>'
        f'<td class="plot"><span style="width:{100 * token.probability:.2f}%"></span></td>'
        f"<td>{100 * token.probability:.1f}\u202f%</td></tr>"
        for token in own
    )
    return f'<table class="probabilities"><caption>{title}</caption><tbody>{rows}</tbody></table>'


def _visible(piece: str) -> str:
    """A piece of text with its blanks made visible."""
    return escape(piece.replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣")) or "(nothing)"


def losses(rows: Sequence[TokenLoss]) -> str:
    """A text in which each piece is the darker the more it cost; the values on hover and in a table."""
    body = "".join(_paragraph(title, rows, which) for which, title in enumerate(("Before", "After")))
    parted = sorted(
        (row for row in rows if row.losses[0] is not None), key=lambda row: row.losses[0] - row.losses[1]
    )[:5]
    most = "".join(
        f"<tr><th>{_visible(row.text)}</th><td>{row.losses[0]:.2f}</td><td>{row.losses[1]:.2f}</td></tr>"
        for row in parted
    )
    return (
        f'<section class="losses">{body}</section><table class="measures"><caption>Where the cut cost most, '
        f"in nats</caption><thead><tr><th>piece</th><th>before</th><th>after</th></tr></thead><tbody>{most}"
        "</tbody></table>"
    )


def _paragraph(title: str, rows: Sequence[TokenLoss], which: int) -> str:
    pieces = []
    for row in rows:
        loss = row.losses[which]
        shade = 0 if loss is None else min(loss / 10, 1)
        hint = "the first piece: nothing predicts it" if loss is None else f"{loss:.2f} nats"
        pieces.append(f'<span style="--loss:{shade:.2f}" title="{hint}">{escape(row.text)}</span>')
    known = [row.losses[which] for row in rows if row.losses[which] is not None]
    mean = sum(known) / len(known)
    return f"<article><h3>{title}: {mean:.2f} nats a piece</h3><p>{''.join(pieces)}</p></article>"


def importance(
    rows: Sequence[Sequence[float]], shared: Sequence[float], fraction: float, title: str, other: str
) -> str:
    """Layers × neurons sorted by importance, darker for more; the line is where the cut falls."""
    body = "".join(
        f'<tr><th>{layer}</th><td><div class="cells" style="--cut:{100 * (1 - fraction):.1f}%">'
        # The root brings out the many below the few highest.
        + "".join(f'<i style="--share:{min(value, 1) ** 0.4:.3f}" title="{value:.3f}"></i>' for value in row)
        + f"</div></td><td>{100 * share:.0f}\u202f%</td></tr>"
        for layer, (row, share) in enumerate(zip(rows, shared, strict=True))
    )
    return (
        f'<table class="importance"><caption>{escape(title)}: each layer\'s neurons from the most to '
        f"the least important, darker for more. Right of the line, {fraction:.0%} go. Last column: how many "
        f"of those kept {escape(other[:1].lower() + other[1:])} would keep too.</caption>"
        "<thead><tr><th>layer</th><th>neurons, sorted</th><th>kept by both</th></tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def influences(values: Sequence[float]) -> str:
    """Block influence by layer, for those who cannot see the bars."""
    rows = "".join(f"<tr><th>{layer}</th><td>{value:.4f}</td></tr>" for layer, value in enumerate(values))
    least = sorted(range(len(values)), key=values.__getitem__)[:3]
    return (
        f'<p class="note">Layers {", ".join(map(str, sorted(least)))} change least what passes through them.'
        f'</p><table class="for-readers"><caption>Block influence by layer</caption>{rows}</table>'
    )


def influence_bars(values: Sequence[float]) -> str:
    """Block influence by layer as bars, each with its value."""
    top = max(values)
    rows = "".join(
        f'<tr><th>{layer}</th><td class="plot"><span style="width:{100 * value / top:.1f}%"></span></td>'
        f"<td>{value:.3f}</td></tr>"
        for layer, value in enumerate(values)
    )
    return (
        '<table class="probabilities influence"><caption>Block influence by layer: how much each one turns '
        f"what passes through it</caption><tbody>{rows}</tbody></table>"
    )


@dataclass(frozen=True)
class Made:
    """One model of a lesson. `cut`: whether it is the one after the cut that the report describes."""

    title: str
    report: Report
    cut: bool
    said: str


def made(rows: Sequence[Made], prompt: str, genres: Mapping[str, str]) -> str:
    """The models of a lesson: size, perplexity overall and by kind of text, and what each one writes."""
    head = "".join(f"<th>{escape(title)}</th>" for title in genres.values())
    body = "".join(_made(row, prompt, genres) for row in rows)
    return (
        '<div class="wide"><table class="measures made"><caption><span class="stay">Perplexity, lower is '
        "better; in brackets the ratio to the whole model</span></caption><thead><tr><th>model</th>"
        f"<th>parameters</th><th>all</th>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _made(row: Made, prompt: str, genres: Mapping[str, str]) -> str:
    report = row.report
    quality = report.after.quality if row.cut else report.before.quality
    parameters = report.after.parameters if row.cut else report.before.parameters
    ratio = ""
    if row.cut:
        value = format_number(quality.overall.value / report.before.quality.overall.value, 2)
        ratio = f"<br><small>(× {value})</small>"
    cells = "".join(f"<td>{format_number(quality.genres[genre].value)}</td>" for genre in genres)
    return (
        f"<tr><th>{escape(row.title)}</th><td>{parameters:,}</td><td>{format_number(quality.overall.value)}{ratio}</td>"
        f'{cells}</tr><tr class="said"><td colspan="{3 + len(genres)}"><span class="stay">'
        f'<span class="prompt">{escape(prompt)}</span>{escape(row.said)}</span></td></tr>'
    )
