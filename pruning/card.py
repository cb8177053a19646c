"""The model card: what the model is, what it lost, and what was not done."""

import math
import re

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from pruning.evaluation import Perplexity

TAG = "secateur"
LICENCES_NOT_INHERITED = (None, "", "unknown")


def model_card(pruned, name: str) -> ModelCard:
    """The card of a pruned model, from its recipe and its report."""
    source, report, recipe = pruned.source, pruned.report, pruned.recipe
    data = ModelCardData(
        base_model=source.hub_id,
        license=None if source.licence in LICENCES_NOT_INHERITED else source.licence,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[TAG, "pruned", "structured-pruning", *(step.step for step in recipe.steps)],
        model_name=name,
        eval_results=_results(report),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_body(pruned, name)}")


def _results(report) -> list[EvalResult] | None:
    if report.quality_after is None:
        return None
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Language modelling",
            dataset_type=f"secateur-heldout-{genre}",
            dataset_name=f"Bundled passages: {result.text}",
            metric_type="perplexity",
            metric_name=f"Perplexity ({result.tokens} tokens, windows of {result.window})",
            metric_value=round(result.value, 3),
        )
        for genre, result in report.quality_after.genres.items()
        if math.isfinite(result.value)
    ] or None


def _body(pruned, name: str) -> str:
    source, report, recipe = pruned.source, pruned.report, pruned.recipe
    base = f"[{source.hub_id}](https://huggingface.co/{source.hub_id})" if source.hub_id else "a local model"
    share = 1 - report.parameters_after / report.parameters_before
    cuts = "; ".join(step.describe() for step in recipe.steps)
    parts = [
        f"# {name}",
        f"{base}, pruned: {report.parameters_before:,} → **{report.parameters_after:,} parameters** "
        f"(−{share:.1%}). Cut: {cuts}. It loads with plain `transformers`; no custom code.",
        _usage(),
        "## What it lost",
        _sizes(report),
        _qualities(report),
        _samples(report),
        "## What was not done",
        _limits(recipe),
        "## Recipe",
        f"Base revision: `{source.revision}`. Made with Secateur; the same recipe on the same base and "
        "machine gives the same weights.",
        _fenced(recipe.to_yaml(), "yaml"),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _usage() -> str:
    return _fenced(
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("this/repository")\n'
        'tokenizer = AutoTokenizer.from_pretrained("this/repository")\n',
        "python",
    )


def _sizes(report) -> str:
    rows = [
        ("Parameters", f"{report.parameters_before:,}", f"{report.parameters_after:,}"),
        *(
            (f"– {part}", f"{before:,}", f"{report.components_after[part]:,}")
            for part, before in report.components_before.items()
            if before
        ),
        (
            "Weights on disk",
            f"{report.bytes_before / 1e6:.0f} MB",
            f"{report.bytes_after / 1e6:.0f} MB",
        ),
    ]
    if report.speed_after:
        rows.append(
            (
                "Generation, tokens per second (batch 1, where it was made)",
                f"{report.speed_before:.1f}",
                f"{report.speed_after:.1f}",
            )
        )
    return _table(("", "before", "after"), rows)


def _qualities(report) -> str:
    if report.quality_after is None:
        return "Quality was not measured."
    rows = [
        _quality_row(result, report.quality_after.genres[genre])
        for genre, result in report.quality_before.genres.items()
    ]
    rows.append(_quality_row(report.quality_before.overall, report.quality_after.overall))
    return "Perplexity, lower is better, on passages that calibration did not see:\n\n" + _table(
        ("text", "tokens", "window", "before", "after", "ratio"), rows
    )


def _quality_row(before: Perplexity, after: Perplexity) -> tuple[str, ...]:
    return (
        before.text,
        f"{after.tokens:,}",
        str(after.window),
        f"{before.value:.2f}",
        f"{after.value:.2f}",
        f"{after.value / before.value:.2f}",
    )


def _samples(report) -> str:
    if not report.samples:
        return ""
    shown = [
        _fenced(f"{prompt}\n\nbefore: {prompt}{before}\n\nafter:  {prompt}{after}\n", "text")
        for prompt, before, after in report.samples
    ]
    return "Greedy continuations, before and after:\n\n" + "\n\n".join(shown)


def _limits(recipe) -> str:
    return (
        "- No retraining: what was lost was not learned again.\n"
        "- No evaluation of safety, bias or truthfulness. Pruning can change all three; the base model's "
        "limits apply at the least.\n"
        f"- Perplexity on a few thousand tokens is a coarse measure. The text that chose what to keep was "
        f"`{recipe.calibration.text}` ({recipe.calibration.tokens:,} tokens at most); other uses lose more."
    )


def _table(head: tuple[str, ...], rows) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _fenced(text: str, language: str) -> str:
    """A code block that nothing in the text can close; what cannot be printed is a �."""
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "�", text)
    runs = re.findall(r"`{3,}", text)
    fence = "`" * max([3, *(len(run) + 1 for run in runs)])
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
