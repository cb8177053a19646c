"""Turns between addresses: few requests of one address are answered at the same time, and the others wait."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from page.server.bodies import Refused

AT_ONCE = 4
"""How many requests of one address are answered at the same time: as many as two cores answer at once, twice."""
MAX_WAITING = 256
"""How many more of them may wait: those of a class that opens the page together."""
LONGEST_SECONDS = 20.0
"""How long a request keeps its place: a client that reads its answer slowly does not hold up others."""


@dataclass
class _Address:
    """The requests of one address: those under way, and all."""

    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    requests: int = 0


class Turns:
    """Lets the requests of each address wait for each other, and for no other address."""

    def __init__(self) -> None:
        self._addresses: dict[str, _Address] = {}

    @asynccontextmanager
    async def of(self, address: str) -> AsyncIterator[None]:
        """Wait for a turn of an address, and hold it for the block, or for a while if the block takes longer.

        Raises:
            Refused: Too many requests of this address wait.
        """
        own = self._addresses.setdefault(address, _Address())
        if own.requests >= AT_ONCE + MAX_WAITING:
            raise Refused("Too many requests at the same time. Please try again in a moment.", 503)
        own.requests += 1
        try:
            await own.places.acquire()
            released = asyncio.get_running_loop().call_later(LONGEST_SECONDS, own.places.release)
            try:
                yield
            finally:
                if not released.cancelled() and released.when() > asyncio.get_running_loop().time():
                    released.cancel()
                    own.places.release()
        finally:
            own.requests -= 1
            if not own.requests:
                self._addresses.pop(address, None)
