"""The bundled panels: short questions whose answers a program can judge."""

import hashlib
import json
from functools import lru_cache
from importlib.resources import as_file, files

from pruning.errors import PruningError
from pruning.evaluation.judge import Item

SPLITS = ("development", "reported")

ANSWERS, SKILLS = "answers", "skills"

_FILES = {ANSWERS: "answers.jsonl", SKILLS: "skills/*.jsonl"}


def revision(panel: str) -> str:
    """Return sixteen hexadecimal digits that identify what the panel `answers` or `skills` asks."""
    digest = hashlib.sha256()
    with as_file(files(__name__)) as folder:
        for file in sorted(folder.glob(_FILES[panel])):
            content = file.read_bytes()
            digest.update(f"{file.name} {len(content)} ".encode() + content)
    return digest.hexdigest()[:16]


@lru_cache
def answers(split: str) -> tuple[Item, ...]:
    """Return the judged questions of a split, in the order of their file.

    Args:
        split: `development`, to choose by, or `reported`, for figures. Both have as many questions of each kind.

    Raises:
        PruningError: There is no such split.
    """
    if split not in SPLITS:
        raise PruningError(f"There is no split {split!r} of the answers. Choose one of {', '.join(SPLITS)}.")
    lines = files(__name__).joinpath("answers.jsonl").read_text(encoding="utf-8").splitlines()
    items = (_item(**json.loads(line)) for line in lines)
    return tuple(item for item in items if item.split == split)


def _item(
    *,
    question: str,
    kind: str,
    split: str,
    right: list[str],
    wrong: list[str] | None = None,
    pattern: str | None = None,
) -> Item:
    return Item(
        question=question,
        kind=kind,
        split=split,
        right=tuple(right),
        wrong=tuple(wrong or ()),
        pattern=pattern,
    )
