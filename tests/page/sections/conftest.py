"""The page as it is laid out, with its handlers called directly."""

import asyncio
import inspect
from itertools import count
from types import SimpleNamespace

import pytest

from page.layout import build_page
from page.server.warm_up import WarmUp


def read_all(generator):
    """What an asynchronous generator yields."""

    async def read():
        return [value async for value in generator]

    return asyncio.run(read())


@pytest.fixture(scope="session")
def demo():
    return build_page(WarmUp())


@pytest.fixture
def handler(demo):
    """`handler(name)` returns the private handler of that name. It checks that a handler changes only what
    it was connected to."""

    def find(name):
        names = {name, *(f"{name}_{number}" for number in range(1, 5))}
        (function,) = (
            function
            for function in demo.fns.values()
            if function.api_name in names and function.api_visibility == "private"
        )

        def call(*values):
            made = function.fn(*values)
            if inspect.isasyncgen(made):
                made = read_all(made)
            elif inspect.iscoroutine(made):
                made = asyncio.run(made)
            for updates in [made] if isinstance(made, dict) else made:
                assert set(updates) <= set(function.outputs)
                named = {}
                for part, value in updates.items():
                    # States have no name of their own. The first one is the recipe.
                    named.setdefault(part.elem_id or part.get_block_name(), value)
                yield named

        return call

    return find


@pytest.fixture
def request_of():
    """A request of a visitor whom no other test uses."""
    numbers = count()

    def request():
        return SimpleNamespace(
            session_hash=f"visitor{id(numbers)}{next(numbers)}", headers={"host": "page"}, query_params={}
        )

    return request
