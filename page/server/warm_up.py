"""Load, calibrate and measure the default model at the start, so that the first visitor need not wait."""

import threading

from page.server.session import log, visitor_of, workbench
from pruning import Neurons, PruningError, Recipe, catalog
from pruning.progress import Progress


class WarmUp:
    """The work at the start, in a thread.

    Attributes:
        shape_known: Set as soon as the default model can be shown, or if it cannot be loaded.
        progress: Where the work stands.
    """

    def __init__(self) -> None:
        self.shape_known = threading.Event()
        self.progress = Progress("Loading the model")

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._run, daemon=True).start()

    def _report(self, progress: Progress) -> None:
        self.progress = progress

    def _run(self) -> None:
        try:
            visitor = visitor_of(None, None)
            workbench.load(catalog.DEFAULT_MODEL, visitor, progress=self._report)
            self.shape_known.set()
            recipe = Recipe(base=catalog.DEFAULT_MODEL, steps=(Neurons(fraction=0.2),))
            workbench.warm_up(recipe, visitor, self._report)
        except PruningError as error:
            log.warning("the default model is not ready: %s", error)
        except Exception:
            log.exception("the start failed")
        finally:
            self.shape_known.set()
