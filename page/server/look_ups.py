"""Look models up for previews: in workers of their own, a few at a time, and each answer is remembered."""

import threading
import time
from collections import OrderedDict
from concurrent.futures import Future

from page.server.session import pools
from page.workers.messages import Done, Failed, FoundModel, Stopped
from page.workers.process import STOP_SECONDS
from page.workers.tasks import LOOK_UP, FindTask
from page.workers.workbench import Visitor, check_name
from pruning import catalog
from pruning.errors import ModelError, PruningError

MAX_FOUND = 64
"""The most models that are remembered, besides those of the catalog."""
MAX_REFUSED = 1000
REFUSED_SECONDS = 60.0
"""How long a refusal is remembered."""
MAX_WAITING = 24
"""How many look-ups may wait or run at the same time."""
MAX_OF_SESSION = 3
"""How many of them for one visitor."""
SECONDS = 30.0
"""How long one may take."""

Key = tuple[str, str]


class LookUps:
    """What is known of models by name, and the look-ups under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: OrderedDict[Key, FoundModel] = OrderedDict()
        self._refused: OrderedDict[Key, tuple[str, float]] = OrderedDict()
        self._running: dict[Key, Future[FoundModel]] = {}
        self._waiting: dict[str, int] = {}

    def find(self, name: str, visitor: Visitor) -> FoundModel:
        """Return the shape of a model and where it comes from, without its weights.

        Raises:
            ModelError: The model cannot be used.
            PruningError: Too many look-ups are under way.
        """
        check_name(name)
        with self._lock:
            if (found := self._remembered(name, visitor)) is not None:
                return found
            # What the Hub tells one account may differ from what it tells another.
            key = (name, visitor.owner if visitor.access.token else "")
            future = self._running.get(key)
            ours = future is None
            if future is None:
                self._admit(visitor)
                future = self._running[key] = Future()
        if not ours:
            return future.result(timeout=SECONDS + STOP_SECONDS)
        try:
            found = self._look_up(name, visitor)
            self._remember(name, visitor, found)
            future.set_result(found)
            return found
        except BaseException as error:
            future.set_exception(error)
            if isinstance(error, ModelError):
                with self._lock:
                    self._refused[key] = str(error), time.monotonic() + REFUSED_SECONDS
                    while len(self._refused) > MAX_REFUSED:
                        self._refused.popitem(last=False)
            raise
        finally:
            with self._lock:
                del self._running[key]
                self._dismiss(visitor)

    def forget(self, owner: str) -> None:
        """Drop what belongs to an owner, given by name or by all of it up to a colon."""
        with self._lock:
            for known in (self._found, self._refused):
                for key in [key for key in known if key[1].split(":")[0] == owner.split(":")[0] and key[1]]:
                    del known[key]

    def _remembered(self, name: str, visitor: Visitor) -> FoundModel | None:
        for owner in ("", visitor.owner):
            if (found := self._found.get((name, owner))) is not None:
                self._found.move_to_end((name, owner))
                return found
        for owner in {visitor.owner, "" if not visitor.access.token else visitor.owner}:
            message, until = self._refused.get((name, owner), ("", 0.0))
            if time.monotonic() < until:
                raise ModelError(message)
        return None

    def _admit(self, visitor: Visitor) -> None:
        session = visitor.session
        waiting = self._waiting.get(session, 0)
        if sum(self._waiting.values()) >= MAX_WAITING or (session and waiting >= MAX_OF_SESSION):
            raise PruningError(
                "Many models are being looked up right now. Please try again in a few seconds."
            )
        self._waiting[session] = waiting + 1

    def _dismiss(self, visitor: Visitor) -> None:
        session = visitor.session
        self._waiting[session] -= 1
        if not self._waiting[session]:
            del self._waiting[session]

    def _look_up(self, name: str, visitor: Visitor) -> FoundModel:
        deadline = time.monotonic() + SECONDS

        def check() -> None:
            if time.monotonic() > deadline:
                raise ModelError(
                    f"{name[:100]} could not be looked up in {SECONDS:.0f} seconds. Try again later."
                )

        for event in pools[LOOK_UP].perform(FindTask(name), visitor, check, seconds=SECONDS):
            match event:
                case Done(FoundModel() as found):
                    return found
                case Failed(message) | Stopped(message):
                    raise ModelError(message)
        raise AssertionError("a task ends with an ending")

    def _remember(self, name: str, visitor: Visitor, found: FoundModel) -> None:
        owner = "" if found.source.public else visitor.owner
        if not (found.source.public or owner):
            return
        with self._lock:
            self._found[name, owner] = found
            others = [key for key in self._found if key[0] not in catalog.MODELS]
            for key in others[: max(0, len(others) - MAX_FOUND)]:
                del self._found[key]


look_ups = LookUps()


def look_up(name: str, visitor: Visitor) -> FoundModel:
    """Return the shape of a model and where it comes from; see `LookUps.find`."""
    return look_ups.find(name, visitor)
