"""Process-wide settings, made by the programs that use the library and never by importing it."""

import logging
import os

from pruning.lazy import after_import, transformers
from pruning.loading.client import limit_hub_client


def configure(models: bool = True) -> None:
    """Set up this process for a program: memory pages, the Hub's client, and the libraries' own output.

    Call it before any tensor is allocated. Importing `pruning` changes nothing of this.

    Args:
        models: Whether models will be loaded. If not, transformers is not imported for its settings.
    """
    # Large pages for large tensors, where the system has them: cutting and training wait less for memory.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    limit_hub_client()
    if models:
        quiet()
    else:
        after_import("transformers", quiet)


def quiet() -> None:
    """Keep the libraries' own progress bars and warnings out of a terminal or a log that shows ours."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
