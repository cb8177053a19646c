"""The public API: what a type checker sees, and where the names are imported from on first use."""

from . import criteria, streaming
from .catalog import DEFAULT_MODEL, MODELS, CatalogModel
from .criteria import CRITERIA, Criterion
from .errors import Cancelled, ModelError, PruningError, RecipeError, SavingError
from .evaluation.perplexity import Perplexity, Quality, perplexity, quality
from .lessons import LESSONS
from .loading.load import LoadedModel, load
from .pipeline import Preview, Pruned, Report, measure, preview, prune, run
from .progress import Progress
from .recipe import Recipe
from .saving.save import save
from .shape_search.search import Budget, SearchResult, iter_search, search
from .shape_search.sweep import SweepPoint, iter_sweep
from .sharing.gguf import export
from .sharing.publish import publish
from .sharing.verify import Verification, verify
from .steps import (
    STEPS,
    Channels,
    Distillation,
    Heads,
    Layers,
    Neurons,
    Reconstruction,
    Vocabulary,
    Weights,
)
from .text.choice import Calibration, TextChoice
from .text.generation import Sampling, complete, stream

__version__: str

__all__ = [
    "CRITERIA",
    "DEFAULT_MODEL",
    "LESSONS",
    "MODELS",
    "STEPS",
    "Budget",
    "Calibration",
    "Cancelled",
    "CatalogModel",
    "Channels",
    "Criterion",
    "Distillation",
    "Heads",
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
    "SweepPoint",
    "TextChoice",
    "Verification",
    "Vocabulary",
    "Weights",
    "complete",
    "criteria",
    "export",
    "iter_search",
    "iter_sweep",
    "load",
    "measure",
    "perplexity",
    "preview",
    "prune",
    "publish",
    "quality",
    "run",
    "save",
    "search",
    "stream",
    "streaming",
    "verify",
]
