"""Small pieces of HTML that several sections share. All text is escaped."""

from collections.abc import Sequence
from html import escape
from math import isfinite
from typing import Literal

from pruning.criteria import Criterion
from pruning.distillation.progress import TrainingProgress
from pruning.distillation.result import DistillationNote

StatusKind = Literal["idle", "busy", "done", "stopped", "failed"]

MessageKind = Literal["note", "warning", "done"]


def format_count(number: int) -> str:
    """Format a number of parameters, such as `134.5M`."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)


def format_change(original: float, pruned: float) -> str:
    """Format a relative change, such as `−11.8%`, with a true minus sign."""
    percent = (pruned - original) / original * 100 if original else 0.0
    sign = "−" if percent < -0.05 else "+" if percent > 0.05 else "±"
    return f"{sign}{abs(percent):.1f}%"


def status(
    text: str = "", done: int = 0, total: int = 0, kind: StatusKind = "idle", show_count: bool = True
) -> str:
    """Render the status line of a section: what it is doing, and how far it is.

    Args:
        text: The current stage, or how the work ended.
        done: Parts of the stage that are done.
        total: All parts of the stage; 0 if their number is unknown.
        kind: Decides the color, and whether the bar moves.
        show_count: Whether to show `done` and `total` as numbers beside the bar.
    """
    percent = 100 * done / total if total else 0
    unknown = "" if total or kind != "busy" else " unknown"
    count = f"{done} of {total}" if total and show_count else ""
    return (
        f'<div class="status {kind}"><span>{escape(text)}</span><span>{count}</span>'
        f'<div class="track{unknown}"><div style="width:{percent:.1f}%"></div></div></div>'
    )


def message(text: str, kind: MessageKind = "note", link: str = "") -> str:
    """Render a sentence, followed by a link if there is one."""
    anchor = f' <a href="{escape(link)}" target="_blank" rel="noopener">{escape(link)}</a>' if link else ""
    return f'<p class="{kind}">{escape(text)}{anchor}</p>'


def recipe_note(steps: Sequence[str]) -> str:
    """Render the steps of a recipe that the controls cannot show and that Prune will run."""
    items = "".join(f"<li>{escape(step)}</li>" for step in steps)
    return (
        f'<div class="recipe-note"><p><b>A recipe is loaded.</b> Prune will run:</p><ol>{items}</ol>'
        "<p>Move any control to replace it.</p></div>"
    )


def pressed_layers_note(layers: Sequence[int]) -> str:
    """Render which layers were pressed in the drawing.

    It is not shown, as the note on the cut says the same: a browser compares it with the settings of the results.
    """
    return f"<p>Layers {', '.join(map(str, layers))}</p>"


def criterion_note(criterion: Criterion) -> str:
    """Render a criterion's formula, what it needs, its source, and its warning if it has one."""
    source = escape(criterion.source)
    if criterion.url:
        source = f'<a href="{escape(criterion.url)}" target="_blank" rel="noopener">{source}</a>'
    warning = f'<p class="warning">{escape(criterion.warning)}</p>' if criterion.warning else ""
    needs = "Reads calibration text." if criterion.needs_calibration else "Uses the weights alone."
    return (
        f'<div class="note"><p class="formula">{escape(criterion.formula)}</p>'
        f"{warning}<p>{needs} {source}.</p></div>"
    )


def training_status(progress: TrainingProgress) -> str:
    """Render the status line of a running distillation."""
    left = f"{progress.seconds_left / 60:.1f} minutes left"
    if not isfinite(progress.seconds_left):
        line = "Starting"
    elif not progress.step:
        line = f"{progress.text}: {left}"
    else:
        line = (
            f"{left}; {progress.tokens:,} tokens read; perplexity {progress.perplexity_before:.1f} → "
            f"{progress.perplexity:.1f} (original {progress.perplexity_teacher:.1f})"
        )
    return status(line, progress.done, progress.total, "busy", show_count=False)


def distillation_result(note: DistillationNote) -> str:
    """Render the status line of a finished distillation."""
    if not note.improved:
        return status("No improvement on held-out text; the model is unchanged.", kind="stopped")
    done = f"distilled on {note.tokens:,} tokens"
    if note.refit_tokens:
        refitted = f"refitted on {note.refit_tokens:,} tokens"
        done = f"{refitted}, then {done}" if note.steps else refitted
    return status(
        f"{done.capitalize()} in {note.seconds / 60:.1f} minutes: perplexity "
        f"{note.perplexity_before:.1f} → {note.perplexity_after:.1f} "
        f"(original {note.perplexity_teacher:.1f}).",
        kind="done",
    )
