"""Pruning a model that memory cannot hold: from safetensors files to safetensors files.

The base stays on disk, where accelerate leaves it, and so do the models that the steps make of it: each
of their tensors is cut out of the base's whenever it is asked for. Ranking asks for those of one layer,
saving for those of one file.
"""

import warnings
from pathlib import Path

from pruning.architectures.shape import Shape
from pruning.criteria import CRITERIA
from pruning.errors import RecipeError
from pruning.loading import load as loading
from pruning.loading.source import Token
from pruning.pipeline import Pruned, preview
from pruning.pipeline import prune as prune_base
from pruning.progress import Reporter, silent
from pruning.recipe import Recipe
from pruning.saving.save import save
from pruning.steps.base import Cut

LARGEST_FILE = 10**9
"""Bytes of an output file, unless one tensor is larger or all of the base's files are smaller."""


def prune(recipe: Recipe, output: str | Path, *, token: Token = None, progress: Reporter = silent) -> Pruned:
    """Carry out a recipe from file to file: what `pruning.prune` and `save` do, bit for bit.

    Resident memory holds the tensors of one layer, or of one output file, which is no larger than the
    largest file of the base. The `model` of the result stays on disk too, and needs the base's files
    there. Raises `RecipeError` for a step that runs the model, `ModelError` for a base that cannot be
    read, and `SavingError` where the output cannot be written.
    """
    check(recipe, preview(recipe, token=token).before)
    base = loading.load(recipe.base, revision=recipe.revision, token=token, on_disk=True, progress=progress)
    pruned = prune_base(recipe, base, progress)
    largest = max(file.stat().st_size for file in base.source.folder.glob("*.safetensors"))
    with warnings.catch_warnings():
        # That a file must fit into memory is what the limit is for.
        warnings.filterwarnings("ignore", "Attempting to save a model with offloaded modules")
        save(pruned, Path(output), progress, largest_file=min(largest, LARGEST_FILE))
    return pruned


def check(recipe: Recipe, shape: Shape) -> None:
    """Raises `RecipeError` for a recipe with a step that needs more than the weights."""
    for number, step in enumerate(recipe.steps):
        if not isinstance(step, Cut) or step.needs_calibration_text or step.hooked_modules(shape):
            blind = ", ".join(name for name, known in CRITERIA.items() if not known.needs_calibration)
            raise RecipeError(
                f"The step {step.step} has to run the model, and streaming never holds one that runs. What "
                f"looks at weights alone can be streamed, without repair: neurons by {blind}; heads by "
                "weights; layers by last, first or their numbers. Change the step, or do not stream.",
                ("steps", number),
            )
