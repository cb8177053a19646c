"""The picture that the page opens with, drawn ahead: `python -m page.sections.first_picture` draws it again.

The shape of a model is known as soon as a worker has its config, and on a new machine the weights are converted first.
"""

import json
from pathlib import Path

from page.sections.picture import draw_steps, note_of
from page.store.defaults import PERCENTAGES, default_recipe
from page.workers.messages import FoundModel
from pruning import catalog
from pruning.architectures.shape import Shape
from pruning.loading.offline import find_offline, is_installed
from pruning.progress import silent

FILE = Path(__file__).with_name("first_picture.json")
_MODEL = catalog.MODELS[catalog.DEFAULT_MODEL]


def first_picture() -> tuple[str, str]:
    """Return the picture and the note of the default recipe on the packaged weights; empty if these are missing."""
    if not is_installed(_MODEL):
        return "", ""
    drawn = json.loads(FILE.read_text(encoding="utf-8"))
    return drawn["picture"], drawn["note"]


def draw() -> dict[str, str]:
    """Draw them from the config of the weights."""
    source = find_offline(_MODEL, silent)
    found = FoundModel(Shape.of(source.config), source)
    steps = default_recipe(PERCENTAGES[0], source.revision).steps
    return {"picture": draw_steps(found, steps), "note": note_of(found.shape, steps)}


if __name__ == "__main__":
    FILE.write_text(json.dumps(draw(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
