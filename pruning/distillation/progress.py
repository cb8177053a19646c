"""The progress of a training, and how to stop one early."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import PartialState
from transformers import PreTrainedModel

from pruning.errors import Cancelled
from pruning.progress import Progress, Reporter


class TrainingProgress(Progress):
    """Where a training stands, after a step.

    `seconds` of training so far and `remaining` (infinite before the first step), `step`, `tokens` seen, the
    training `loss` of the last step (None before the first); `heldout`: the student's perplexity on held-out
    text when it was last measured, `measured` if that was just now; `curve`: seconds, step and perplexity
    of every measurement; `best` so far; `dense` and `before`: the perplexity of the teacher, and of the
    student as it came. `model` is the student itself: it may be sampled until the reporter returns.
    `stop()` ends the training here; the best so far is what is kept.
    """

    seconds: float
    remaining: float
    step: int
    tokens: int
    loss: float | None
    heldout: float
    measured: bool
    curve: list[tuple[float, int, float]]
    best: float
    dense: float
    before: float
    model: PreTrainedModel
    stopped: bool

    def __new__(cls, share: float, **values):
        text = "Distilling"
        line = str.__new__(
            cls,
            f"{text}: step {values['step']}, {format_time(values['remaining'])} left, perplexity "
            f"{values['before']:.2f} → {values['heldout']:.2f} (dense {values['dense']:.2f})",
        )
        line.text, line.done, line.total, line.stopped = text, int(1000 * share), 1000, False
        for name, value in values.items():
            setattr(line, name, value)
        return line

    def stop(self) -> None:
        self.stopped = True


def is_first_process() -> bool:
    """Whether this is the process that reports and saves; under a launcher, each takes its device here."""
    return PartialState(cpu=not torch.cuda.is_available()).is_main_process


@contextmanager
def stopping(report: Reporter) -> Iterator[Reporter]:
    """The reporter, which also ends a training politely when the process is interrupted (Ctrl-C)."""
    asked: list[int] = []

    def listening(progress: Progress) -> None:
        report(progress)
        if asked:
            if not isinstance(progress, TrainingProgress):
                raise Cancelled("Stopped; nothing was kept.")
            asked.clear()
            progress.stop()

    before = signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
    try:
        yield listening
    finally:
        signal.signal(signal.SIGINT, before)


def format_time(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02}" if math.isfinite(seconds) else "?"


class Clock:
    """Seconds of training; what a reporter does in between is not counted."""

    def __init__(self, already: float):
        self._start = time.perf_counter() - already

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start

    @contextmanager
    def paused(self) -> Iterator[None]:
        now = time.perf_counter()
        yield
        self._start += time.perf_counter() - now
