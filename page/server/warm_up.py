"""Get ready at the start: calibrate and measure the default model, and make the results that visitors ask for first.

The results for the weights that come as a package are prepared. On other weights, the page makes them itself while
nobody waits for anything else.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress

import gradio as gr

from page.server.jobs import keep, recall
from page.server.look_ups import look_up
from page.server.session import log, pools, queues, user_message, visitor_of
from page.store.defaults import PERCENTAGES, SAMPLING, default_recipe, first_tasks
from page.store.keys import BUNDLED_PROMPTS
from page.workers.messages import Done, Failed
from page.workers.tasks import INTERACTIVE, LONG, LoadTask, Task, WarmUpTask
from page.workers.workbench import Visitor
from pruning import catalog
from pruning.errors import Cancelled
from pruning.loading.offline import is_offline
from pruning.progress import Progress

IDLE_SECONDS = 5.0
"""How long the page waits after a visitor came, before it tries to make the next result."""

LOAD = LoadTask(catalog.DEFAULT_MODEL)


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
            source = look_up(catalog.DEFAULT_MODEL, visitor).source
            self.shape_known.set()
            recipe = default_recipe(PERCENTAGES[0], source.revision)
            warm_up = WarmUpTask(recipe, BUNDLED_PROMPTS[0], SAMPLING)
            while not self._perform(warm_up, visitor, give_way):
                time.sleep(1)
            for kind in (INTERACTIVE, LONG):
                pools[kind].prepare(LOAD)
            self._record(visitor)
        except Exception as error:
            log.warning("the default model is not ready: %s", user_message(error))
        finally:
            self.shape_known.set()

    def _record(self, visitor: Visitor) -> None:
        """Make the results that visitors ask for first, while nobody waits, unless they come with the program."""
        source = look_up(catalog.DEFAULT_MODEL, visitor).source
        if is_offline(source):
            return
        for task in first_tasks(source.revision):
            while recall(task, visitor) is None and not self._make(task, visitor):
                time.sleep(IDLE_SECONDS)

    def _make(self, task: Task, visitor: Visitor) -> bool:
        """Make a result and keep it; return whether that has ended. If not, a visitor went first."""
        with suppress(Cancelled):
            give_way()
            for event in pools[task.kind].perform(task, visitor, give_way):
                match event:
                    case Done(value):
                        keep(task, value)
                    case Failed(message):
                        log.warning("a result is not recorded: %s", message)
            return True
        return False

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
    """Raise `Cancelled` if a visitor waits, for anything."""
    if any(len(queue) for queue in queues.values()):
        raise Cancelled("A visitor goes first.")
