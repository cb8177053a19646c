"""The model card: what the model is, what it lost, and what was not done. Its text is in `card.md.j2`."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from pruning import catalog
from pruning.errors import ModelError
from pruning.evaluation.abilities import SkillComparison, compare_abilities
from pruning.evaluation.panels import ANSWERS, SKILLS, revision
from pruning.evaluation.perplexity import Perplexity
from pruning.evaluation.skills import SKILLS as SKILL_TITLES
from pruning.formatting import UNIT_TITLES, printable
from pruning.guard import warn_of_ruin
from pruning.loading.metadata import short_text
from pruning.loading.source import Source
from pruning.recipe import Recipe
from pruning.report import Report
from pruning.saving.older_readers import least_version
from pruning.saving.provenance import provenance
from pruning.steps import Distillation
from pruning.text.passages import GENRES, passage

TAG = "secateur"
LICENSES_NOT_INHERITED = (None, "", "unknown")

MAX_CARD_BYTES = 1_000_000
"""The largest model card that is read."""

FRONT_MATTER = re.compile(r"\s*---[ \t\r]*\n(.*?)\n---[ \t\r]*(?:\n|$)", re.DOTALL)

MAX_FRONT_MATTER = 16_384
"""The most characters of front matter that are read: pure Python parses YAML slowly."""

_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PASSAGES = "secateur-heldout-"
_PERPLEXITY = "perplexity"
_PANEL = "secateur-"

# The card is Markdown for the Hub, not HTML for a browser: nothing is escaped, and code is fenced.
_TEMPLATES = Environment(
    loader=PackageLoader("pruning", "saving"), undefined=StrictUndefined, keep_trailing_newline=True
)


def model_card(name: str, *, source: Source, recipe: Recipe, report: Report) -> ModelCard:
    """Write the card of a pruned model.

    What programs read is in its front matter: the perplexities as the results of a model index, and
    under `secateur` the number of parameters and the recipe's digest.

    Args:
        name: The model's name.
        source: Where its base comes from.
        recipe: How it was made.
        report: What was measured.
    """
    data = ModelCardData(
        base_model=source.base.hub_id,
        **_license(source.base),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[TAG, "pruned", "structured-pruning", *(step.step for step in recipe.steps)],
        model_name=name,
        eval_results=_results(report),
        secateur={"recipe": recipe.digest, "parameters": report.after.parameters},
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_body(name, source, recipe, report)}")


def _license(source: Source) -> dict[str, Any]:
    """Return the base's license; one that the Hub does not know comes with its name and the link to its text."""
    name = short_text(source.license)
    if name is None or name in LICENSES_NOT_INHERITED:
        return {}
    license: dict[str, Any] = {"license": name}
    if (entry := catalog.find(source.name)) and entry.license == name and entry.license_link:
        return license | {"license_name": entry.license_name, "license_link": entry.license_link}
    data = _base_card_data(source) if name == "other" else {}
    if own_name := short_text(data.get("license_name")):
        license["license_name"] = own_name
    if link := _absolute_link(short_text(data.get("license_link")), source):
        license["license_link"] = link
    return license


def _base_card_data(source: Source) -> dict[str, Any]:
    """Return the front matter of the base's card; empty if there is none that can be read."""
    file = source.folder / "README.md"
    try:
        if file.stat().st_size > MAX_CARD_BYTES:
            return {}
        found = FRONT_MATTER.match(file.read_text(encoding="utf-8")[:MAX_FRONT_MATTER])
        values = yaml.load(found[1], _YAML_LOADER) if found else {}
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def _absolute_link(link: str | None, source: Source) -> str | None:
    """Return where a link in the base's card leads: the name of a file there means nothing here."""
    if link is None or re.match(r"https?://[^\s<>\"]+$", link):
        return link
    if not re.match(r"[\w./-]+$", link):
        return None
    if source.hub_id is None:
        return link
    return f"https://huggingface.co/{source.hub_id}/blob/{source.revision}/{link.removeprefix('./')}"


