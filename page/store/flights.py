"""Work that several visitors watch: a request for work that is already running joins that run.

A flight is one run of some tasks, in a thread of its own. A watcher takes neither a thread nor a place in a queue.
A late watcher gets the events so far, then the rest. Leaving only unsubscribes; the work ends when its last watcher
leaves. Every watcher is told of a failure once.
"""

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import suppress
from types import UnionType
from typing import Generic, TypeVar

from page.workers.messages import Done, Event, Failed, Partial, Progress, Queued, Stopped
from page.workers.worker import BUG

log = logging.getLogger("secateur")

FAILURE_SECONDS = 3.0
"""How long a failure is remembered, so that those who asked at the same time do not repeat the work at once."""
MAX_FAILURES = 1000
FASTEST, SLOWEST = 0.1, 0.5
"""Seconds between two updates for one watcher: of results, with few watchers; with many, or of nothing but progress."""
LEFT = Stopped("Stopped, because nobody listened.")

Starter = TypeVar("Starter")


class NotAdmitted(Exception):
    """The visitor who asked for the work first may not start it now, but another visitor may."""


class Finished:
    """The last event of a flight whose tasks are all done; watchers see no more of it than that."""


Told = Event | Finished
Ends = Finished | Stopped | Failed
Results = Partial | Done


class Watcher:
    """One visitor's view of a flight.

    Attributes:
        session: The visitor's session.
        interval: The least number of seconds between two updates.
    """

    def __init__(self, session: str, leave: Callable[["Watcher"], None], events: list[Told]) -> None:
        """Create a watcher; `Flights.watch` does.

        Args:
            session: The visitor's session.
            leave: Called when the visitor watches no longer.
            events: What there is so far.
        """
        self.session = session
        self.interval = FASTEST
        self._leave, self._events = leave, events
        self._changed = threading.Condition()
        self._wake: Callable[[], None] = lambda: None

    def tell(self, event: Told) -> None:
        """Pass an event on, and drop earlier events that it supersedes."""
        with self._changed:
            fold(self._events, event)
            self._changed.notify_all()
            wake = self._wake
        wake()

    def close(self) -> None:
        """Stop watching."""
        self._leave(self)

    def __iter__(self) -> Iterator[Event]:
        """Yield the events as they come, until the flight ends."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._events))
            for event in self._take():
                if isinstance(event, Finished):
                    return
                yield event
                if isinstance(event, Stopped | Failed):
                    return

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield the events without keeping a thread, pausing for `interval` after each update."""
        loop, signal = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # The page is closing.
                loop.call_soon_threadsafe(signal.set)

        with self._changed:
            self._wake = wake
        while True:
            signal.clear()
            events = self._take()
            for event in events:
                if isinstance(event, Finished):
                    return
                yield event
                if isinstance(event, Stopped | Failed):
                    return
            if events:
                # Report the end of the work immediately. Progress updates can wait.
                for seconds, awaited in ((self.interval, Ends), (SLOWEST - self.interval, Ends | Results)):
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._told(awaited, signal), seconds)
            else:
                await signal.wait()

    async def _told(self, kinds: UnionType, signal: asyncio.Event) -> None:
        """Wait until there is an event of some kinds."""
        while not any(isinstance(event, kinds) for event in self._events):
            await signal.wait()
            signal.clear()

    def _take(self) -> list[Told]:
        with self._changed:
            events, self._events = self._events, []
        return events


def fold(events: list[Told], event: Told) -> None:
    """Append an event, and drop earlier events that it supersedes."""
    if events and isinstance(events[-1], Progress | Queued):
        events.pop()
    is_newer = isinstance(event, Done) or (isinstance(event, Partial) and event.replaces)
    while is_newer and events and isinstance(last := events[-1], Partial) and last.replaces:
        events.pop()
    events.append(event)


class Flight(Generic[Starter]):
    """One run of some tasks.

    Attributes:
        key: What it is a run of; None if only one visitor may watch it.
        starters: Those who watch it, each with what the work needs to be started for them.
        log: What there is so far.
    """

    def __init__(self, key: str | None) -> None:
        self.key = key
        self.starters: OrderedDict[Watcher, Starter] = OrderedDict()
        self.log: list[Told] = []


