"""What the pages of a room show of their class. All text is escaped."""

from collections.abc import Sequence
from html import escape


def draw_room(
    name: str,
    options: Sequence[str],
    counts: Sequence[int] | None,
    answers: int,
    students: int,
    notes: Sequence[str] = (),
) -> str:
    """Render how many of a class have predicted something, and a bar for each answer.

    The bars have their places before they are revealed, so that nothing moves then.

    Args:
        name: The name of the room.
        options: The answers to choose from.
        counts: How many chose each of them; None as long as that is not revealed.
        answers: How many chose one of them.
        students: How many students are there.
        notes: Sentences that concern this page alone.
    """
    lines = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    title = (
        "What the class predicts"
        if counts is not None
        else "Predictions appear when the teacher reveals them"
    )
    rows = "".join(
        _row(option, None if counts is None else counts[place], answers)
        for place, option in enumerate(options)
    )
    return (
        f'<section class="room"><h3>Room: {escape(name)}</h3>{lines}'
        f'<p class="answers">{_describe(answers, "prediction")} from the class. '
        f"{_describe(students, 'student')} in the room now.</p>"
        f'<table class="predictions"><caption>{title}</caption><tbody>{rows}</tbody>'
        "</table></section>"
    )


def _row(option: str, count: int | None, answers: int) -> str:
    share = 100 * count / answers if count and answers else 0
    value = "…" if count is None else f"{count} ({share:.0f}%)"
    return (
        f'<tr><th scope="row">{escape(option)}</th><td class="plot"><span style="width:{share:.1f}%"></span></td>'
        f"<td>{value}</td></tr>"
    )


def _describe(number: int, noun: str) -> str:
    return f"<b>{number}</b> {noun}{'' if number == 1 else 's'}"
