"""Run jobs: wait for a turn, have the tasks performed by workers, and yield typed events until the job ends."""

from collections.abc import Callable, Generator, Iterator, Sequence

from page.server.budget import check_task
from page.server.queue import Job, JobKey
from page.server.session import JOB_SECONDS, jobs, pools, queues, user_message
from page.workers.messages import Done, Event, Failed, Partial, Progress, Released, Stopped
from page.workers.process import Running
from page.workers.tasks import Task
from page.workers.workbench import Visitor
from pruning.errors import Cancelled


def run_job(
    plan: Callable[[], Sequence[Task]],
    visitor: Visitor,
    name: JobKey,
    *,
    seconds: float = JOB_SECONDS,
    detached: bool = False,
) -> Generator[Event, None, None]:
    """Run the tasks of a job one after the other.

    The visitor's job of the same name is stopped first. When the events are no longer read, the job is
    stopped, unless it is detached.

    Args:
        plan: Returns the tasks, all of one kind; it may raise what the visitor is then told.
        visitor: Who asks.
        name: Which job it is, as `job_name` returns it.
        seconds: How long it may take.
        detached: Whether it continues without its visitor.

    Yields:
        The events of all tasks, with a `Done` for each. If one fails or the job is stopped, the last event is
        `Failed` or `Stopped`.
    """
    try:
        tasks = plan()
        for task in tasks:
            check_task(task, visitor, seconds)
    except Exception as error:
        yield Failed(user_message(error))
        return
    job = jobs.start(name, queues[tasks[0].kind], seconds, detached)
    try:
        for task in tasks:
            if task.requeues:
                job.requeue()
            for event in _iter_events(job, task, visitor, seconds):
                yield event
                if isinstance(event, Stopped | Failed):
                    return
    except Cancelled as cancelled:
        yield Stopped(str(cancelled))
    except Exception as error:
        yield Failed(user_message(error))
    finally:
        jobs.finish(name, job)


def _iter_events(job: Job, task: Task, visitor: Visitor, seconds: float) -> Iterator[Event]:
    """Wait for the job's turn, then have a task performed.

    Raises:
        Cancelled: The job was stopped.
        TooLong: Its time is over.
    """
    yield from job.wait_turn()
    running: list[Running] = []

    def check() -> None:
        job.check()
        if job.finish_requested and running:
            running.pop().request_finish()

    events = pools[task.kind].perform(
        task, visitor, check, seconds=seconds, on_start=running.append, detached=job.detached
    )
    for event in events:
        match event:
            case Released(limit):
                job.release(limit)
            case Progress() | Partial() | Done() | Stopped() | Failed():
                yield event
