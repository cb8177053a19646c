"""The bundled passages: five genres, each with text to calibrate on and text held out to evaluate."""

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
SELF = "self"
WIKITEXT = "wikitext-2"
OWN = "own"

CALIBRATION_NAMES = {
    GENERAL: "An even mix of all five genres",
    **GENRES,
    SELF: "The model's own samples",
    WIKITEXT: "WikiText-2, from the Hugging Face Hub",
    OWN: "A text of your own",
}


@lru_cache
def passage(genre: str, split: str) -> str:
    """The text of a genre; `split` is `calibration` or `heldout`."""
    return files(__name__).joinpath(f"{genre}.{split}.txt").read_text(encoding="utf-8")
