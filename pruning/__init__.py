"""Prune small language models: cut, repair, compare, save, publish."""

from pruning.errors import Cancelled, ModelError, PruningError, RecipeError, SavingError
from pruning.evaluation.perplexity import perplexity, quality
from pruning.loading.load import LoadedModel, load
from pruning.pipeline import Preview, Pruned, evaluate_pruned, preview, prune, run
from pruning.recipe import Recipe
from pruning.report import Report
from pruning.sharing.publish import publish
from pruning.steps import Channels, Distillation, Heads, Layers, Neurons, Reconstruction, Vocabulary, Weights
from pruning.text.choice import Calibration, TextChoice
from pruning.text.generation import Sampling, complete, stream
from pruning.version import __version__

__all__ = [
    "Calibration",
    "Cancelled",
    "Channels",
    "Distillation",
    "Heads",
    "Layers",
    "LoadedModel",
    "ModelError",
    "Neurons",
    "Preview",
    "Pruned",
    "PruningError",
    "Recipe",
    "RecipeError",
    "Reconstruction",
    "Report",
    "Sampling",
    "SavingError",
    "TextChoice",
    "Vocabulary",
    "Weights",
    "complete",
    "evaluate_pruned",
    "load",
    "perplexity",
    "preview",
    "prune",
    "publish",
    "quality",
    "run",
    "stream",
]
