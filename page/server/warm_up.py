"""Calibrate and measure the default model at the start, so that the first visitor need not wait."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress

import gradio as gr

from page.server.look_ups import look_up
from page.server.session import log, pools, queues, user_message, visitor_of
from page.workers.messages import Failed
from page.workers.tasks import INTERACTIVE, LONG, LoadTask, Task, WarmUpTask
from page.workers.workbench import Visitor
from pruning import Neurons, Recipe, catalog
from pruning.errors import Cancelled
from pruning.progress import Progress

LOAD = LoadTask(catalog.DEFAULT_MODEL)
WARM_UP = WarmUpTask(Recipe(base=catalog.DEFAULT_MODEL, steps=(Neurons(fraction=0.2),)))


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
        """Start the workers and the thread."""
        pools.open()
        assert pools.downloads is not None
        # Served from where they are: Gradio's copies would be bounded by nothing.
        gr.set_static_paths([pools.downloads.folder])
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        visitor = visitor_of(None, None)
        try:
            # One worker converts the model if that was not done yet; then the others find it in the cache.
            self._perform(LOAD, visitor)
            look_up(catalog.DEFAULT_MODEL, visitor)
            self.shape_known.set()
            while not self._perform(WARM_UP, visitor, give_way):
                time.sleep(1)
            for kind in (INTERACTIVE, LONG):
                pools[kind].prepare(LOAD)
        except Exception as error:
            log.warning("the default model is not ready: %s", user_message(error))
        finally:
            self.shape_known.set()

    def _perform(self, task: Task, visitor: Visitor, check: Callable[[], None] = lambda: None) -> bool:
        """Perform a task, and return whether it has ended; if not, it must begin again."""
        with suppress(Cancelled):
            for event in pools[task.kind].perform(task, visitor, check):
                match event:
                    case Progress():
                        self.progress = event
                    case Failed(message):
                        log.warning("the default model is not ready: %s", message)
            return True
        return False


def give_way() -> None:
    """Raise `Cancelled` if a visitor waits."""
    if len(queues[INTERACTIVE]):
        raise Cancelled("A visitor goes first.")
