"""The bundled questions: short requests to an assistant, to calibrate on, to develop with and held out."""

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from pruning.errors import PruningError

SPLITS = ("calibration", "development", "heldout")

KINDS = (
    "facts",
    "words",
    "explanations",
    "writing",
    "code",
    "arithmetic",
    "rewriting",
    "lists",
    "instructions",
    "roles",
    "languages",
)


@dataclass(frozen=True)
class Question:
    """What a user asks an assistant.

    Attributes:
        prompt: The message of the user, without any chat template; it may have several lines.
        kind: One of `KINDS`. Questions of the kind `languages` are in, or about, another language than English.
    """

    prompt: str
    kind: str


@lru_cache
def read(split: str) -> tuple[Question, ...]:
    """Return the questions of a split, in the order of its file, which is sorted by kind.

    Args:
        split: `calibration`, `development` or `heldout`. No question is in two of them.

    Raises:
        PruningError: There is no such split.
    """
    if split not in SPLITS:
        raise PruningError(
            f"There is no split {split!r} of the questions. Choose one of {', '.join(SPLITS)}."
        )
    lines = files(__name__).joinpath(f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(Question(**json.loads(line)) for line in lines)
