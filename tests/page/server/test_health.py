"""The address that a watchdog asks."""

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.testclient import TestClient

from page.server.health import Health
from page.workers.pool import Pools


@pytest.fixture
def ask():
    """`ask(pools)` returns the status and the body of `/health`."""

    def answer(pools):
        client = TestClient(Starlette(middleware=[Middleware(Health, pools=pools)]))
        response = client.get("/health")
        assert client.get("/other").status_code == 404
        return response.status_code, response.json()

    return answer


def test_workers_that_answer_are_well(pools, ask):
    while not all(pools.ready.values()):
        pass
    assert ask(pools) == (200, {"status": "ok", "workers": dict.fromkeys(pools.ready, True)})


def test_a_page_whose_workers_do_not_answer_is_not_well(pools, ask):
    next(iter(pools._pools.values())).close()
    status, body = ask(pools)
    assert status == 503
    assert sum(body["workers"].values()) == len(body["workers"]) - 1


def test_a_page_that_has_not_started_its_workers_is_not_well(ask):
    assert ask(Pools())[0] == 503
