"""The live sessions: new ones cannot push them out, and jobs that nobody listens to end.

Gradio keeps a copy of the page's settings for each session. When there are too many, it drops the least recently
used session, even if someone is still listening to it. So the page counts sessions and refuses new ones first.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

MAX_SESSIONS = 400
"""How many sessions may be live: at 348 kB each, 139 MB."""
ADDRESS_SESSIONS = MAX_SESSIONS // 2
"""How many of them may come from one address: several classes, and still as many for everyone else."""
MAX_STREAMS = 8
"""How many streams of one session may be open; a page opens two."""
IDLE_SECONDS = 600.0
"""How long a session without streams or calls keeps its place."""
UNHEARD_SECONDS = 5.0
"""How long a job continues when nobody is listening to its events."""


class Crowded(Exception):
    """There is no room for another session."""


@dataclass
class _Session:
    """A session that is visited.

    Attributes:
        address: Where it was first used.
        used_at: When it was last used.
        streams: How many streams are open.
        joined_at: When it last started a function, or its last stream ended since; None if it never did.
        has_moved: Whether its visitor has moved a control.
    """

    address: str
    used_at: float
    streams: int = 0
    joined_at: float | None = None
    has_moved: bool = False


class Audience:
    """The live sessions: those with an open stream, and those that were used a short time ago."""

    def __init__(
        self,
        size: int = MAX_SESSIONS,
        address_size: int = ADDRESS_SESSIONS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create an empty audience.

        Args:
            size: How many sessions may be live.
            address_size: How many of them may come from one address.
            clock: Returns the time in seconds.
        """
        self._size, self._address_size, self._clock = size, address_size, clock
        self._sessions: dict[str, _Session] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    def listening(self) -> list[str]:
        """Return the sessions with an open stream."""
        with self._lock:
            return [name for name, session in self._sessions.items() if session.streams]

    def use(self, name: str, address: str, joins: bool = False) -> bool:
        """Note that a session is used; return whether it is new.

        Args:
            name: The session.
            address: Where it comes from.
            joins: Whether it starts a function, whose events it will listen to.

        Raises:
            Crowded: It is new, and there is no room for it.
        """
        with self._lock:
            now = self._clock()
            session = self._sessions.get(name)
            is_new = session is None
            if session is None:
                self._make_room(address, now)
                session = self._sessions[name] = _Session(address, now)
            session.used_at = now
            if joins:
                session.joined_at = now
            return is_new

    def note_move(self, name: str) -> None:
        """Note that the visitor of a session has moved a control."""
        with self._lock:
            if session := self._sessions.get(name):
                session.has_moved = True

    def has_moved(self, name: str) -> bool:
        """Return whether the visitor of a session has moved a control."""
        with self._lock:
            session = self._sessions.get(name)
            return session is not None and session.has_moved

    def rename(self, name: str, new_name: str) -> None:
        """Give a session that started a function its name, as soon as that is known."""
        with self._lock:
            if session := self._sessions.pop(name, None):
                session.joined_at = session.used_at = self._clock()
                self._sessions.setdefault(new_name, session)

    @contextmanager
    def stream(self, name: str, address: str) -> Iterator[None]:
        """Count a stream while it is open.

        Raises:
            Crowded: There is no room for the session, or it has too many streams.
        """
        self.use(name, address)
        with self._lock:
            session = self._sessions[name]
            if session.streams >= MAX_STREAMS:
                raise Crowded("This visit has too many connections. Close some of its windows.")
            session.streams += 1
        try:
            yield
        finally:
            with self._lock:
                session.streams -= 1
                session.used_at = self._clock()
                if session.joined_at is not None:
                    session.joined_at = session.used_at

    def is_unheard(self, name: str) -> bool:
        """Return whether a session started functions and has not listened for a while.

        Nothing is known of sessions that came by another way; they count as heard.
        """
        with self._lock:
            session = self._sessions.get(name)
            if session is None or session.streams or session.joined_at is None:
                return False
            return self._clock() - session.joined_at > UNHEARD_SECONDS

    def _make_room(self, address: str, now: float) -> None:
        for name, session in list(self._sessions.items()):
            if not session.streams and now - session.used_at > IDLE_SECONDS:
                del self._sessions[name]
        counts = Counter(session.address for session in self._sessions.values())
        if counts[address] >= self._address_size:
            if not self._drop_idle(address):
                raise Crowded("Too many visits from your network are open. Close some windows, or wait.")
        elif len(self._sessions) >= self._size:
            # Of two with equally many, neither gives way to the other.
            givers = [other for other, count in counts.most_common() if count > counts[address] + 1]
            if not any(self._drop_idle(other) for other in [*givers, address]):
                raise Crowded("Too many people are visiting this page. Please try again in a few minutes.")

    def _drop_idle(self, address: str) -> bool:
        """Drop the session of an address that was used least recently and that nobody listens to, if any."""
        idle = [
            (session.used_at, name)
            for name, session in self._sessions.items()
            if session.address == address and not session.streams
        ]
        if idle:
            del self._sessions[min(idle)[1]]
        return bool(idle)
