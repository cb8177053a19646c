"""Run jobs: wait for a turn, have the tasks performed by workers, and yield typed events until the job ends.

`watch_job` is for what several visitors may ask for: it takes what was made before from the store, watches what is
being made for others, and keeps no thread. `run_job` runs a job for one visitor alone.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from itertools import takewhile

from anyio import CapacityLimiter, to_thread

from page.server.budget import check_task
from page.server.look_ups import look_up
from page.server.queue import Busy, Job, JobKey
from page.server.session import JOB_SECONDS, flights, jobs, log, pools, queues, results, user_message
from page.store.flights import Finished, NotAdmitted, Watcher
from page.store.keys import Base, flight_key, is_public, result_key
from page.store.values import decode, encode
from page.workers.abilities import AbilitiesTask
from page.workers.messages import Done, Event, Failed, Partial, Progress, Released, Stopped
from page.workers.process import Running
from page.workers.tasks import CompareTask, EvaluateTask, PruneTask, Task
from page.workers.workbench import Visitor
from pruning import catalog
from pruning.errors import Cancelled, PruningError

PLANNING = CapacityLimiter(40)
"""How many jobs are planned at the same time: most of them wait for a look-up."""
REPLACED_SECONDS = 2.0
"""How long a job waits for the one that it replaces to show nothing more."""
OTHERS_WAIT = "Others are waiting for their results. Press Prune to wait for yours."
PUBLIC = Visitor()
"""A visitor without rights: what is made for them is everyone's."""


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
        tasks = _checked(plan(), visitor, seconds)
    except Exception as error:
        yield Failed(user_message(error))
        return
    job = jobs.start(name, queues[tasks[0].kind], seconds, detached)
    try:
        yield from _perform(job, tasks, visitor, seconds)
    except Exception as error:
        yield Failed(user_message(error))
    finally:
        jobs.finish(name, job)


class Replaced(Exception):
    """The visitor started another job of the same kind, so this one has nothing more to show."""


class Watch:
    """A visitor's job that watches work, its own or others'.

    Attributes:
        arrived: The place of its request among all requests.
        detached: Never: without its visitor, there is nobody to watch.
        is_replaced: Whether the visitor started another job of the same kind.
        is_stopped: Whether the visitor pressed Stop.
        ended: Set as soon as nothing more of it is shown.
    """

    detached = False

    def __init__(self, name: JobKey) -> None:
        self.arrived = name.arrived
        self.is_replaced = self.is_stopped = False
        self.ended = threading.Event()
        self._watcher: Watcher | None = None
        self._lock = threading.Lock()

    def stop(self) -> None:
        """Watch no longer; the work goes on for others."""
        self.is_stopped = True
        self._leave(Stopped("Stopped."))

    def replace(self) -> None:
        """Watch no longer, and show nothing more."""
        self.is_replaced = True
        self._leave(Finished())

    def request_finish(self) -> None:
        """Stop: what others watch cannot be cut short."""
        self.stop()

    def leave_queue(self) -> None:
        """Do nothing: the work itself has the place in the queue."""

    def follow(self, watcher: Watcher) -> None:
        """Watch some work, unless the job was stopped meanwhile."""
        with self._lock:
            self._watcher = watcher
        if self.is_replaced or self.is_stopped:
            self._leave(Finished() if self.is_replaced else Stopped("Stopped."))

    def check(self) -> None:
        """Raise `Replaced` if the job has nothing more to show."""
        if self.is_replaced:
            raise Replaced

    def _leave(self, event: Stopped | Finished) -> None:
        with self._lock:
            watcher = self._watcher
        if watcher is not None:
            watcher.close()
            watcher.tell(event)


@dataclass(frozen=True)
class Leg:
    """Tasks of a job that follow each other in one turn, and the key under which others may watch them."""

    tasks: tuple[Task, ...]
    key: str | None
    visitor: Visitor


