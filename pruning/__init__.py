"""Prune small language models: cut, repair, compare, save, publish."""

from pruning.errors import Cancelled, ModelError, PruningError, RecipeError, SavingError
from pruning.evaluation.perplexity import evaluate, perplexity
from pruning.loading.load import LoadedModel, load
from pruning.pipeline import Preview, Pruned, evaluate_pruned, preview, prune, run
from pruning.recipe import Recipe
from pruning.report import Report
from pruning.sharing.publish import publish
from pruning.steps import Channels, Distillation, Heads, Layers, Neurons, Reconstruction, Vocabulary, Weights
from pruning.text.choice import Calibration, TextChoice
from pruning.text.generation import Sampling, generate, stream
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
    "__version__",
    "evaluate",
    "evaluate_pruned",
    "generate",
    "load",
    "perplexity",
    "preview",
    "prune",
    "publish",
    "run",
    "stream",
]
