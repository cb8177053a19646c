"""The progress of a training, and how to stop one early."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple, Self

from pruning.errors import Cancelled
from pruning.lazy import accelerate, torch
from pruning.progress import Progress, Reporter, TrainingPulse

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class EvalPoint(NamedTuple):
    """One evaluation of the student on held-out text: seconds of training, step and perplexity."""

    seconds: float
    step: int
    perplexity: float


@dataclass
class RunningTraining:
    """The live side of a training, which never leaves its process.

    Attributes:
        model: The student. It may be sampled until the reporter returns.
        stopped: Whether the training was asked to stop.
    """

    model: PreTrainedModel
    stopped: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainingProgress(Progress):
    """The state of a training after a step: plain values, and the training itself while in its process.

    Attributes:
        seconds: Seconds of training so far.
        seconds_left: Estimated seconds to the end; infinite before the first step of a training by steps.
        step: Optimizer steps done.
        tokens: Training tokens read.
        loss: The training loss of the last step; None before the first.
        perplexity: The student's perplexity on held-out text at the last evaluation.
        evaluated: Whether that evaluation took place just now.
        curve: Every evaluation so far.
        perplexity_best: The lowest held-out perplexity so far.
        perplexity_teacher: The teacher's held-out perplexity.
        perplexity_before: The student's held-out perplexity before training.
        training: The running training, or None in an event that was `detached`.
    """

    text: str = "Distilling"
    seconds: float
    seconds_left: float
    step: int
    tokens: int
    loss: float | None
    perplexity: float
    evaluated: bool
    curve: tuple[EvalPoint, ...]
    perplexity_best: float
    perplexity_teacher: float
    perplexity_before: float
    training: RunningTraining | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return (
            f"{self.text}: step {self.step}, {format_time(self.seconds_left)} left, perplexity "
            f"{self.perplexity_before:.2f} → {self.perplexity:.2f} (teacher {self.perplexity_teacher:.2f})"
        )

    @property
    def model(self) -> PreTrainedModel:
        """The student itself. It may be sampled until the reporter returns."""
        return self._attached().model

    def stop(self) -> None:
        """End the training after this event. The best weights so far are kept."""
        self._attached().stopped = True

    def detached(self) -> Self:
        """Return the same event without the training: plain values for another process."""
        return replace(self, training=None)

    def _attached(self) -> RunningTraining:
        if self.training is None:
            raise RuntimeError("This event was detached from its training.")
        return self.training


def is_first_process() -> bool:
    """Return whether this process reports and saves. Under a launcher, each process takes its device here."""
    return accelerate.PartialState(cpu=not torch.cuda.is_available()).is_main_process


@contextmanager
def stop_on_interrupt(report: Reporter) -> Iterator[Reporter]:
    """End a training politely when the process is interrupted (Ctrl-C).

    Args:
        report: The reporter to pass events on to.

    Yields:
        A reporter that stops a training at its next event after the interrupt, and cancels other work.
    """
    interrupts: list[int] = []

    def report_and_stop(progress: Progress) -> None:
        report(progress)
        if interrupts and not isinstance(progress, TrainingPulse):
            if not isinstance(progress, TrainingProgress):
                raise Cancelled("Stopped; nothing was kept.")
            interrupts.clear()
            progress.stop()

    def on_interrupt(number: int, _frame: FrameType | None) -> None:
        interrupts.append(number)

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield report_and_stop
    finally:
        signal.signal(signal.SIGINT, previous)


def format_time(seconds: float) -> str:
    """Format seconds as minutes and seconds, such as `3:10`."""
    return f"{int(seconds // 60)}:{int(seconds % 60):02}" if math.isfinite(seconds) else "?"


class Clock:
    """Counts seconds of training, without the time that a reporter takes."""

    def __init__(self, already: float) -> None:
        self._start = time.perf_counter() - already

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return time.perf_counter() - self._start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what happens inside."""
        now = time.perf_counter()
        yield
        self._start += time.perf_counter() - now
