"""A stranger who attacks the page, and the table that the attacks are added to."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.client import API, Client, told
from benchmarks.contained import ContainedPage


class Leak(Exception):
    """The attacker got what they wanted."""


class Attacker(Client):
    """A stranger, with an address of their own.

    Attributes:
        page: The page, for those attacks that no stranger could make: faults of the machine.
        config: What the page serves at `/config`.
    """

    def __init__(self, page: ContainedPage, config: dict[str, Any], address: str) -> None:
        super().__init__(page.url, config, address)
        self.page, self.config, self.address = page, config, address
        self._others: list[Client] = []
        self._sockets: list[asyncio.StreamWriter] = []

    def other(self) -> Client:
        """Return another session of the same stranger."""
        client = Client(self.page.url, self.config, self.address)
        self._others.append(client)
        return client

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection that stays open until the stranger leaves."""
        url = httpx.URL(self.page.url)
        reader, writer = await asyncio.open_connection(url.host, url.port, local_addr=(self.address, 0))
        self._sockets.append(writer)
        return reader, writer

    async def post(self, content: bytes, **headers: str) -> httpx.Response:
        """Send anything as a call."""
        return await self.http.post(
            f"{API}/queue/join", content=content, headers={"Content-Type": "application/json", **headers}
        )

    async def leave(self) -> None:
        """Hang up."""
        for writer in self._sockets:
            writer.transport.abort()
        for client in (self, *self._others):
            await client.http.aclose()


Act = Callable[[Attacker], Awaitable[str]]


@dataclass(frozen=True)
class Input:
    """A hostile input.

    Attributes:
        kind: What it is an example of.
        name: Its name.
        act: Does it.
        retries: How often the honest visitor may have to press the button again, if the input kills workers.
    """

    kind: str
    name: str
    act: Act
    retries: int = 0


INPUTS: list[Input] = []


def attack(kind: str, name: str, retries: int = 0) -> Callable[[Act], Act]:
    """Add a function to the inputs."""

    def add(act: Act) -> Act:
        INPUTS.append(Input(kind, name, act, retries))
        return act

    return add


def summary(answers: Iterable[object]) -> str:
    """Return many answers in one line, the most frequent first."""
    return "; ".join(f"{count} × {text}" for text, count in Counter(map(_sentence, answers)).most_common(4))


def _sentence(answer: object) -> str:
    match answer:
        case httpx.Response():
            return (
                f"{answer.status_code} {told(answer.text)[:90] if answer.status_code != 200 else ''}".strip()
            )
        case BaseException():
            return type(answer).__name__
    return told(str(answer))[:90]


async def together(calls: Iterable[Awaitable[object]]) -> str:
    """Make many calls at the same time, and return their answers in one line."""
    return summary(await asyncio.gather(*calls, return_exceptions=True))
