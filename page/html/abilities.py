"""The panel of what a pruned model can still do: skills, then answers. All text is escaped."""

from datetime import date
from html import escape

from page.html.heading import describe_cut, format_date
from page.html.render import message
from pruning.evaluation.abilities import Abilities, AnswerComparison, SkillComparison
from pruning.evaluation.skills import SKILLS
from pruning.recipe import Recipe

TITLE = "What it can still do"
EXPLANATION = (
    "Each model picks the right one of a few completions; guessing gets the share under chance. A good answer is "
    "right, ended by the model itself, and does not repeat itself. A program judges it."
)


def placeholder(text: str) -> str:
    """Render the panel before anything is measured, with a sentence that says why it is empty."""
    return f'<section class="abilities empty"><h2>{TITLE}</h2><p class="note">{escape(text)}</p></section>'


def abilities_panel(abilities: Abilities, recipe: Recipe, recorded: date | None = None) -> str:
    """Render what is measured so far.

    Args:
        abilities: The skills, and the answers if there are any yet.
        recipe: The recipe of the pruned model.
        recorded: The day on which it was measured, if not just now.
    """
    made = "" if recorded is None else f" Recorded on {escape(format_date(recorded))}."
    rows = _row("All skills", abilities.overall) + "".join(
        _row(SKILLS.get(skill, skill), compared) for skill, compared in abilities.skills.items()
    )
    return (
        f'<section class="abilities"><h2>{TITLE}</h2>'
        f'<p class="note">{escape(describe_cut(recipe))}.{made}</p>'
        '<table class="measures"><thead><tr><th scope="col">skills</th><th scope="col">original</th>'
        '<th scope="col">pruned</th><th scope="col">chance</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
        f'<p class="verdict">{escape(abilities.overall.difference.describe())}</p>'
        f"{_answers(abilities)}"
        f"<details><summary>How this is measured</summary><p>{EXPLANATION}</p></details></section>"
    )


def _row(title: str, compared: SkillComparison) -> str:
    base, pruned = compared.base, compared.pruned
    margins = f"{base.items:,} items"
    if base.margin is not None and pruned.margin is not None:
        margins += f"; mean margin {base.margin:.3f} → {pruned.margin:.3f} nats per byte"
    return (
        f'<tr><th scope="row">{escape(title)}<small>{margins}</small></th><td>{_percent(base.accuracy)}</td>'
        f"<td>{_percent(pruned.accuracy)}</td><td>{_percent(pruned.chance)}</td></tr>"
    )


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
        f"{first} Of {compared.items} answers, {compared.pruned_loops} repeat themselves, "
        f"and {compared.base_loops} of the original's."
    )
