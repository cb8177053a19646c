"""Workers for the page's functions when tests call them directly."""

import pytest

from page.server import session
from page.server.queue import Queue
from page.workers.tasks import INTERACTIVE, LONG, LOOK_UP
from tests.helpers.workers import thread_pool


@pytest.fixture
def pools(monkeypatch):
    """The page's pools, open, with threads for processes: what a test patches holds in them too."""
    opened = {kind: thread_pool() for kind in (INTERACTIVE, LONG, LOOK_UP)}
    monkeypatch.setattr(session.pools, "_pools", opened)
    for kind in (INTERACTIVE, LONG):
        monkeypatch.setitem(session.queues, kind, Queue(8))
    yield session.pools
    for pool in opened.values():
        pool.close()
