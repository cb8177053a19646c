"""Scores for searches and sweeps in addition to the loss: answers, skills, or the caller's own function."""

import hashlib
import json
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pruning.errors import PruningError, RecipeError, SavingError
from pruning.evaluation.answers import evaluate_answers
from pruning.evaluation.skills import measure_skills, panel
from pruning.files import replacing
from pruning.loading.given import CausalLM
from pruning.progress import Reporter

LOSS = "loss"

QUESTIONS = 60
"""How many of the questions for development are asked of each model."""

Score = Callable[[CausalLM], float]
"""What a model is worth: higher is better."""


def _answers(model: CausalLM, progress: Reporter) -> float:
    judged = evaluate_answers(model, split="development", questions=QUESTIONS, progress=progress)
    return judged.good / judged.items


def _skills(model: CausalLM, progress: Reporter) -> float:
    return measure_skills(model, panel("development"), progress=progress).overall.accuracy or 0.0


SCORES: dict[str, Callable[[CausalLM, Reporter], float]] = {"answers": _answers, "skills": _skills}
"""The named scores beside `loss`: the share of good answers, and the accuracy over nine skills."""

TITLES = {"answers": "share of good answers", "skills": "accuracy in the skills"}
"""What the named scores are called on an axis."""


def check_score(score: str | Score) -> None:
    """Refuse a score that does not exist. Raises `RecipeError`."""
    if not callable(score) and score != LOSS and score not in SCORES:
        raise RecipeError(
            f"The score is {str(score)[:40]!r}. Choose {', '.join((LOSS, *SCORES))}, or give a function of the model."
        )


def measure_score(score: str | Score, model: CausalLM, progress: Reporter) -> tuple[float | None, str]:
    """Return the score of a model; None and the reason if the caller's function fails or returns no number."""
    if not callable(score):
        return SCORES[score](model, progress), ""
    try:
        value = float(score(model))
    except PruningError:
        raise
    except Exception as error:  # Whatever is in a caller's function ends one trial, and not the search.
        return None, f"it raised {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return (value, "") if math.isfinite(value) else (None, f"it returned {value}")


class SavedScores:
    """Losses and scores by a digest of what was measured, in a file that a later search continues."""

    def __init__(self, file: Path | None, *about: object) -> None:
        """Read a file, if there is one.

        Args:
            file: The file; None to keep nothing.
            *about: What all values depend on, such as the base and the text.

        Raises:
            RecipeError: The file holds something else.
        """
        self.file, self._about = file, "|".join(map(str, about))
        self._values: dict[str, float] = {}
        if file is None or not file.exists():
            return
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            self._values = {str(key): float(value) for key, value in values.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            raise RecipeError(
                f"{file} does not hold the scores of a search. Choose another file, or remove it."
            ) from None

    def get(self, digest: str, name: str) -> float | None:
        """Return a value that was measured before."""
        return self._values.get(self._key(digest, name))

    def put(self, digest: str, name: str, value: float) -> None:
        """Keep a value, on disk at once.

        Raises:
            SavingError: The file cannot be written.
        """
        self._values[self._key(digest, name)] = value
        if self.file is None:
            return
        try:
            with replacing(self.file) as temporary:
                temporary.write_text(json.dumps(self._values, indent=1), encoding="utf-8")
        except OSError as error:
            reason = error.strerror or error
            raise SavingError(f"The scores cannot be written to {self.file}: {reason}.") from None

    def discard(self) -> None:
        """Remove the file."""
        if self.file is not None:
            with suppress(OSError):
                self.file.unlink(missing_ok=True)

    def _key(self, digest: str, name: str) -> str:
        return hashlib.sha256(f"{self._about}|{digest}|{name}".encode()).hexdigest()[:32]


def name_of_score(score: str | Score) -> str:
    """Return the name under which a score is kept: a function's own name, with a digest of its code."""
    if isinstance(score, str):
        return score
    code = getattr(score, "__code__", None)
    digest = hashlib.sha256(repr((code.co_code, code.co_consts)).encode()).hexdigest()[:16] if code else ""
    return f"{getattr(score, '__qualname__', type(score).__name__)} {digest}"
