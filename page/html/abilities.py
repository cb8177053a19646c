"""The panel of what a pruned model can still do: skills, then answers. All text is escaped."""

from datetime import date
from html import escape

from page.html.heading import describe_cut, format_date
from page.html.render import message
from page.html.results import PENDING
from pruning.evaluation.abilities import Abilities, AnswerComparison, SkillComparison
from pruning.evaluation.skills import LEAST_ITEMS, SKILLS, panel
from pruning.recipe import Recipe

TITLE = "What it can still do"
ALL_SKILLS = "All skills"
EXPLANATION = (
    "Each model picks the right one of a few completions; guessing gets the share under chance. A good answer is "
    "right, ended by the model itself, and does not repeat itself. A program judges it."
)


def placeholder(text: str) -> str:
    """Render the panel before anything is measured, with its rows in place and a sentence that says why."""
    titles = [ALL_SKILLS, *(title for skill, title in SKILLS.items() if _items_of(skill) >= LEAST_ITEMS)]
    rows = "".join(_row(title, PENDING, *[PENDING] * 3) for title in titles)
    return f'<section class="abilities"><h2>{TITLE}</h2><p class="note">{escape(text)}</p>{_table(rows)}</section>'


def _items_of(skill: str) -> int:
    return sum(item.skill == skill for item in panel("reported"))


def abilities_panel(abilities: Abilities, recipe: Recipe, recorded: date | None = None) -> str:
    """Render what is measured so far.

    Args:
        abilities: The skills, and the answers if there are any yet.
        recipe: The recipe of the pruned model.
        recorded: The day on which it was measured, if not just now.
    """
    made = "" if recorded is None else f" Recorded on {escape(format_date(recorded))}."
    rows = _compared_row(ALL_SKILLS, abilities.overall) + "".join(
        _compared_row(SKILLS.get(skill, skill), compared) for skill, compared in abilities.skills.items()
    )
    return (
        f'<section class="abilities"><h2>{TITLE}</h2>'
        f'<p class="note">{escape(describe_cut(recipe))}.{made}</p>'
        f"{_table(rows)}"
        f'<p class="verdict">{escape(abilities.overall.difference.describe())}{escape(_margins(abilities.overall))}</p>'
        f"{_answers(abilities)}"
        f"<details><summary>How this is measured</summary><p>{EXPLANATION}</p></details></section>"
    )


def _table(rows: str) -> str:
    return (
        '<table class="measures"><thead><tr><th scope="col">skills</th><th scope="col">original</th>'
        '<th scope="col">pruned</th><th scope="col">chance</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def _compared_row(title: str, compared: SkillComparison) -> str:
    base, pruned = compared.base, compared.pruned
    return _row(
        title, f"{base.items:,} items", *map(_percent, (base.accuracy, pruned.accuracy, pruned.chance))
    )


def _row(title: str, detail: str, *values: str) -> str:
    cells = "".join(f"<td>{escape(value)}</td>" for value in values)
    return f'<tr><th scope="row">{escape(title)}<small>{escape(detail)}</small></th>{cells}</tr>'


def _margins(compared: SkillComparison) -> str:
    """Say the mean margins of both models, after another sentence."""
    base, pruned = compared.base.margin, compared.pruned.margin
    return "" if base is None or pruned is None else f" Mean margin: {base:.3f} → {pruned:.3f}."


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _answers(abilities: Abilities) -> str:
    if abilities.no_answers:
        return message(abilities.no_answers)
    if abilities.answers is None:
        return message("The answers are measured next.")
    return f'<p class="verdict">{escape(describe_answers(abilities.answers))}</p>'


def describe_answers(compared: AnswerComparison) -> str:
    """Say in two sentences how many good answers are kept, and how many answers loop."""
    kept = compared.kept.kept
    if kept.share is None:
        first = f"The original got none of {compared.items} answers good."
    else:
        first = (
            f"Of the {kept.items} good answers of the original, {kept.share:.0%} are still good: "
            f"{kept.confidence:.0%} interval {kept.low:.0%} to {kept.high:.0%}."
        )
    return (
        f"{first} Of {compared.items} answers, {compared.pruned_loops} of the pruned model's repeat themselves, "
        f"and {compared.base_loops} of the original's."
    )