def _results(report: Report) -> list[EvalResult] | None:
    return [*_perplexity_results(report), *_panel_results(report)] or None


def _panel_results(report: Report) -> Iterator[EvalResult]:
    """Yield what the pruned model did on the bundled panels of questions."""
    answers, skills, kept = report.after.answers, report.after.skills, report.answers_kept
    if answers is not None and answers.items:
        yield _panel_result(
            ANSWERS, "good_answers", "Good answers", answers.good / answers.items, answers.items
        )
    if kept is not None and kept.kept.share is not None:
        yield _panel_result(
            ANSWERS, "good_answers_kept", "Good answers of the base kept", kept.kept.share, kept.kept.items
        )
    if skills is not None and skills.overall.accuracy is not None:
        yield _panel_result(SKILLS, "accuracy", "Accuracy", skills.overall.accuracy, skills.overall.items)


def _panel_result(panel: str, metric: str, title: str, value: float, items: int) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        task_name="Questions",
        dataset_type=f"{_PANEL}{panel}",
        dataset_name=f"Bundled questions: {panel}",
        dataset_revision=revision(panel),
        metric_type=metric,
        metric_name=f"{title} ({items} questions)",
        metric_value=round(value, 4),
        metric_args={"items": items},
    )


def _perplexity_results(report: Report) -> list[EvalResult]:
    if report.after.quality is None:
        return []
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Language modeling",
            dataset_type=f"{_PASSAGES}{genre}",
            dataset_name=f"Bundled passages: {result.text}",
            dataset_revision=text_revision(genre),
            metric_type=metric,
            metric_name=f"{title} ({result.tokens} tokens, windows of {result.window})",
            metric_value=round(value, 4),
            metric_args={"tokens": result.tokens, "window": result.window},
        )
        for genre, result in report.after.quality.genres.items()
        for metric, title, value in (
            (_PERPLEXITY, "Perplexity", result.value),
            ("bits_per_byte", "Bits per byte", result.bits_per_byte),
        )
        if value is not None and math.isfinite(value)
    ]


def text_revision(genre: str) -> str:
    """Return sixteen hexadecimal digits that identify a genre's held-out passage."""
    return sha256(passage(genre, "heldout").encode()).hexdigest()[:16]


@dataclass(frozen=True)
class CardClaims:
    """What a card claims in numbers.

    Attributes:
        recipe: The digest of the recipe.
        parameters: How many there are.
        perplexities: By genre, those that were measured on these passages.
        good_answers: The share of good answers to these questions.
        accuracy: The accuracy on these items of the skills.
    """

    recipe: str | None
    parameters: int | None
    perplexities: dict[str, Perplexity]
    good_answers: float | None = None
    accuracy: float | None = None


def read_card(folder: Path) -> CardClaims:
    """Read what the card in a folder claims. Raises `ModelError` if there is none that can be read."""
    card = folder / "README.md"
    if not card.is_file():
        raise ModelError(f"{folder.name} has no model card, README.md. Save the model again.")
    if card.stat().st_size > MAX_CARD_BYTES:
        raise ModelError(
            f"The model card of {folder.name} is larger than {MAX_CARD_BYTES:,} bytes. Shorten README.md."
        )
    try:
        data = ModelCard.load(card).data
        claims = data.get("secateur") or {}
        parameters = claims.get("parameters")
        results = data.eval_results or []
        return CardClaims(
            recipe=short_text(claims.get("recipe")),
            parameters=parameters if type(parameters) is int else None,
            perplexities={
                genre: Perplexity(
                    float(result.metric_value),
                    int(result.metric_args["tokens"]),
                    int(result.metric_args["window"]),
                    str(short_text(result.dataset_name)),
                )
                for result in results
                for genre in GENRES
                if result.metric_type == _PERPLEXITY
                and result.dataset_type == f"{_PASSAGES}{genre}"
                and result.dataset_revision == text_revision(genre)
            },
            good_answers=_claimed(results, ANSWERS, "good_answers"),
            accuracy=_claimed(results, SKILLS, "accuracy"),
        )
    except Exception as error:  # People write cards: whatever is in one is not a bug here.
        reason = " ".join(str(error)[:1000].split())[:200]
        raise ModelError(
            f"The model card of {folder.name} cannot be read: {reason}. Fix README.md."
        ) from None


