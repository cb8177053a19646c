"""The bundled passages: five genres, each with text to calibrate on and text held out for evaluation."""

from functools import lru_cache
from importlib.resources import files

GENRES = {
    "encyclopedia": "Encyclopedia",
    "story": "Stories",
    "code": "Code",
    "dialogue": "Instructions and dialogue",
    "documentation": "Technical documentation",
}

GENERAL = "general"
CHAT = "chat"
CHAT_AND_GENERAL = "chat_and_general"
SELF_GENERATED = "self_generated"
WIKITEXT = "wikitext-2"
CUSTOM = "custom"

CALIBRATION_NAMES = {
    CHAT_AND_GENERAL: "Chat and all five genres",
    CHAT: "Questions, answered by the model itself",
    GENERAL: "An even mix of all five genres",
    **GENRES,
    SELF_GENERATED: "The model's own samples",
    WIKITEXT: "WikiText-2, from the Hugging Face Hub",
    CUSTOM: "A text of your own",
}

WRITTEN_BY_MODELS = (SELF_GENERATED, CHAT, CHAT_AND_GENERAL)
"""The texts that a model has to write, wholly or in part."""

PUBLISHED_NAMES = {CUSTOM: "own", SELF_GENERATED: "self"}
"""For each renamed text the name that release 0.1.0 published."""


@lru_cache
def passage(genre: str, split: str) -> str:
    """Return the text of a genre; `split` is `calibration` or `heldout`."""
    return files(__name__).joinpath(f"{genre}.{split}.txt").read_text(encoding="utf-8")


@lru_cache
def _all_passages() -> frozenset[str]:
    return frozenset(passage(genre, split) for genre in GENRES for split in ("calibration", "heldout"))


def is_passage(text: str) -> bool:
    """Return whether a text is the whole text of a genre."""
    return text in _all_passages()