@dataclass(frozen=True)
class Plan:
    """What is left to do of a job, after what was made before."""

    recorded: tuple[Done, ...]
    legs: tuple[Leg, ...]


async def watch_job(
    plan: Callable[[], Sequence[Task]],
    visitor: Visitor,
    name: JobKey,
    *,
    seconds: float = JOB_SECONDS,
    live: bool = False,
    waits: bool = True,
) -> AsyncGenerator[Event, None]:
    """Show the results of tasks: recorded ones at once, the others as they are computed.

    A visitor has one job of a name: an earlier one ends. Stopping it and leaving end the work only if nobody else
    watches it.

    Args:
        plan: Returns the tasks; it may raise what the visitor is then told.
        visitor: Who asks.
        name: Which job it is, as `job_name` returns it.
        seconds: How long the work of each turn may take.
        live: Whether everything is made now, even if it was made before.
        waits: Whether work is begun although others wait for theirs.

    Yields:
        The events of all tasks, with a `Done` for each; those of results that were made before come first. If a task
        fails or the job is stopped, the last event is `Failed` or `Stopped`.

    Raises:
        Replaced: The visitor started another job of this name.
    """
    watch = Watch(name)
    watcher: Watcher | None = None
    ending: Failed | Stopped | None = None
    planned = Plan((), ())
    try:
        planned = await to_thread.run_sync(
            partial(_plan, plan, visitor, seconds, live), limiter=PLANNING, abandon_on_cancel=True
        )
        if not waits and any(len(queues[leg.tasks[0].kind]) > 1 for leg in planned.legs):
            planned, ending = Plan((), ()), Stopped(OTHERS_WAIT)
    except Exception as error:
        ending = Failed(user_message(error))
    try:
        # The first of the work is joined before the earlier job leaves it: both may be the same.
        for leg in planned.legs[:1]:
            watcher = _join(leg, name, seconds)
            watch.follow(watcher)
        replaced = jobs.replace(name, watch)
        watch.check()
        await wait_for_end(replaced)
        watch.check()
        if ending is not None:
            yield ending
            return
        for done in planned.recorded:
            watch.check()
            yield done
        for leg in planned.legs:
            if watcher is None:
                watcher = _join(leg, name, seconds)
                watch.follow(watcher)
            async with aclosing(watcher.events()) as events:
                async for event in events:
                    watch.check()
                    yield event
                    if isinstance(event, Stopped | Failed):
                        return
            watch.check()
            watcher = None
    finally:
        if watcher is not None:
            watcher.close()
        watch.ended.set()
        jobs.finish(name, watch)


async def wait_for_end(replaced: object) -> None:
    """Wait until a job that was replaced has nothing more to show, but not for long."""
    if isinstance(replaced, Watch):
        end = asyncio.get_running_loop().time() + REPLACED_SECONDS
        while not replaced.ended.is_set() and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.01)


def _join(leg: Leg, name: JobKey, seconds: float) -> Watcher:
    run = partial(_run_leg, leg, seconds)
    return flights.watch(leg.key, name.session, name, run)


def _run_leg(leg: Leg, seconds: float, starter: JobKey, is_abandoned: Callable[[], bool]) -> Iterator[Event]:
    """Perform tasks that are watched, and keep their results.

    Raises:
        NotAdmitted: The visitor who starts them gets no place in the queue.
    """
    job = Job(queues[leg.tasks[0].kind], seconds, key=starter, is_unheard=lambda _: is_abandoned())
    tasks = iter(leg.tasks)
    try:
        for event in _perform(job, leg.tasks, leg.visitor, seconds):
            if isinstance(event, Done):
                keep(next(tasks), event.value)
            yield event
    except Busy as busy:
        raise NotAdmitted(str(busy)) from None
    except Exception as error:
        yield Failed(user_message(error))
    finally:
        job.leave_queue()