Run = Callable[[Starter, Callable[[], bool]], Iterable[Event]]
"""Does the work for the one who starts it, and yields its events. It is given a function that returns whether
nobody watches any more, and may raise `NotAdmitted` if this visitor may not start it."""


class Flights(Generic[Starter]):
    """The flights under way, by key."""

    def __init__(
        self,
        is_unheard: Callable[[str], bool] = lambda _: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create a table without flights.

        Args:
            is_unheard: Returns whether nobody listens to a session any more.
            clock: Returns the time in seconds.
        """
        self._is_unheard, self._clock = is_unheard, clock
        self._flights: dict[str, Flight[Starter]] = {}
        self._failures: OrderedDict[str, tuple[Failed, float]] = OrderedDict()
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._flights)

    def watch(self, key: str | None, session: str, starter: Starter, run: Run[Starter]) -> Watcher:
        """Watch some work, which is begun unless it is under way.

        Args:
            key: What is asked for; None for what only this visitor may watch.
            session: The visitor's session.
            starter: What `run` needs to begin the work for this visitor.
            run: Does the work, in a thread.
        """
        with self._lock:
            if key is not None and (failure := self._recent_failure(key)) is not None:
                return Watcher(session, lambda _: None, [failure])
            flight = self._flights.get(key) if key is not None else None
            is_new = flight is None
            if flight is None:
                flight = Flight(key)
                if key is not None:
                    self._flights[key] = flight
            joined = flight

            def leave(watcher: Watcher) -> None:
                with self._lock:
                    joined.starters.pop(watcher, None)

            watcher = Watcher(session, leave, list(flight.log))
            flight.starters[watcher] = starter
            for each in flight.starters:
                each.interval = min(SLOWEST, FASTEST * len(flight.starters))
        if is_new:
            threading.Thread(target=self._fly, args=(flight, run), daemon=True).start()
        return watcher

    def _fly(self, flight: Flight[Starter], run: Run[Starter]) -> None:
        """Do the work, for the first watcher who may start it."""
        while not self._is_abandoned(flight):
            with self._lock:
                watcher, starter = next(iter(flight.starters.items()), (None, None))
            if watcher is None or starter is None:
                continue
            try:
                for event in run(starter, lambda: self._is_abandoned(flight)):
                    self._tell(flight, event)
                    if isinstance(event, Stopped | Failed):
                        return
                self._tell(flight, Finished())
                return
            except NotAdmitted as reason:
                # That this visitor may not start it does not concern the others.
                watcher.close()
                watcher.tell(Failed(str(reason)))
            except BaseException as error:
                log.error("work that is watched failed", exc_info=error)
                self._tell(flight, Failed(BUG))
                return

    def _tell(self, flight: Flight[Starter], event: Told) -> None:
        with self._lock:
            fold(flight.log, event)
            watchers = list(flight.starters)
            if isinstance(event, Finished | Stopped | Failed):
                self._remove(flight)
                if isinstance(event, Failed) and flight.key is not None:
                    self._failures[flight.key] = event, self._clock() + FAILURE_SECONDS
                    while len(self._failures) > MAX_FAILURES:
                        self._failures.popitem(last=False)
        for watcher in watchers:
            watcher.tell(event)

    def _is_abandoned(self, flight: Flight[Starter]) -> bool:
        """Return whether nobody watches a flight any more; if so, nobody can join it any more either."""
        with self._lock:
            for watcher in [each for each in flight.starters if self._is_unheard(each.session)]:
                watcher.close()
                watcher.tell(LEFT)
            if flight.starters:
                return False
            self._remove(flight)
            return True

    def _remove(self, flight: Flight[Starter]) -> None:
        if flight.key is not None and self._flights.get(flight.key) is flight:
            del self._flights[flight.key]

    def _recent_failure(self, key: str) -> Failed | None:
        failure, until = self._failures.get(key, (None, 0.0))
        if self._clock() < until:
            return failure
        self._failures.pop(key, None)
        return None
