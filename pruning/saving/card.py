"""The model card: what the model is, what it lost, and what was not done."""

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from pruning.errors import ModelError
from pruning.evaluation.perplexity import Perplexity
from pruning.loading.source import Source
from pruning.saving.provenance import provenance
from pruning.steps import Distillation
from pruning.text.passages import GENRES, passage

TAG = "secateur"
LICENSES_NOT_INHERITED = (None, "", "unknown")

_PASSAGES = "secateur-heldout-"
_PERPLEXITY = "perplexity"


def model_card(pruned, name: str) -> ModelCard:
    """The card of a pruned model, from its recipe and its report.

    What programs read is in its front matter: the perplexities as the results of a model index, and
    under `secateur` the number of parameters and the recipe's digest.
    """
    report, recipe = pruned.report, pruned.recipe
    data = ModelCardData(
        base_model=pruned.source.hub_id,
        **_license(pruned.source),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[TAG, "pruned", "structured-pruning", *(step.step for step in recipe.steps)],
        model_name=name,
        eval_results=_results(report),
        secateur={"recipe": recipe.digest, "parameters": report.parameters_after},
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_body(pruned, name)}")


def _license(source: Source) -> dict[str, str]:
    """The base's licence; one that the Hub does not know comes with its name and its text's address."""
    if source.license in LICENSES_NOT_INHERITED:
        return {}
    license = {"license": source.license}
    note = source.folder / "README.md"
    if source.license != "other" or not note.is_file():
        return license
    told = ModelCard.load(note, ignore_metadata_errors=True).data
    if told.license_name:
        license["license_name"] = str(told.license_name)
    if told.license_link:
        license["license_link"] = _address(str(told.license_link), source)
    return license


def _address(link: str, source: Source) -> str:
    """Where a link in the base's card leads: a file's name there means nothing here."""
    if source.hub_id is None or re.match(r"https?://", link):
        return link
    return f"https://huggingface.co/{source.hub_id}/blob/{source.revision}/{link.removeprefix('./')}"


def _results(report) -> list[EvalResult] | None:
    if report.quality_after is None:
        return None
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Language modelling",
            dataset_type=f"{_PASSAGES}{genre}",
            dataset_name=f"Bundled passages: {result.text}",
            dataset_revision=text_revision(genre),
            metric_type=metric,
            metric_name=f"{title} ({result.tokens} tokens, windows of {result.window})",
            metric_value=round(value, 4),
            metric_args={"tokens": result.tokens, "window": result.window},
        )
        for genre, result in report.quality_after.genres.items()
        for metric, title, value in (
            (_PERPLEXITY, "Perplexity", result.value),
            ("bits_per_byte", "Bits per byte", result.bits_per_byte),
        )
        if value is not None and math.isfinite(value)
    ] or None


def text_revision(genre: str) -> str:
    """Sixteen hexadecimal digits that identify a genre's held-out passage."""
    return sha256(passage(genre, "heldout").encode()).hexdigest()[:16]


@dataclass(frozen=True)
class CardClaims:
    """What a card says in numbers. `perplexities`: those by genre that were measured on these passages."""

    recipe: str | None
    parameters: int | None
    perplexities: dict[str, Perplexity]


def read_card(folder: Path) -> CardClaims:
    """What the card in a folder states. Raises `ModelError` where there is none that can be read."""
    note = folder / "README.md"
    if not note.is_file():
        raise ModelError(f"{folder.name} has no model card, README.md. Save the model again.")
    try:
        data = ModelCard.load(note).data
        stated = data.get("secateur") or {}
        return CardClaims(
            recipe=stated.get("recipe"),
            parameters=stated.get("parameters"),
            perplexities={
                genre: Perplexity(
                    float(result.metric_value),
                    int(result.metric_args["tokens"]),
                    int(result.metric_args["window"]),
                    result.dataset_name,
                )
                for result in data.eval_results or []
                for genre in GENRES
                if result.metric_type == _PERPLEXITY
                and result.dataset_type == f"{_PASSAGES}{genre}"
                and result.dataset_revision == text_revision(genre)
            },
        )
    except Exception as error:  # A card is written by people: whatever stands there is no bug here.
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"The model card of {folder.name} cannot be read: {reason}. Mend README.md."
        ) from None


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
        _qualities(report, recipe),
        _samples(report),
        "## What was not done",
        _limits(recipe),
        "## Recipe",
        "The same recipe on the same base, machine and libraries gives the same weights file. From a folder "
        "or a repository that holds `recipe.yaml`, `python -m pruning prune --recipe … --output …` makes "
        "the model again, and `python -m pruning verify …` checks it against this card.",
        _fenced(recipe.to_yaml(), "yaml"),
        _origin(pruned),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _origin(pruned) -> str:
    """Where the model came from, and when: the time stands here alone, and in no other file."""
    facts = {"made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")} | provenance(pruned)
    return _fenced("".join(f"{key}: {value}\n" for key, value in facts.items()), "text")


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


def _qualities(report, recipe) -> str:
    if report.quality_after is None:
        return "Quality was not measured."
    before, after = report.quality_before, report.quality_after
    pairs = [(result, after.genres[genre]) for genre, result in before.genres.items()]
    pairs.append((before.overall, after.overall))
    measure, field = "Perplexity", "value"
    if any(step.changes_vocabulary for step in recipe.steps):
        measure = "Bits per byte, which compare models with different vocabularies as perplexity does not"
        field = "bits_per_byte"
    rows = [_quality_row(first, second, field) for first, second in pairs]
    return f"{measure}, lower is better, on passages that calibration did not see:\n\n" + _table(
        ("text", "tokens", "window", "before", "after", "ratio"), rows
    )


def _quality_row(before: Perplexity, after: Perplexity, field: str) -> tuple[str, ...]:
    first, second = getattr(before, field), getattr(after, field)
    return (
        before.text,
        f"{after.tokens:,}",
        str(after.window),
        f"{first:.2f}",
        f"{second:.2f}",
        f"{second / first:.2f}",
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
    distilled = any(isinstance(step, Distillation) for step in recipe.steps)
    retraining = " beyond the recipe's distillation" if distilled else ": what was lost was not learned again"
    return (
        f"- No retraining{retraining}.\n"
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
