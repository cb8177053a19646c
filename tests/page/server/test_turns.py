"""Requests of one address wait for each other, and for no other address."""

import asyncio

import pytest

from page.server import turns as module
from page.server.bodies import Refused
from page.server.turns import AT_ONCE, MAX_WAITING, Turns


class Busy:
    """Requests that hold their turns until they are let go."""

    def __init__(self):
        self.turns, self.under_way, self.leave = Turns(), [], asyncio.Event()

    async def ask(self, address):
        async with self.turns.of(address):
            self.under_way.append(address)
            await self.leave.wait()

    def start(self, address, count):
        return [asyncio.ensure_future(self.ask(address)) for _ in range(count)]


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def test_few_requests_of_one_address_are_answered_at_the_same_time():
    async def run():
        busy = Busy()
        asked = busy.start("flood", 3 * AT_ONCE)
        await settle()
        assert len(busy.under_way) == AT_ONCE
        busy.leave.set()
        await asyncio.gather(*asked)
        assert len(busy.under_way) == 3 * AT_ONCE

    asyncio.run(run())


def test_another_address_does_not_wait_for_a_flood():
    async def run():
        busy = Busy()
        flood = busy.start("flood", MAX_WAITING)
        await settle()
        other = busy.start("visitor", 1)
        await settle()
        assert busy.under_way[-1] == "visitor"
        busy.leave.set()
        await asyncio.gather(*flood, *other)

    asyncio.run(run())


def test_a_flood_is_refused_at_some_point_and_forgotten_afterwards():
    async def run():
        busy = Busy()
        flood = busy.start("flood", AT_ONCE + MAX_WAITING)
        await settle()
        with pytest.raises(Refused, match="Too many requests") as refused:
            await busy.ask("flood")
        assert refused.value.status == 503
        busy.leave.set()
        await asyncio.gather(*flood)
        assert busy.turns._addresses == {}

    asyncio.run(run())


def test_clients_that_never_read_their_answers_hold_up_nobody_for_long(monkeypatch):
    monkeypatch.setattr(module, "LONGEST_SECONDS", 0.05)

    async def run():
        busy = Busy()
        slow = busy.start("class", AT_ONCE)
        await settle()
        fast = Busy()
        fast.turns = busy.turns
        fast.leave.set()
        await asyncio.wait_for(asyncio.gather(*fast.start("class", 2 * AT_ONCE)), 20)
        busy.leave.set()
        await asyncio.gather(*slow)
        await asyncio.gather(*fast.start("class", 1))

    asyncio.run(run())


def test_a_request_that_fails_gives_its_turn_back():
    async def fail(turns):
        async with turns.of("visitor"):
            raise ZeroDivisionError

    async def run():
        turns = Turns()
        for _ in range(2 * AT_ONCE):
            with pytest.raises(ZeroDivisionError):
                await fail(turns)
        async with turns.of("visitor"):
            pass

    asyncio.run(run())