def _plan(plan: Callable[[], Sequence[Task]], visitor: Visitor, seconds: float, live: bool) -> Plan:
    """Return what is left to do of a job; raise what the visitor is told if it cannot be done."""
    find = partial(find_base, visitor)
    tasks = _checked(plan(), visitor, seconds)
    recorded: list[Done] = []
    legs = []
    for turn in _in_turns(tasks):
        # In a turn, what comes after a result that is missing is made with it.
        known = (
            [] if live else list(takewhile(lambda done: done is not None, (recall(t, visitor) for t in turn)))
        )
        recorded += [done for done in known if done is not None]
        if rest := turn[len(known) :]:
            owner = PUBLIC if is_public(rest, find) else visitor
            legs.append(Leg(rest, flight_key(rest, visitor.owner, find), owner))
    return Plan(tuple(recorded), tuple(legs))


def _checked(tasks: Sequence[Task], visitor: Visitor, seconds: float) -> Sequence[Task]:
    for task in tasks:
        check_task(task, visitor, seconds)
    return tasks


def _in_turns(tasks: Iterable[Task]) -> list[tuple[Task, ...]]:
    """Group tasks by the turns in which they are performed."""
    turns: list[list[Task]] = []
    for task in tasks:
        if not turns or task.requeues:
            turns.append([])
        turns[-1].append(task)
    return [tuple(turn) for turn in turns]


def recall(task: Task, visitor: Visitor) -> Done | None:
    """Return the result of a task that was made before; None if there is none.

    Raises:
        PruningError: A model that it needs cannot be used.
    """
    key = result_key(task, partial(find_base, visitor))
    entry = None if key is None else results.find(key)
    if key is None or entry is None:
        return None
    found = look_up(_base_of(task), visitor)
    try:
        return Done(decode(task, entry.value, found.source.revision, found), recorded=entry.made)
    except (ValueError, TypeError, KeyError, AttributeError, PruningError):
        results.remove(key)  # Damaged, so it is made again.
        return None


def recall_from(task: Task, base: Base) -> Done | None:
    """Return the result of a task that was made before from a base that is known; None if there is none.

    Args:
        task: A task whose results are kept without their base.
        base: The base, which is not looked up.
    """
    key = result_key(task, lambda _: base)
    entry = None if key is None else results.find(key)
    if key is None or entry is None:
        return None
    try:
        return Done(decode(task, entry.value, base.revision), recorded=entry.made)
    except (ValueError, TypeError, KeyError):
        results.remove(key)  # Damaged, so it is made again.
        return None


def keep(task: Task, value: object) -> None:
    """Keep the result of a task, if it may be kept. What fails here does not concern those who watch."""
    try:
        key = result_key(task, partial(find_base, PUBLIC))
        if key is not None:
            results.keep(key, encode(task, value))
    except PruningError:
        return
    except Exception as error:
        log.error("a result could not be kept", exc_info=error)


def find_base(visitor: Visitor, name: str) -> Base:
    """Return the base of a name. Raises `PruningError` if the visitor cannot use it."""
    return Base.of(look_up(name, visitor).source)


def _base_of(task: Task) -> str:
    match task:
        case PruneTask(recipe) | CompareTask(recipe) | EvaluateTask(recipe) | AbilitiesTask(recipe):
            return recipe.base
    return catalog.DEFAULT_MODEL


def _perform(job: Job, tasks: Sequence[Task], visitor: Visitor, seconds: float) -> Iterator[Event]:
    """Have tasks performed in the turns of a job, up to the first that fails or is stopped.

    Raises:
        TooLong: Its time is over.
        Busy: The queue is full.
    """
    try:
        for task in tasks:
            if task.requeues:
                job.requeue()
            if task.requeues or task is tasks[0]:
                job.work = type(task).__name__
            for event in _iter_events(job, task, visitor, seconds):
                yield event
                if isinstance(event, Stopped | Failed):
                    return
    except Cancelled as cancelled:
        yield Stopped(str(cancelled))


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
