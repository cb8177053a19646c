"""Rooms: the pages of a class, what is predicted on them, and the lesson that they follow.

A room is only in memory, holds no names, and is removed with its last page. Being in one takes neither a thread nor a
place in a queue: each page calls every few seconds, says what it shows, and learns what changed.
"""

import re
import secrets
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count

from pruning.errors import PruningError
from pruning.lessons import BY_KEY, LESSONS

MAX_ROOMS = 50
MAX_PAGES = 200
"""How many pages a room has, and how many predictions of a lesson: as many sessions as one address may have."""
MAX_NAME = 40
ABSENT_SECONDS = 60.0
"""How long a page stays in its room that neither calls nor keeps a connection open."""
SWEEP_SECONDS = 10.0
CALL_SECONDS = 2.0
"""Seconds between two calls of a page."""
WAITING_SECONDS = 5.0
"""The same for a page whose room is not open or full."""
CALLS_PER_SECOND = 15
"""How many calls all pages in rooms make together. With more than thirty pages, each calls less often."""
SECRET = re.compile(r"[A-Za-z0-9_-]{22,64}")
SEAT = re.compile(r"[A-Za-z0-9-]{16,64}")


class RoomError(PruningError):
    """A room cannot be opened or joined."""


class RoomFull(RoomError):
    """There are as many rooms, or pages in a room, as there may be."""


class NotOpen(RoomError):
    """No room with this name is open yet."""


@dataclass(frozen=True)
class Visit:
    """What a page says with each call.

    Attributes:
        session: Its session.
        name: The room in its address.
        secret: The teacher's secret in its address, if any.
        seat: What the browser's tab is called. It outlives a reload, which starts another session.
        lesson: The lesson that it shows.
        prediction: The option that is chosen there, if any.
        room_lesson: The room's lesson when it last called; empty for its first call.
    """

    session: str
    name: str
    secret: str = field(default="", repr=False)
    seat: str = ""
    lesson: str = ""
    prediction: str | None = None
    room_lesson: str = ""


@dataclass(frozen=True)
class View:
    """What a page may show of its room.

    Attributes:
        name: The name of the room.
        secret: The teacher's secret, on the pages of those who have it already; elsewhere empty.
        lesson: The lesson that the room follows.
        students: How many pages of students there are.
        answers: How many of them predicted something. Those who have left count too.
        counts: How many there are of each option; None until they are revealed.
        run: The number of the teacher's last run of a lesson, which rises with each; 0 before the first.
        live: Whether that was a live one.
        seconds: How long a page waits before it calls again.
    """

    name: str
    secret: str = field(repr=False)
    lesson: str
    students: int
    answers: int
    counts: tuple[int, ...] | None
    run: int
    live: bool
    seconds: float

    @property
    def is_teacher(self) -> bool:
        """Whether the page is a teacher's."""
        return bool(self.secret)


@dataclass
class _Page:
    """A page in a room."""

    seat: str
    seen_at: float
    is_teacher: bool = False


@dataclass
class _Room:
    """A room that is open."""

    name: str
    secret: str = field(repr=False)
    lesson: str
    pages: dict[str, _Page] = field(default_factory=dict)
    # By lesson and seat: a page whose phone is locked leaves, and what was predicted on it still counts.
    predictions: dict[str, dict[str, str]] = field(default_factory=dict)
    revealed: set[str] = field(default_factory=set)
    run: int = 0
    live: bool = False


