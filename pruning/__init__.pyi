"""The public API: what a type checker sees, and where each name is imported from on first use."""

from . import criteria, streaming
from .catalog import DEFAULT_MODEL, MODELS, CatalogModel
from .criteria import CRITERIA, Criterion, criterion
from .errors import Cancelled, ModelError, PruningError, RecipeError, SavingError
from .evaluation.evaluate import evaluate
from .evaluation.importance import layer_importance, neuron_importance
from .evaluation.perplexity import Perplexity, Quality, perplexity
from .lessons import LESSONS
from .loading.load import LoadedModel, load
from .loading.source import Access, Source
from .pipeline import evaluate_pruned, prune, run
from .previews import Preview, preview
from .progress import Progress
from .pruned import Pruned
from .recipe import Recipe
from .report import Report
from .shape_search.search import Budget, SearchResult, Trial, iter_search, search
from .shape_search.sweep import SweepPoint, iter_sweep
from .sharing.gguf import export
from .sharing.publish import publish
from .sharing.verify import Verification, verify
from .steps import (
    STEPS,
    Channels,
    Distillation,
    Experts,
    Heads,
    Layers,
    Neurons,
    Reconstruction,
    Vocabulary,
    Weights,
)
from .steps.distillation import HubDataset
from .text.choice import Calibration, TextChoice
from .text.generation import Sampling, generate, stream

__all__ = [
    "CRITERIA",
    "DEFAULT_MODEL",
    "LESSONS",
    "MODELS",
    "STEPS",
    "Access",
    "Budget",
    "Calibration",
    "Cancelled",
    "CatalogModel",
    "Channels",
    "Criterion",
    "Distillation",
    "Experts",
    "Heads",
    "HubDataset",
    "Layers",
    "LoadedModel",
    "ModelError",
    "Neurons",
    "Perplexity",
    "Preview",
    "Progress",
    "Pruned",
    "PruningError",
    "Quality",
    "Recipe",
    "RecipeError",
    "Reconstruction",
    "Report",
    "Sampling",
    "SavingError",
    "SearchResult",
    "Source",
    "SweepPoint",
    "TextChoice",
    "Trial",
    "Verification",
    "Vocabulary",
    "Weights",
    "criteria",
    "criterion",
    "evaluate",
    "evaluate_pruned",
    "export",
    "generate",
    "iter_search",
    "iter_sweep",
    "layer_importance",
    "load",
    "neuron_importance",
    "perplexity",
    "preview",
    "prune",
    "publish",
    "run",
    "search",
    "stream",
    "streaming",
    "verify",
]
