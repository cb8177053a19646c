"""Worker processes: what one task does to its worker is nobody else's concern."""

import ast
import os
import threading
import time
from pathlib import Path

import pytest

from page.workers import fork_server, process
from page.workers.messages import Done, Failed, Partial, Progress, Stopped
from page.workers.pool import memory_share, worker_memory
from page.workers.workbench import Visitor
from pruning import PruningError
from pruning.errors import Cancelled
from pruning.memory import total_memory
from tests.helpers.workers import (
    MB,
    Answer,
    Break,
    Count,
    Deaf,
    Die,
    Endless,
    Environment,
    Fail,
    Panic,
    ProcessNumber,
    Sleep,
    StartChild,
    Take,
    UntilFinish,
    Upload,
    open_pool,
    thread_pool,
)

PATIENCE = 60
"""Seconds that a busy machine may take."""


@pytest.fixture(scope="module")
def pool():
    """A pool whose workers may take 300 MB."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "secret")
        fork_server.start()
        pool = open_pool(memory=300 * MB)
    watching = threading.Event()

    def watch():
        while not watching.wait(0.05):
            pool.watch()

    thread = threading.Thread(target=watch)
    thread.start()
    yield pool
    watching.set()
    thread.join()
    pool.close()


def never():
    """Check nothing."""


def perform(pool, task, check=never, **settings):
    return [event for event in pool.perform(task, Visitor(), check, **settings) if event is not None]


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_a_task_yields_its_parts_and_then_its_result(pool):
    task = Answer("whole", ("half", "more"))
    assert perform(pool, task) == [Partial("half"), Partial("more"), Done("whole")]


def test_tasks_do_not_run_in_the_process_of_the_page(pool):
    (event,) = perform(pool, ProcessNumber())
    assert event.value != os.getpid()


def test_an_error_for_the_user_is_passed_on(pool):
    assert perform(pool, Fail("Move the slider.")) == [Failed("Move the slider.")]


@pytest.mark.parametrize("task", [Break("secret"), Panic()], ids=["a bug", "a panic of a Rust library"])
def test_what_no_user_should_see_is_logged_and_the_worker_goes_on(pool, task, caplog):
    (before,) = perform(pool, ProcessNumber())
    (event,) = perform(pool, task)
    assert isinstance(event, Failed)
    assert event.message.startswith("Something went wrong on our side.")
    assert "secret" in caplog.text
    assert perform(pool, ProcessNumber()) == [before]


def test_of_fast_progress_only_some_is_sent(pool):
    events = perform(pool, Count(10_000))
    assert events[-1] == Done(10_000)
    assert len(events) < 1000


def test_the_newest_progress_is_sent_even_if_nothing_follows_it(pool):
    events = perform(pool, Count(3, seconds=0.4))
    assert [event.done for event in events[:-1]] == [0, 1, 2]


@pytest.mark.parametrize("task", [Die(), Take(1000 * MB), Take(1000 * MB, at_once=True)], ids=str)
def test_a_worker_that_dies_fails_its_own_task_alone(pool, task):
    before = pool.workers[0].pid
    *_, event = perform(pool, task)
    assert isinstance(event, Failed)
    assert "Something went wrong" not in event.message
    assert perform(pool, Answer("next")) == [Done("next")]
    if task != Take(1000 * MB, at_once=True):
        assert pool.workers[0].pid != before


def test_too_much_memory_is_refused_with_the_number(pool):
    *_, event = perform(pool, Take(1000 * MB))
    assert "more than the 0.3 GB of memory" in event.message


def test_a_task_that_hears_nothing_is_killed_when_it_is_stopped(pool, monkeypatch):
    monkeypatch.setattr(process, "STOP_SECONDS", 0.3)
    events = pool.perform(Deaf(), Visitor(), never)
    while next(events) != Partial("started"):
        pass
    pid = pool.workers[0].pid
    events.close()
    assert perform(pool, Answer("next")) == [Done("next")]
    wait_until(lambda: not runs(pid))


def test_a_worker_without_a_heartbeat_is_killed(pool, monkeypatch):
    monkeypatch.setattr(process, "SILENCE_SECONDS", 3.0)
    *_, event = perform(pool, Deaf())
    assert isinstance(event, Failed)
    monkeypatch.undo()
    assert perform(pool, Answer("next")) == [Done("next")]


def test_a_task_is_killed_at_its_deadline(pool):
    *_, event = perform(pool, Sleep(1000), seconds=0.5)
    assert isinstance(event, Failed)
    assert perform(pool, Answer("next")) == [Done("next")]


def test_a_stopped_task_ends_and_its_worker_goes_on(pool, tmp_path):
    stop = threading.Event()

    def check():
        if stop.is_set():
            raise Cancelled("Stopped.")

    file = tmp_path / "over"
    events = pool.perform(Endless(str(file)), Visitor(), check)
    next(event for event in events if isinstance(event, Progress))
    pid = pool.workers[0].pid
    stop.set()
    with pytest.raises(Cancelled):
        list(events)
    wait_until(file.exists)
    assert perform(pool, Answer("next")) == [Done("next")]
    assert pool.workers[0].pid == pid


def test_a_task_that_is_no_longer_watched_ends(pool, tmp_path):
    file = tmp_path / "over"
    events = pool.perform(Endless(str(file)), Visitor(), never)
    next(event for event in events if isinstance(event, Progress))
    events.close()
    wait_until(file.exists)


def test_a_detached_task_goes_on_when_it_is_no_longer_watched(pool):
    running = []
    events = pool.perform(Count(20, seconds=0.02), Visitor(), never, on_start=running.append, detached=True)
    next(event for event in events if isinstance(event, Progress))
    events.close()
    ending = None
    while not isinstance(ending, Done | Failed | Stopped):
        ending = running[0].events.get(timeout=PATIENCE)
    assert ending == Done(20)


def test_a_task_can_be_asked_to_end_with_what_it_has(pool):
    running = []
    events = pool.perform(UntilFinish(), Visitor(), never, on_start=running.append)
    next(event for event in events if isinstance(event, Progress))
    running[0].request_finish()
    assert list(events)[-1] == Done("so far")


def test_the_children_of_a_worker_end_with_it(pool):
    events = pool.perform(StartChild(), Visitor(), never)
    child = next(event for event in events if isinstance(event, Partial)).value
    assert runs(child)
    pool.workers[0].kill()
    assert isinstance(list(events)[-1], Failed)
    wait_until(lambda: not runs(child))


def test_an_upload_leaves_its_place_to_the_next_task(pool):
    upload = pool.perform(Upload(2.0), Visitor(), never)
    next(event for event in upload if event == Partial("uploading"))
    assert perform(pool, Answer("next")) == [Done("next")]
    assert list(upload)[-1] == Done("url")


def test_the_rest_of_an_upload_has_a_time_limit(pool):
    *_, event = perform(pool, Upload(1000.0, limit=0.5))
    assert isinstance(event, Failed)


def test_workers_have_no_secret_in_their_environment(pool):
    (event,) = perform(pool, Environment())
    for names in event.value:
        assert "HF_TOKEN" not in names
        assert "PATH" in names


def test_the_page_never_forks_itself():
    root = Path(__file__).parents[3]
    for file in [root / "app.py", *(root / "page").rglob("*.py"), *(root / "pruning").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            name = getattr(node, "attr", getattr(node, "id", ""))
            assert name not in ("fork", "forkpty", "ProcessPoolExecutor"), file
            assert not (isinstance(node, ast.Constant) and node.value in ("fork", "spawn")), file
    assert fork_server.context.get_start_method() == "forkserver"


def test_a_pool_that_is_closed_leaves_nothing_behind():
    before = threading.active_count()
    closed = thread_pool()
    assert perform(closed, Answer("value")) == [Done("value")]
    closed.close()
    wait_until(lambda: threading.active_count() <= before)


@pytest.mark.parametrize("text", ["0", "-1", "2", "nan", "much"])
def test_a_bad_share_of_memory_is_refused(monkeypatch, text):
    monkeypatch.setenv("SECATEUR_MEMORY_SHARE", text)
    with pytest.raises(PruningError, match="SECATEUR_MEMORY_SHARE"):
        memory_share()


def test_two_workers_with_models_share_what_the_setting_says(monkeypatch):
    monkeypatch.setenv("SECATEUR_MEMORY_SHARE", "0.25")
    assert worker_memory() == int(total_memory() * 0.125)
