"""Look-ups of models: remembered, shared, and few at a time."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from page.server import look_ups as module
from page.server.look_ups import MAX_FOUND, MAX_OF_SESSION, LookUps
from page.workers.workbench import Visitor
from pruning import Access, ModelError, PruningError
from tests.helpers import models

pytestmark = pytest.mark.usefixtures("pools")

ADA = Visitor("ada:1", Access(token="ada-token", local=False))
BOB = Visitor("bob:2", Access(token="bob-token", local=False))
ANYONE, SOMEONE = Visitor("one:0"), Visitor("other:0")


@pytest.fixture
def hub(monkeypatch):
    """A Hub that counts how often it is asked; models are public unless their name says otherwise."""
    asked = []

    def find(name, access, progress):
        asked.append(name)
        if "missing" in name:
            raise ModelError(f"There is no {name}.")
        source = models.loaded("llama").source
        return replace(source, name=name, public="private" not in name)

    monkeypatch.setattr("page.workers.tasks.find", find)
    return asked


def test_a_public_model_is_looked_up_once_for_everyone(hub):
    look_ups = LookUps()
    found = look_ups.find("acme/model", ANYONE)
    assert look_ups.find("acme/model", ADA) is found
    assert found.shape.parameters > 0
    assert hub == ["acme/model"]


def test_a_private_model_is_found_by_its_owner_alone_and_forgotten_with_them(hub):
    look_ups = LookUps()
    assert look_ups.find("acme/private", ADA) is look_ups.find("acme/private", ADA)
    look_ups.find("acme/private", BOB)
    look_ups.forget("ada")
    look_ups.find("acme/private", ADA)
    look_ups.find("acme/private", BOB)
    assert len(hub) == 3


def test_a_refusal_is_remembered_for_a_while(hub, monkeypatch):
    look_ups = LookUps()
    for visitor in (ANYONE, SOMEONE, ANYONE):
        with pytest.raises(ModelError, match="There is no acme/missing"):
            look_ups.find("acme/missing", visitor)
    assert len(hub) == 1
    monkeypatch.setattr(module, "REFUSED_SECONDS", 0.0)
    other = LookUps()
    for _ in range(2):
        with pytest.raises(ModelError):
            other.find("acme/missing", ANYONE)
    assert len(hub) == 3


def test_what_the_hub_refuses_one_account_it_may_show_another(hub):
    look_ups = LookUps()
    for visitor in (ADA, BOB, ANYONE):
        with pytest.raises(ModelError):
            look_ups.find("acme/missing", visitor)
    assert len(hub) == 3


def test_the_same_name_is_looked_up_once_at_a_time(hub, monkeypatch):
    look_ups, entered, leave = LookUps(), threading.Event(), threading.Event()

    def slow(name, access, progress):
        entered.set()
        assert leave.wait(20)
        hub.append(name)
        return replace(models.loaded("llama").source, name=name, public=True)

    monkeypatch.setattr("page.workers.tasks.find", slow)
    with ThreadPoolExecutor(8) as threads:
        futures = [threads.submit(look_ups.find, "acme/model", Visitor(f"v{n}:0")) for n in range(8)]
        assert entered.wait(20)
        leave.set()
        assert len({id(future.result(20)) for future in futures}) <= 2
    assert len(hub) == 1


def test_one_visitor_cannot_take_all_look_ups(hub, monkeypatch):
    look_ups, leave = LookUps(), threading.Event()

    def slow(name, access, progress):
        assert leave.wait(20)
        return replace(models.loaded("llama").source, name=name, public=True)

    monkeypatch.setattr("page.workers.tasks.find", slow)
    with ThreadPoolExecutor(8) as threads:
        futures = [threads.submit(look_ups.find, f"acme/{n}", ANYONE) for n in range(MAX_OF_SESSION + 1)]
        refused = [future for future in futures if waits(future)]
        assert len(refused) == 1
        assert isinstance(refused[0].exception(), PruningError)
        other = threads.submit(look_ups.find, "acme/other", SOMEONE)
        leave.set()
        assert other.result(20).source.name == "acme/other"


def waits(future):
    """Whether a look-up was refused; the others wait for the Hub."""
    try:
        return future.exception(1) is not None
    except TimeoutError:
        return False


def test_few_models_are_remembered(hub):
    look_ups = LookUps()
    for number in range(MAX_FOUND + 3):
        look_ups.find(f"acme/{number}", ANYONE)
    look_ups.find(f"acme/{MAX_FOUND + 2}", ANYONE)
    assert len(hub) == MAX_FOUND + 3
    look_ups.find("acme/0", ANYONE)
    assert len(hub) == MAX_FOUND + 4
