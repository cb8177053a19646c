"""The drawings of the page, as HTML. Everything that a person or a model wrote is escaped."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import log10

from pruning.architectures.families import CHANNEL, KEY_VALUE, LAYER, NEURON, QUERY, TOKEN
from pruning.architectures.shape import Shape
from pruning.criteria import Criterion
from pruning.distillation.progress import TrainingProgress
from pruning.distillation.result import DistillationNote
from pruning.formatting import format_number

COMPONENT_TITLES = {
    "embeddings": ("Embeddings", "One vector for each token of the vocabulary, and for each position"),
    "attention": ("Attention", "Query, key, value and output projections"),
    "mlp": ("MLP", "The projections into and out of the neurons of each layer"),
    "norms": ("Norms", "The scales of the normalisation layers"),
    "head": ("Output head", "The projection to the vocabulary, where it is not tied to the embeddings"),
}


def count(number: int) -> str:
    """Parameters for people: 134.5 M."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}\u202f{unit}"
    return str(number)


def change(before: float, after: float) -> str:
    """−11.8 %, with a true minus."""
    share = (after - before) / before * 100 if before else 0.0
    sign = "−" if share < -0.05 else "+" if share > 0.05 else "±"
    return f"{sign}{abs(share):.1f}\u202f%"


def picture(before: Shape, after: Shape, origin: str = "") -> str:
    """The model as a bar by component, what is cut away ghosted, and the two figures."""
    old, new = before.components, after.components
    total, left = sum(old.values()), sum(new.values())
    parts, legend, rows = [], [], []
    for name, size in old.items():
        if not size:
            continue
        title, hint = COMPONENT_TITLES[name]
        cut = size - new[name]
        share = 100 * size / total
        kept = f'<span class="kept" style="width:{100 * new[name] / size:.3f}%"></span>'
        ghost = f'<span class="ghost" style="width:{100 * cut / size:.3f}%"></span>' if cut else ""
        parts.append(
            f'<div class="part {name}{" touched" if cut else ""}" style="width:{share:.3f}%" '
            f'title="{title}: {size:,}{f" → {new[name]:,}" if cut else ""}">{kept}{ghost}</div>'
        )
        figures = f"{count(size)} → <b>{count(new[name])}</b>" if cut else count(size)
        legend.append(
            f'<li class="{name}{" touched" if cut else ""}" title="{hint}">'
            f"<i></i>{title} <span>{figures}</span></li>"
        )
        rows.append(f"<tr><th>{title}</th><td>{size:,}</td><td>{new[name]:,}</td></tr>")
    said = f"{total:,} parameters before, {left:,} after"
    return (
        '<section class="picture">'
        f'<div class="bar" role="img" aria-label="{said}">{"".join(parts)}</div>'
        f'<ul class="legend">{"".join(legend)}</ul>'
        '<div class="figures">'
        f'<div><span class="figure" id="parameters-before" data-count="{total}">{count(total)}</span>'
        "<small>parameters before</small></div>"
        '<div class="arrow" aria-hidden="true">→</div>'
        f'<div><span class="figure after" id="parameters-after" data-count="{left}">{count(left)}</span>'
        f"<small>after <b>{change(total, left)}</b></small></div>"
        "</div>"
        f'<table class="for-readers"><caption>{said}</caption>{"".join(rows)}</table>'
        f'<p class="whence">{escape(origin)}</p></section>'
    )


UNIT_TITLES = {
    NEURON: "MLP neurons of every layer",
    KEY_VALUE: "key/value groups of every layer",
    QUERY: "attention heads of every layer",
    LAYER: "layers",
    CHANNEL: "channels of the residual stream",
    TOKEN: "tokens of the vocabulary",
}


