"""Prune a model that does not fit in memory: from safetensors files to safetensors files.

The base stays on disk, where accelerate leaves it, and so do the models that the steps make of it: each of
their tensors is cut out of the base's when it is needed. Ranking needs those of one layer, saving those of
one file.
"""

import warnings
from pathlib import Path

from pruning.architectures.shape import Shape
from pruning.criteria import CRITERIA
from pruning.errors import RecipeError
from pruning.loading.load import find, load
from pruning.loading.source import Token
from pruning.pipeline import Pruned, apply_steps
from pruning.progress import Reporter, silent
from pruning.recipe import Recipe
from pruning.steps.base import Cut

LARGEST_FILE = 10**9
"""Bytes of an output file, unless one tensor is larger or all of the base's files are smaller."""


def prune(recipe: Recipe, output: str | Path, *, token: Token = None, progress: Reporter = silent) -> Pruned:
    """Carry out a recipe from file to file: what `pruning.prune` and `save` do, bit for bit.

    Memory holds the tensors of one layer, or of one output file, which is no larger than the largest
    file of the base. The `model` of the result stays on disk too, and needs the base's files there.

    Args:
        recipe: The recipe. Its steps may look at weights alone.
        output: The folder to write.
        token: The access token of the caller.
        progress: Is called with each stage.

    Raises:
        RecipeError: A step runs the model, or does not fit the base.
        ModelError: The base cannot be read.
        SavingError: The output cannot be written.

    Example:
        >>> import pruning
        >>> step = pruning.Neurons(fraction=0.2, criterion="peak_to_peak", repair=False)
        >>> recipe = pruning.Recipe(base="smollm2-135m", steps=[step])
        >>> pruned = pruning.streaming.prune(recipe, "smaller")
    """
    source = find(recipe.base, revision=recipe.revision, token=token, weights=True, progress=progress)
    shape = Shape.of(source.config)
    recipe.check(shape)
    check(recipe, shape)
    base = load(source, token=token, on_disk=True, progress=progress)
    pruned = apply_steps(recipe, base, progress=progress)
    largest = max(file.stat().st_size for file in base.source.folder.glob("*.safetensors"))
    with warnings.catch_warnings():
        # That a file must fit into memory is what the limit is for.
        warnings.filterwarnings("ignore", "Attempting to save a model with offloaded modules")
        pruned.save(output, max_shard_size=min(largest, LARGEST_FILE), progress=progress)
    return pruned


def check(recipe: Recipe, shape: Shape) -> None:
    """Refuse a recipe with a step that needs more than the weights. Raises `RecipeError`."""
    for number, step in enumerate(recipe.steps):
        if not isinstance(step, Cut) or step.reads_text(shape) or step.hooked_modules(shape):
            criteria = ", ".join(name for name, known in CRITERIA.items() if not known.needs_calibration)
            raise RecipeError(
                f"The step {step.step} has to run the model, which streaming never holds in memory. Steps that "
                f"look at weights alone can be streamed, without repair: neurons by {criteria}; heads by "
                "weights; layers by last, first or their numbers. Change the step, or do not stream.",
                ("steps", number),
            )
