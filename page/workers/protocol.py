"""What the page and a worker process say to each other over their connection: plain values, never tensors."""

from dataclasses import dataclass

from page.workers.messages import Done, Failed, Stopped, TaskEvent
from page.workers.tasks import Task
from page.workers.workbench import Visitor


@dataclass(frozen=True)
class Perform:
    """Perform a task. The worker answers with `Event`s of the same number, the last one an `Ending`."""

    number: int
    task: Task
    visitor: Visitor


@dataclass(frozen=True)
class Stop:
    """Stop a task; its result is dropped."""

    number: int


@dataclass(frozen=True)
class Finish:
    """End a task soon, with what it has."""

    number: int


@dataclass(frozen=True)
class Forget:
    """Drop what belongs to an owner; see `Workbench.forget`."""

    owner: str


@dataclass(frozen=True)
class Quit:
    """End."""


Command = Perform | Stop | Finish | Forget | Quit
"""What the page sends."""

Ending = Done | Stopped | Failed
"""The last event of a task."""


@dataclass(frozen=True)
class Event:
    """Something that a task emitted, or its end."""

    number: int
    value: TaskEvent | Ending


@dataclass(frozen=True)
class Alive:
    """The heartbeat of a worker, which it also sends as soon as it can work."""


Answer = Event | Alive
"""What a worker sends."""
