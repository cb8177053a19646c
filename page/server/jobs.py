"""Run jobs: wait for a turn, work in a thread, and yield typed events until the job ends."""

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from page.server.queue import Job, JobKey, Queue
from page.server.session import JOB_SECONDS, jobs, model_queue, user_message, workbench
from page.workers.messages import Done, Event, Failed, Partial, Progress, Released, Stopped, TaskEvent
from page.workers.tasks import Task, TaskContext
from page.workers.workbench import Visitor
from pruning.errors import Cancelled

PROGRESS_INTERVAL = 0.15
"""Seconds between two events of progress: each costs the page time that the work could use."""


@dataclass(frozen=True)
class _Raised:
    """What a task raised instead of giving a result."""

    error: BaseException


def run_job(
    plan: Callable[[], Sequence[Task]],
    visitor: Visitor,
    name: JobKey,
    *,
    queue: Queue | None = model_queue,
    seconds: float | None = JOB_SECONDS,
    detached: bool = False,
) -> Generator[Event, None, None]:
    """Run the tasks of a job one after the other.

    The visitor's job of the same name is stopped first. When the events are no longer read, the job is
    stopped, unless it is detached.

    Args:
        plan: Returns the tasks; it may raise what the visitor is then told.
        visitor: Who asks.
        name: Which job it is, as `job_name` returns it.
        queue: Where it waits for its turn.
        seconds: How long it may take.
        detached: Whether it continues without its visitor.

    Yields:
        The events of all tasks, with a `Done` for each. If one fails or the job is stopped, the last event is
        `Failed` or `Stopped`.
    """
    job = jobs.start(name, queue, seconds, detached)
    try:
        for task in plan():
            if task.requeues:
                job.requeue()
            yield from iter_events(job, task, visitor)
    except Cancelled as cancelled:
        yield Stopped(str(cancelled))
    except Exception as error:
        yield Failed(user_message(error))
    finally:
        jobs.finish(name, job)


def iter_events(job: Job, task: Task, visitor: Visitor) -> Iterator[Event]:
    """Wait for the job's turn, then perform a task in a thread; the last event is `Done`.

    Of progress that comes faster than it is read, or than `PROGRESS_INTERVAL`, only the newest is yielded.

    Raises:
        Cancelled: The job was stopped; the thread may take a moment longer to notice.
        Exception: What the task raised.
    """
    yield from job.wait_turn()
    events: SimpleQueue[TaskEvent | Done | _Raised] = SimpleQueue()

    def emit(event: TaskEvent) -> None:
        job.check()
        events.put(event)

    def work() -> None:
        try:
            events.put(Done(task.perform(TaskContext(workbench, visitor, emit, job))))
        except BaseException as error:
            events.put(_Raised(error))

    threading.Thread(target=work, daemon=True).start()
    ended = False
    try:
        for event in _latest(job, events):
            ended = isinstance(event, Done)
            yield event
    finally:
        if not ended and not job.detached:
            job.stop()


def _latest(
    job: Job, events: "SimpleQueue[TaskEvent | Done | _Raised]"
) -> Iterator[Progress | Partial | Done]:
    """Yield events until the task ends, leaving out progress that is out of date."""
    newest: Progress | None = None
    yielded_at = 0.0
    while True:
        job.check()
        event: TaskEvent | Done | _Raised | None
        try:
            event = events.get(timeout=PROGRESS_INTERVAL)
        except Empty:
            event = newest
        if isinstance(event, Progress):
            newest = event
            if time.monotonic() - yielded_at < PROGRESS_INTERVAL or not events.empty():
                continue
            yielded_at = time.monotonic()
        newest = None
        match event:
            case _Raised(error):
                raise error
            case Released(seconds):
                job.release(seconds)
            case Done():
                yield event
                return
            case Progress() | Partial():
                yield event
