"""Read the bodies of requests, with bounds on their size, on how long they take, and on how many there are."""

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Scope = MutableMapping[str, Any]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BYTES = 2_000_000
"""Bytes of the largest call: the longest text that can be pasted fits, however it is written."""
SMALL_BYTES = 10_000
"""Bytes of a call without a text or a recipe."""
MAX_VALUES = 5_000
"""Values in one call; the page's largest calls have about a hundred."""
READ_SECONDS = 30.0
MAX_BODIES = 256
"""How many bodies may be on their way at the same time, and of those from one address a quarter."""
MAX_LARGE_BODIES = 16
"""How many of them may be larger than `SMALL_BYTES`, and of those from one address a quarter."""

_VALUE = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{,]', re.DOTALL)
"""A whole text, or what comes before a value. A text that does not end runs to the end of the body."""


class Refused(Exception):
    """A request that is not made as the page makes it.

    Attributes:
        status: The HTTP status of the answer.
    """

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


class BodyReader:
    """Reads bodies; one address cannot take all places."""

    def __init__(self) -> None:
        self._all: Counter[str] = Counter()
        self._large: Counter[str] = Counter()

    async def read(self, receive: Receive, address: str, limit: int) -> bytes:
        """Return the whole body of a request.

        Args:
            receive: Receives its parts.
            address: Where it comes from.
            limit: How many bytes it may have.

        Raises:
            Refused: It is too large or too slow, or too many are on their way.
        """
        held: list[Counter[str]] = []
        try:
            _take(self._all, address, MAX_BODIES, held)
            async with asyncio.timeout(READ_SECONDS):
                body = bytearray()
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refused("The call ended before it was complete.", 400)
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise Refused(f"A call of this kind may have {limit:,} bytes at most.", 413)
                    if len(body) > SMALL_BYTES and len(held) == 1:
                        _take(self._large, address, MAX_LARGE_BODIES, held)
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise Refused(f"The call took longer than {READ_SECONDS:.0f} seconds to arrive.", 408) from None
        finally:
            for places in held:
                places[address] -= 1
                if not places[address]:
                    del places[address]


def _take(places: Counter[str], address: str, size: int, held: list[Counter[str]]) -> None:
    """Take a place for an address; raises `Refused` if there is none."""
    if places.total() >= size or places[address] >= size // 4:
        raise Refused("Too many calls arrive at the same time. Please try again in a moment.", 503)
    places[address] += 1
    held.append(places)


def check_count(body: bytes) -> None:
    """Refuse a body with too many values, before any of them is built; raises `Refused`."""
    count = 0
    for found in _VALUE.finditer(body):
        # Text counts with the comma or bracket before it.
        count += found[0][:1] != b'"'
        if count > MAX_VALUES:
            raise Refused(f"A call may have {MAX_VALUES:,} values at most.")


def receive_again(body: bytes, receive: Receive) -> Receive:
    """Return a receiver of a body that was read, then of what comes after it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return messages.pop() if messages else await receive()

    return again