def cut_note(before: Shape, after: Shape, also: Sequence[str] = ()) -> str:
    """What goes, unit by unit. `also`: what the shape does not show."""
    lines = [
        f"<b>{before.count(unit) - after.count(unit):,}</b> of {before.count(unit):,} {title}"
        for unit, title in UNIT_TITLES.items()
        if after.count(unit) < before.count(unit)
    ]
    lines += [escape(line) for line in also]
    if not lines:
        return '<p class="note">Nothing is cut yet: move the slider.</p>'
    return f'<p class="note">Cut: {"; ".join(lines)}.</p>'


def given_note(steps: Sequence[str]) -> str:
    """A recipe that says more than the controls can, and that Prune follows as it stands."""
    lines = "".join(f"<li>{escape(step)}</li>" for step in steps)
    return (
        f'<div class="given"><p><b>A whole recipe is set.</b> Prune carries it out:</p><ol>{lines}</ol>'
        "<p>Move any control to go back to the controls.</p></div>"
    )


def criterion_note(criterion: Criterion) -> str:
    """A criterion's formula and source, and a warning where it has one."""
    source = escape(criterion.source)
    if criterion.url:
        source = f'<a href="{escape(criterion.url)}" target="_blank" rel="noopener">{source}</a>'
    warning = f'<p class="warning">{escape(criterion.warning)}</p>' if criterion.warning else ""
    needs = "Reads calibration text." if criterion.needs_calibration else "Looks at the weights alone."
    return (
        f'<div class="note"><p class="formula">{escape(criterion.formula)}</p>'
        f"{warning}<p>{needs} {source}.</p></div>"
    )


def status(text: str = "", done: int = 0, total: int = 0, kind: str = "idle", counted: bool = True) -> str:
    """One line on what is going on, how far it is, in a place that is always there.

    `counted`: whether the parts that are done have a number that says something.
    """
    share = 100 * done / total if total else 0
    unknown = "" if total or kind != "busy" else " unknown"
    far = f"{done} of {total}" if total and counted else ""
    return (
        f'<div class="status {kind}" role="status"><span>{escape(text)}</span><span>{far}</span>'
        f'<div class="track{unknown}"><div style="width:{share:.1f}%"></div></div></div>'
    )


def training(progress: TrainingProgress) -> str:
    """Where a training stands."""
    left = f"{progress.seconds_left / 60:.1f} minutes left" if progress.step else "starting"
    line = (
        f"{left}; {progress.tokens:,} tokens read; perplexity {progress.perplexity_before:.1f} → "
        f"{progress.perplexity:.1f} (teacher {progress.perplexity_teacher:.1f})"
    )
    return status(line, progress.done, progress.total, "busy", counted=False)


def taught(note: DistillationNote) -> str:
    """What a training came to."""
    if not note.improved:
        return status(
            "It learnt nothing that helps on held-out text, so the model is as it was.", kind="stopped"
        )
    return status(
        f"Taught on {note.tokens:,} tokens in {note.seconds / 60:.1f} minutes: perplexity "
        f"{note.perplexity_before:.1f} → {note.perplexity_after:.1f} "
        f"(teacher {note.perplexity_teacher:.1f}).",
        kind="done",
    )


def sample(prompt: str, said: str) -> str:
    """What the model says while it learns."""
    return (
        '<section class="sample"><h3>What it says now</h3><p class="text"><span class="prompt">'
        f"{escape(prompt)}</span>{escape(said)}</p></section>"
    )


def texts(prompt: str, before: str, after: str, writing: bool = False) -> str:
    """Both continuations side by side, with the first word at which they part marked."""
    return (
        '<section class="texts">'
        f"{_text('Before', 'before', prompt, before, after, writing)}"
        f"{_text('After', 'after', prompt, after, before, writing)}</section>"
    )


def _text(title: str, kind: str, prompt: str, own: str, other: str, writing: bool) -> str:
    start, end = parting(own, other)
    body = escape(own[:start])
    if end > start:
        body += f"<mark>{escape(own[start:end])}</mark>"
    body += escape(own[end:])
    cursor = '<span class="cursor"></span>' if writing else ""
    return (
        f'<article><h3>{title}</h3><p class="text" id="text-{kind}">'
        f'<span class="prompt">{escape(prompt)}</span>{body}{cursor}</p></article>'
    )


