"""Tables of results: the measures of a report, and the models of a lesson. All text is escaped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from math import exp, inf, log
from statistics import median

from page.html.charts import GenreRow, genre_plot
from page.html.render import format_change, message
from pruning.evaluation.answers import AnswersKept
from pruning.evaluation.perplexity import Perplexity
from pruning.formatting import format_number
from pruning.guard import loss_rise, warn_of_ruin
from pruning.recipe import Recipe
from pruning.report import Report
from pruning.text.passages import GENRES

PENDING = "…"
"""Stands for a value that is not measured yet."""


@dataclass(frozen=True)
class MeasureRow:
    """One row of the table of measures.

    Attributes:
        name: The measure.
        hint: Its definition, folded up below its name.
        original: Its value for the original model, formatted.
        pruned: Its value for the pruned model, formatted.
        change: From the first to the second, formatted; empty if there is none.
        detail: How it was measured, in small print.
    """

    name: str
    hint: str
    original: str = PENDING
    pruned: str = PENDING
    change: str = ""
    detail: str = ""


def measures(report: Report, recipe: Recipe, kept: AnswersKept | None = None) -> str:
    """Render what is measured so far, and the warnings of the recipe's steps.

    Args:
        report: What was measured.
        recipe: What it was measured of.
        kept: How the answers compare with the base's, if they were judged.
    """
    rows = [
        MeasureRow(
            "Parameters",
            "Numbers that the model has learned; tied embeddings are counted once.",
            f"{report.before.parameters:,}",
            f"{report.after.parameters:,}",
            format_change(report.before.parameters, report.after.parameters),
        ),
        MeasureRow(
            "Weights on disk",
            "Size of the safetensors file, in the precision of the original model.",
            f"{report.before.bytes / 1e6:,.0f} MB",
            f"{report.after.bytes / 1e6:,.0f} MB",
            format_change(report.before.bytes, report.after.bytes),
        ),
        _bits_per_byte(report) if changes_vocabulary(recipe) else _perplexity(report),
        *([_speed(report)] if report.before.tokens_per_second else []),
    ]
    warnings = [step.warning for step in recipe.steps if step.warning]
    if (ruin := warn_of_ruin(recipe.steps, report, kept)) is not None:
        warnings.insert(0, ruin)
    return (
        verdict(report, recipe, kept)
        + measures_table(rows)
        + "".join(message(warning, "warning") for warning in warnings)
    )


JUDGMENTS = (
    (0.98, "Better on this text"),
    (1.02, "About as good as the original"),
    (1.1, "Slightly worse"),
    (1.4, "Noticeably worse"),
    (2.0, "Much worse"),
    (inf, "Badly damaged"),
)
"""What a ratio of perplexities is called, each up to its upper end."""


def verdict(report: Report, recipe: Recipe, kept: AnswersKept | None = None) -> str:
    """Render in one sentence what the measures mean; nothing before they are complete, or if the model is ruined."""
    if report.before.quality is None or report.after.quality is None or not report.after.has_full_quality:
        return ""
    if warn_of_ruin(recipe.steps, report, kept) is not None:
        return ""  # The warning is the verdict.
    rise = loss_rise(recipe.steps, report)
    if rise is None:
        return ""
    judgment = next(words for end, words in JUDGMENTS if exp(rise) < end)
    smaller = 1 - report.after.parameters / report.before.parameters
    size = f"{smaller:.1%} smaller" if smaller > 0.0005 else "of the same size"
    before = report.before.quality.overall.value
    meaning = (
        f"it hesitates between {format_number(before * exp(rise), 0)} equally likely next tokens, where the "
        f"original hesitates between {format_number(before, 0)}"
    )
    if changes_vocabulary(recipe):
        meaning = f"its loss on held-out text is {rise / log(before):+.0%} of the original's"
    return f'<p class="verdict"><b>{judgment}</b>, and {size}: {meaning}.</p>'


def measures_table(rows: Sequence[MeasureRow]) -> str:
    """Render measures of the original and the pruned model as a table."""
    body = "".join(
        f'<tr><th scope="row"><details><summary>{escape(row.name)}</summary><p>{escape(row.hint)}</p></details>'
        f"<small>{escape(row.detail)}</small></th>"
        f"<td>{escape(row.original)}</td><td>{escape(row.pruned)}</td><td>{escape(row.change)}</td></tr>"
        for row in rows
    )
    return (
        '<table class="measures"><thead><tr><th scope="col">measure</th><th scope="col">original</th>'
        '<th scope="col">pruned</th><th scope="col">change</th></tr>'
        f"</thead><tbody>{body}</tbody></table>"
    )


def changes_vocabulary(recipe: Recipe) -> bool:
    """Return whether the pruned model has other tokens, so that perplexities are not comparable."""
    return any(step.changes_vocabulary for step in recipe.steps)


def _perplexity(report: Report) -> MeasureRow:
    row = MeasureRow(
        "Perplexity",
        "How many equally likely next tokens the model hesitates between, on average; lower is better.",
    )
    if report.before.quality is None:
        return row
    original = report.before.quality.overall
    row = replace(
        row,
        original=f"{original.value:.1f}",
        detail=f"{original.text}; {original.tokens:,} tokens in windows of {original.window}",
    )
    if report.after.quality is None or not report.after.has_full_quality:
        return row
    pruned = report.after.quality.overall
    ratio = format_number(pruned.value / original.value, 2)
    return replace(row, pruned=format_number(pruned.value), change=f"× {ratio}")


def _bits_per_byte(report: Report) -> MeasureRow:
    row = MeasureRow(
        "Bits per byte",
        "Bits that the model needs for each byte of the text; lower is better. Unlike perplexity, it is "
        "comparable between different vocabularies.",
    )
    if report.before.quality is None or report.before.quality.overall.bits_per_byte is None:
        return row
    original = report.before.quality.overall.bits_per_byte
    row = replace(row, original=f"{original:.3f}", detail=report.before.quality.overall.text)
    if report.after.quality is None or not report.after.has_full_quality:
        return row
    pruned = report.after.quality.overall.bits_per_byte
    if pruned is None:
        return row
    return replace(row, pruned=f"{pruned:.3f}", change=f"{pruned - original:+.3f}")


def _speed(report: Report) -> MeasureRow:
    before, after = report.before, report.after
    row = MeasureRow("Tokens per second", "Generating one text at a time, both models in turn.")
    if before.tokens_per_second is None or after.tokens_per_second is None:
        return row
    ratios = sorted(new / old for old, new in zip(before.speeds, after.speeds, strict=True))
    change = ""
    if ratios:
        low, high = ratios[0], ratios[-1]
        change = f"× {median(ratios):.2f} ({low:.2f} to {high:.2f})"
        if low <= 1 <= high:
            change = "no clear difference"
    return replace(
        row,
        original=f"{before.tokens_per_second:.1f}",
        pruned=f"{after.tokens_per_second:.1f}",
        change=change,
        detail=f"on this machine just now; the ratio and its range over {len(ratios)} rounds"
        if ratios
        else "",
    )


def genres(report: Report, recipe: Recipe) -> str:
    """Plot quality by genre, for the genres measured so far."""
    original = report.before.quality.genres if report.before.quality else {}
    pruned = report.after.quality.genres if report.after.quality else {}
    in_bits = changes_vocabulary(recipe)

    def value(result: Perplexity | None) -> float | None:
        if result is None:
            return None
        return result.bits_per_byte if in_bits else result.value

    rows = [
        GenreRow(title, value(original.get(genre)), value(pruned.get(genre)))
        for genre, title in GENRES.items()
    ]
    return genre_plot(rows, "Bits per byte" if in_bits else "Perplexity", log=not in_bits)


@dataclass(frozen=True)
class LessonRow:
    """One model of a lesson.

    Attributes:
        title: Its name in the table.
        report: The report of a pruned model, which describes the original model too. Evaluated.
        is_pruned: Whether this row is the pruned model of the report, or else the original.
        output: How the model continues the prompt.
    """

    title: str
    report: Report
    is_pruned: bool
    output: str


def lesson_table(rows: Sequence[LessonRow], prompt: str, genre_titles: Mapping[str, str]) -> str:
    """Render the models of a lesson: size, perplexity overall and by genre, and what each one writes.

    Args:
        rows: The models, the original first.
        prompt: What each model continues.
        genre_titles: The genres to show, and the titles of their columns.

    Raises:
        ValueError: A model has not been evaluated.
    """
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in genre_titles.values())
    body = "".join(_lesson_row(row, prompt, list(genre_titles)) for row in rows)
    return (
        '<div class="wide"><table class="measures lesson-models"><caption><span class="sticky">Perplexity '
        "(lower is better). In parentheses: the ratio to the original model.</span></caption>"
        '<thead><tr><th scope="col">model</th><th scope="col">parameters</th><th scope="col">all</th>'
        f"{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _lesson_row(row: LessonRow, prompt: str, genre_names: Sequence[str]) -> str:
    report = row.report
    original = report.before.quality
    quality = report.after.quality if row.is_pruned else original
    if original is None or quality is None:
        raise ValueError(f"The model {row.title!r} has not been evaluated.")
    parameters = report.after.parameters if row.is_pruned else report.before.parameters
    ratio = ""
    if row.is_pruned:
        value = format_number(quality.overall.value / original.overall.value, 2)
        ratio = f"<br><small>(× {value})</small>"
    cells = "".join(f"<td>{format_number(quality.genres[genre].value)}</td>" for genre in genre_names)
    return (
        f'<tr><th scope="row">{escape(row.title)}</th><td>{parameters:,}</td>'
        f"<td>{format_number(quality.overall.value)}{ratio}</td>{cells}</tr>"
        f'<tr class="output"><td colspan="{3 + len(genre_names)}"><span class="sticky">'
        f'<span class="prompt">{escape(prompt)}</span>{escape(row.output)}</span></td></tr>'
    )