class Rooms:
    """The rooms that are open."""

    def __init__(
        self,
        listening: Callable[[], Iterable[str]] = tuple,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create no rooms.

        Args:
            listening: Returns the sessions that keep a connection open.
            clock: Returns the time in seconds.
        """
        self._listening, self._clock = listening, clock
        self._rooms: dict[str, _Room] = {}
        self._room_of: dict[str, _Room] = {}  # By session.
        self._runs = count(1)  # Of all rooms, so that none has the number of another.
        self._swept_at = clock()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._rooms)

    def open(self, name: object, session: str, lesson: str) -> View:
        """Open a room and return it as its teacher sees it.

        Args:
            name: What the visitor calls it.
            session: The teacher's session.
            lesson: The lesson that the room begins with.

        Raises:
            RoomError: The name cannot be used, is used already, or there are too many rooms.
        """
        name = check_name(name)
        with self._lock:
            self._sweep()
            if name.casefold() in self._rooms:
                raise RoomError("A room of this name is open already. Choose another name.")
            room = self._add(name, secrets.token_urlsafe(), lesson)
            return self._enter(room, Visit(session, name, room.secret))

    def visit(self, visit: Visit) -> View:
        """Take a page into its room, note what it says, and return what it may show.

        A teacher's page that shows another lesson than before moves the room there. A teacher's link also opens its
        room again if everyone has left.

        Raises:
            NotOpen: No room with this name is open, and this is not a teacher's link.
            RoomError: The name cannot be one, or the room is full.
        """
        name = check_name(visit.name)
        with self._lock:
            self._sweep()
            room = self._rooms.get(name.casefold())
            if room is None:
                if not SECRET.fullmatch(visit.secret):
                    raise NotOpen(f"The room {name} is not open yet. This page joins it as soon as it is.")
                room = self._add(name, visit.secret, visit.lesson)
            return self._enter(room, visit)

    def reveal(self, name: str, secret: str) -> None:
        """Show everyone in a room the predictions of its lesson; do nothing without the teacher's secret."""
        with self._lock:
            room = self._rooms.get(check_name(name).casefold())
            if room is not None and _is_secret_of(room, secret):
                room.revealed.add(room.lesson)

    def note_run(self, session: str, lesson: str, live: bool) -> None:
        """Have the pages of a room run its lesson, if the session that runs it is its teacher's."""
        with self._lock:
            room = self._room_of.get(session)
            if room is not None and room.lesson == lesson and room.pages[session].is_teacher:
                room.run, room.live = next(self._runs), live

    def leave(self, session: str) -> None:
        """Take a session out of its room, which is removed with the last one."""
        with self._lock:
            self._leave(session)

    def _add(self, name: str, secret: str, lesson: str) -> _Room:
        if len(self._rooms) >= MAX_ROOMS:
            raise RoomFull(f"{MAX_ROOMS} rooms are open, and no more fit. Please try again later.")
        lesson = lesson if lesson in BY_KEY else LESSONS[0].key
        room = self._rooms[name.casefold()] = _Room(name, secret, lesson)
        return room

    def _enter(self, room: _Room, visit: Visit) -> View:
        session = visit.session
        if self._room_of.get(session) is not room:
            if len(room.pages) >= MAX_PAGES:
                raise RoomFull(f"The room {room.name} is full: it has {MAX_PAGES} pages.")
            if (former := self._room_of.get(session)) is not None:
                _drop_predictions(former, former.pages[session].seat)
            self._leave(session)
            self._room_of[session] = room
        seat = visit.seat if SEAT.fullmatch(visit.seat) else session
        page = room.pages.setdefault(session, _Page(seat, 0.0))
        if page.seat != seat:
            _drop_predictions(room, page.seat)  # A session has one seat, however many it names.
        page.seat, page.seen_at, page.is_teacher = seat, self._clock(), _is_secret_of(room, visit.secret)
        if page.is_teacher and visit.room_lesson == room.lesson and visit.lesson in BY_KEY:
            room.lesson = visit.lesson
        if not page.is_teacher:
            _note_prediction(room, seat, visit)
        return self._view(room, page)

    def _view(self, room: _Room, page: _Page) -> View:
        predictions = room.predictions.get(room.lesson, {})
        counts = Counter(predictions.values())
        options = BY_KEY[room.lesson].prediction[1]
        return View(
            room.name,
            room.secret if page.is_teacher else "",
            room.lesson,
            sum(not other.is_teacher for other in room.pages.values()),
            len(predictions),
            tuple(counts[option] for option in options) if room.lesson in room.revealed else None,
            room.run,
            room.live,
            max(CALL_SECONDS, -(-len(self._room_of) // CALLS_PER_SECOND)),
        )

    def _leave(self, session: str) -> None:
        room = self._room_of.pop(session, None)
        if room is not None:
            del room.pages[session]
            if not room.pages:
                del self._rooms[room.name.casefold()]

    def _sweep(self) -> None:
        """Take out the pages of which nothing was heard: a page that was closed oddly says no word of it."""
        now = self._clock()
        if now - self._swept_at < SWEEP_SECONDS:
            return
        self._swept_at = now
        listening = set(self._listening())
        for session, room in list(self._room_of.items()):
            if session not in listening and now - room.pages[session].seen_at > ABSENT_SECONDS:
                self._leave(session)


def check_name(name: object) -> str:
    """Return the name of a room, with single spaces.

    Raises:
        RoomError: It is empty, too long, or has characters that cannot be seen.
    """
    text = unicodedata.normalize("NFC", " ".join(name.split())) if isinstance(name, str) else ""
    if not 0 < len(text) <= MAX_NAME or not text.isprintable():
        raise RoomError(
            f"A room's name has 1 to {MAX_NAME} letters, digits or other characters that can be seen."
        )
    return text


def _is_secret_of(room: _Room, secret: str) -> bool:
    return SECRET.fullmatch(secret) is not None and secrets.compare_digest(secret, room.secret)


def _note_prediction(room: _Room, seat: str, visit: Visit) -> None:
    """Count the prediction of a page for the room's lesson, in place of the one that was made there before."""
    if visit.lesson != room.lesson or visit.prediction not in BY_KEY[room.lesson].prediction[1]:
        return
    predictions = room.predictions.setdefault(room.lesson, {})
    if seat in predictions or len(predictions) < MAX_PAGES:
        predictions[seat] = visit.prediction


def _drop_predictions(room: _Room, seat: str) -> None:
    for predictions in room.predictions.values():
        predictions.pop(seat, None)
