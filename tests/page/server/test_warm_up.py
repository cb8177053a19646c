"""What the page makes by itself while nobody waits: the results that visitors ask for first."""

from types import SimpleNamespace

import pytest

from page.server import session, warm_up
from page.server.queue import Job
from page.server.warm_up import WarmUp, give_way
from page.workers.messages import Done
from page.workers.tasks import INTERACTIVE, LONG
from page.workers.workbench import Visitor
from pruning import catalog
from pruning.errors import Cancelled
from tests.helpers.workers import Answer, Fail

pytestmark = pytest.mark.usefixtures("pools")


@pytest.fixture
def kept(monkeypatch):
    """What was kept, in order; the weights are those of the Hub."""
    kept = {}
    found = SimpleNamespace(source=SimpleNamespace(name=catalog.DEFAULT_MODEL, revision="commit"))
    monkeypatch.setattr(warm_up, "look_up", lambda name, visitor: found)
    monkeypatch.setattr(warm_up, "recall", lambda task, visitor: Done(kept[task]) if task in kept else None)
    monkeypatch.setattr(warm_up, "keep", kept.__setitem__)
    monkeypatch.setattr(warm_up, "IDLE_SECONDS", 0.01)
    return kept


def test_what_visitors_ask_for_first_is_made_once_where_it_does_not_come_with_the_program(kept, monkeypatch):
    tasks = [Answer(1), Answer(2), Fail("no"), Answer(3)]
    kept[tasks[1]] = "before"
    monkeypatch.setattr(warm_up, "first_tasks", lambda revision: tasks)
    WarmUp()._record(Visitor())
    assert kept == {tasks[1]: "before", tasks[0]: 1, tasks[3]: 3}


def test_nothing_is_made_for_the_weights_whose_results_come_with_the_program(kept, monkeypatch):
    revision = catalog.MODELS[catalog.DEFAULT_MODEL].offline.revision
    found = SimpleNamespace(source=SimpleNamespace(name=catalog.DEFAULT_MODEL, revision=revision))
    monkeypatch.setattr(warm_up, "look_up", lambda name, visitor: found)
    monkeypatch.setattr(warm_up, "first_tasks", lambda revision: [Answer(1)])
    WarmUp()._record(Visitor())
    assert kept == {}


@pytest.mark.parametrize("kind", [INTERACTIVE, LONG])
def test_a_visitor_goes_first(kind):
    give_way()
    job = Job(session.queues[kind])
    list(job.wait_turn())
    with pytest.raises(Cancelled):
        give_way()
    job.leave_queue()
    give_way()
