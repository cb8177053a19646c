"""Every measure of a model as plain values, alone or beside its base's: what `evaluate --json` prints."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pruning.evaluation import skills
from pruning.evaluation.answers import Answers, AnswersKept, compare
from pruning.evaluation.paired import Interval, paired_difference, paired_mean_difference
from pruning.evaluation.perplexity import Perplexity
from pruning.evaluation.skills import SkillsResult


@dataclass(frozen=True)
class Measures:
    """What was measured of one model; None for what was not asked for.

    Attributes:
        perplexity: On the text.
        genres: Perplexity by genre; empty for a user's text.
        answers: What it answered to the bundled questions.
        skills: What it can do.
    """

    perplexity: Perplexity | None = None
    genres: dict[str, Perplexity] | None = None
    answers: Answers | None = None
    skills: SkillsResult | None = None


def to_dict(measures: Measures, base: Measures | None = None) -> dict[str, Any]:
    """Return measures as plain values.

    Args:
        measures: Those of the model.
        base: Those of the base; each value then comes with the base's, the difference and its interval.
    """
    values: dict[str, Any] = {}
    if measures.perplexity is not None:
        values |= _perplexity(measures, base)
    if measures.answers is not None:
        values["answers"] = _answers(measures.answers, base.answers if base else None)
    if measures.skills is not None:
        values["skills"] = _skills(measures.skills, base.skills if base else None)
    return values


def _perplexity(measures: Measures, base: Measures | None) -> dict[str, Any]:
    measured, genres = measures.perplexity, measures.genres or {}
    assert measured is not None
    values: dict[str, Any] = {
        "perplexity": measured.value,
        "bits_per_byte": measured.bits_per_byte,
        "tokens": measured.tokens,
        "window": measured.window,
        "text": measured.text,
        "genres": {genre: result.value for genre, result in genres.items()},
        "genres_bits_per_byte": {genre: result.bits_per_byte for genre, result in genres.items()},
    }
    if base is None or base.perplexity is None:
        return values
    before = base.perplexity
    values["against"] = {"perplexity": _ratio(before.value, measured.value)}
    if before.bits_per_byte is not None and measured.bits_per_byte is not None:
        values["against"]["bits_per_byte"] = {
            "base": before.bits_per_byte,
            "difference": measured.bits_per_byte - before.bits_per_byte,
            "interval": _genre_interval(base.genres or {}, genres, lambda result: result.bits_per_byte),
        }
    return values


def _ratio(base: float, value: float) -> dict[str, Any]:
    return {"base": base, "difference": value - base, "ratio": value / base, "interval": None}


def _genre_interval(
    base: dict[str, Perplexity], genres: dict[str, Perplexity], value: Callable[[Perplexity], float | None]
) -> list[float] | None:
    """Return Student's interval of the mean difference over genres; None if there are too few of them."""
    pairs = [
        (before, after)
        for genre in genres
        if genre in base
        if (before := value(base[genre])) is not None and (after := value(genres[genre])) is not None
    ]
    if len(pairs) < 2:
        return None
    interval = paired_mean_difference([before for before, _ in pairs], [after for _, after in pairs])
    return [interval.low, interval.high]


def _answers(answers: Answers, base: Answers | None) -> dict[str, Any]:
    values = answers.to_dict()
    if base is None:
        return values
    kept = compare(base, answers)
    difference = paired_difference(
        [answer.good for answer in base.judged], [answer.good for answer in answers.judged]
    )
    return values | {
        "base": base.good,
        "difference": answers.good - base.good,
        "interval": [limit * answers.items for limit in (difference.low, difference.high)],
        "kept": _kept(kept),
        "base_loops": base.loops,
        "diverged": kept.diverged,
    }


def _kept(kept: AnswersKept) -> dict[str, Any]:
    return {
        "share": kept.kept.share,
        "of": kept.kept.items,
        "interval": [kept.kept.low, kept.kept.high],
    }


def _skills(result: SkillsResult, base: SkillsResult | None) -> dict[str, Any]:
    by_name = {"overall": result.overall, **result.skills}
    values: dict[str, dict[str, Any]] = {
        name: {
            "accuracy": skill.accuracy,
            "items": skill.items,
            "excluded": skill.excluded,
            "chance": skill.chance,
            "margin": skill.margin,
        }
        for name, skill in by_name.items()
    }
    if base is None:
        return values
    compared = skills.compare_skills(base, result)
    before = {"overall": base.overall, **base.skills}
    for name, difference in {"overall": compared.overall, **compared.skills}.items():
        values[name] |= {
            "base": before[name].accuracy,
            "difference": _difference(before[name].accuracy, by_name[name].accuracy),
            "interval": _limits(difference.accuracy),
            "base_margin": before[name].margin,
            "margin_interval": _limits(difference.margin),
        }
    return values


def _difference(base: float | None, value: float | None) -> float | None:
    return None if base is None or value is None else value - base


def _limits(interval: Interval | None) -> list[float] | None:
    if interval is None or not all(map(math.isfinite, (interval.low, interval.high))):
        return None
    return [interval.low, interval.high]
