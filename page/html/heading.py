"""The heading of the results: what was removed, when that was recorded, and for which settings. All text is escaped."""

import json
from collections.abc import Sequence
from datetime import date
from html import escape

from pruning.recipe import Recipe

CHANGED = "The settings have changed: press Prune."


def heading(recipe: Recipe, settings: Sequence[object] = (), recorded: date | None = None) -> str:
    """Render the heading of some results.

    Args:
        recipe: The recipe that they are of.
        settings: The values of the controls that asked for them, which a script compares with those of the moment.
        recorded: The day on which they were made, if they were made before and not just now.
    """
    made = "" if recorded is None else f'<p class="recorded">Recorded on {escape(format_date(recorded))}.</p>'
    compared = escape(json.dumps(list(settings), ensure_ascii=False), quote=True)
    return (
        f'<div class="result-heading" data-settings="{compared}"><h2>{escape(describe_cut(recipe))}</h2>{made}'
        f'<p class="changed">{CHANGED}</p></div>'
    )


def describe_cut(recipe: Recipe) -> str:
    """Return what a recipe removes, and what else it does, as a heading."""
    removed = [step.describe() for step in recipe.steps if step.step in REMOVING]
    others = [step.describe() for step in recipe.steps if step.step not in REMOVING]
    parts = ([f"{_listed(removed)} removed"] if removed else []) + others
    text = ", then ".join(parts).replace(" %", "%")
    return f"{text[:1].upper()}{text[1:]}"


REMOVING = frozenset({"layers", "experts", "heads", "channels", "neurons", "vocabulary"})
"""The steps that remove something, as opposed to those that change what remains."""


def _listed(parts: Sequence[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def format_date(day: date) -> str:
    """Return a day as `26 November 2026`."""
    return f"{day.day} {day:%B %Y}"