def parting(own: str, other: str) -> tuple[int, int]:
    """Start and end, in `own`, of the first word that differs from `other`; (len, len) if none does.

    While one text is only the beginning of the other, they have not parted.
    """
    same = next((i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), None)
    if same is None:
        return len(own), len(own)
    start = max(own.rfind(" ", 0, same + 1), own.rfind("\n", 0, same + 1)) + 1
    start = min(start, same)
    end = start
    while end < len(own) and (not own[end].isspace() or end <= same):
        end += 1
    return start, end


def empty_texts() -> str:
    """What stands where the texts will be."""
    return (
        '<section class="texts empty"><article><h3>Before</h3><p class="text">What the model says as it '
        'is.</p></article><article><h3>After</h3><p class="text">What it still says after the cut. '
        "Press <b>Prune</b>.</p></article></section>"
    )


@dataclass(frozen=True)
class Measure:
    """One row of the results; figures that are not there yet are an ellipsis."""

    name: str
    hint: str
    before: str = "…"
    after: str = "…"
    change: str = ""
    detail: str = ""


def measures(rows: list[Measure]) -> str:
    """The table of results."""
    body = "".join(
        f'<tr><th title="{escape(row.hint)}">{escape(row.name)}<small>{escape(row.detail)}</small></th>'
        f"<td>{escape(row.before)}</td><td>{escape(row.after)}</td><td>{escape(row.change)}</td></tr>"
        for row in rows
    )
    return (
        '<table class="measures"><thead><tr><th></th><th>before</th><th>after</th><th>change</th></tr>'
        f"</thead><tbody>{body}</tbody></table>"
    )


def genres(results: Sequence[tuple[str, float | None, float | None]], measure: str = "Perplexity") -> str:
    """A measure by genre, before and after, as a dot plot over one scale, each row with its figures."""
    known = [value for _, *pair in results for value in pair if value is not None]
    digits = 3 if max(known, default=100.0) < 10 else 1
    top = _scale(max(known, default=1.0))
    rows = []
    for title, before, after in results:
        dots, figures = "", "…"
        if before is not None:
            dots += _dot("before", before, top)
            figures = f"{before:.{digits}f}"
        if before is not None and after is not None:
            low, high = sorted((_place(before, top), _place(after, top)))
            dots = f'<span class="span" style="left:{low:.2f}%;width:{high - low:.2f}%"></span>{dots}'
            dots += _dot("after", after, top)
            figures = f"{figures} → <b>{format_number(after, digits)}</b>"
        rows.append(f'<tr><th>{escape(title)}</th><td class="plot">{dots}</td><td>{figures}</td></tr>')
    return (
        f'<table class="genres"><caption>{measure} by kind of text, lower is better '
        '<span class="key"><i class="before"></i>before <i class="after"></i>after</span></caption>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _scale(largest: float) -> float:
    return min(max(largest * 1.05, 0.1), 1e12)


def _place(value: float, top: float) -> float:
    """Position in percent. Linear while all is well, logarithmic once a model is ruined."""
    value = min(value, top)
    if top <= 400:
        return 100 * value / top
    return 100 * log10(max(value, 1.0)) / log10(top)


def _dot(kind: str, value: float, top: float) -> str:
    return f'<i class="{kind}" style="left:{_place(value, top):.2f}%" title="{format_number(value)}"></i>'


def message(text: str, kind: str = "note", link: str = "") -> str:
    """A sentence with a link behind it where there is one."""
    anchor = f' <a href="{escape(link)}" target="_blank" rel="noopener">{escape(link)}</a>' if link else ""
    return f'<p class="{kind}">{escape(text)}{anchor}</p>'