def _claimed(results: Sequence[EvalResult], panel: str, metric: str) -> float | None:
    """Return what a card claims on a panel; None if nothing, or if the panel has changed since."""
    for result in results:
        if (result.dataset_type, result.metric_type) == (f"{_PANEL}{panel}", metric):
            return float(result.metric_value) if result.dataset_revision == revision(panel) else None
    return None


@dataclass(frozen=True)
class QualityRow:
    """One row of the card's table of quality."""

    text: str
    tokens: int
    window: int
    base: float
    pruned: float


def _body(name: str, source: Source, recipe: Recipe, report: Report) -> str:
    hub_id = source.hub_id or ""
    is_id = re.fullmatch(r"[\w.-]+(?:/[\w.-]+)?", hub_id, re.ASCII)
    hub_link = f"[{inline(hub_id)}](https://huggingface.co/{hub_id})" if is_id else inline(hub_id)
    changes_vocabulary = any(step.changes_vocabulary for step in recipe.steps)
    return _TEMPLATES.get_template("card.md.j2").render(
        name=inline(name),
        base=hub_link if source.hub_id else "A local model",
        share_removed=1 - report.after.parameters / report.before.parameters,
        steps="; ".join(inline(step.describe()) for step in recipe.steps),
        report=report,
        notes=[inline(note) for note in source.notes],
        least_version=least_version(source.config),
        recipe=recipe,
        changes_vocabulary=changes_vocabulary,
        qualities=_quality_rows(report, "bits_per_byte" if changes_vocabulary else "value"),
        distilled=any(isinstance(step, Distillation) for step in recipe.steps),
        origin=_origin(source, recipe),
        fenced=fenced,
        unit_titles=UNIT_TITLES,
        skills=_skills(report),
        warning=warn_of_ruin(recipe.steps, report),
    )


def _quality_rows(report: Report, measure: str) -> list[QualityRow]:
    """Return the quality of both models by genre, and overall in the last row."""
    base, pruned = report.before.quality, report.after.quality
    if base is None or pruned is None:
        return []
    pairs = [(result, pruned.genres[genre]) for genre, result in base.genres.items()]
    pairs.append((base.overall, pruned.overall))
    return [
        QualityRow(
            first.text, second.tokens, second.window, getattr(first, measure), getattr(second, measure)
        )
        for first, second in pairs
    ]


def _skills(report: Report) -> dict[str, SkillComparison]:
    """Return the skills of both models overall, and each with enough items for an interval, by the name of its row."""
    before, after = report.before.skills, report.after.skills
    if before is None or after is None:
        return {}
    compared = compare_abilities(before, after)
    rows = {"Skills, overall": compared.overall} | {
        f"Skills, {SKILL_TITLES[skill].lower()}": comparison for skill, comparison in compared.skills.items()
    }
    return {name: row for name, row in rows.items() if None not in (row.base.accuracy, row.pruned.accuracy)}


def _origin(source: Source, recipe: Recipe) -> str:
    """Return where the model came from, and when: no other file holds the time."""
    facts: Mapping[str, Any] = {
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        **provenance(source, recipe),
    }
    return "".join(f"{key}: {' '.join(str(value).split())}\n" for key, value in facts.items())


def inline(text: str) -> str:
    """Return a text that Markdown shows as it is, on one line; characters that cannot be printed become spaces."""
    line = " ".join(printable(text).split())
    return re.sub(r"([\\`*<>\[\]|#&!~]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", line)


def fenced(text: str, language: str) -> str:
    """Return a code block that nothing in the text can close; characters that cannot be printed become �."""
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "�", text)
    runs = re.findall(r"`{3,}", text)
    fence = "`" * max([3, *(len(run) + 1 for run in runs)])
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
