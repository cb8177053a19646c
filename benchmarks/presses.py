"""Fifty visitors press Prune for ten minutes: `python -m benchmarks presses --visitors 50 --minutes 10`.

Of the presses, 70% ask for what is recorded, 20% for a few recipes that are not, the same for everybody, and 10% for a
recipe that nobody else asks for. A press is answered as soon as the pruned model has said something.
"""

import argparse
import asyncio
import random
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from benchmarks.client import FIRST_TOKEN, Client, fresh_page, page_config
from benchmarks.common import table

WITHIN = 20.0
"""Seconds within which a press should be answered."""
PAUSE = 60.0
"""Seconds between two presses of a visitor, on average."""
LONGEST = 120.0
"""Seconds after which a visitor no longer waits."""

PRESSES: dict[str, tuple[float, float, Callable[[], dict[str, object]]]] = {
    "recorded": (0.7, 0.99, lambda: {"neurons_fraction": 10 * random.randrange(1, 10)}),
    "the same live recipes": (0.2, 0.95, lambda: {"neurons_fraction": random.choice((13, 27, 44))}),
    "unique": (0.1, 0.6, lambda: {"neurons_fraction": 25, "seed": random.randrange(1, 2**31)}),
}
"""For each kind of press its share, the share of answers that is due, and the controls that it sets."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this benchmark."""
    parser.add_argument("--visitors", type=int, default=50, help="visitors at the same time")
    parser.add_argument("--minutes", type=float, default=10, help="length of the test")


def main(visitors: int, minutes: float) -> None:
    """Serve the page, and print how many presses were answered in time; exit with 1 if fewer than are due."""
    with fresh_page() as (_, url):
        answers = asyncio.run(_press(url, visitors, 60 * minutes))
    shares = {kind: _share(answers[kind]) for kind in PRESSES}
    table(
        f"{visitors} visitors, {minutes:g} minutes, each presses every {PAUSE:g} s on average",
        ["presses", "number", f"answered within {WITHIN:g} s", "due", "median"],
        [
            (kind, len(answers[kind]), f"{shares[kind]:.0%}", f"{due:.0%}", _median(answers[kind]))
            for kind, (_, due, _) in PRESSES.items()
        ],
    )
    if any(shares[kind] < due for kind, (_, due, _) in PRESSES.items()):
        raise SystemExit(1)


def _share(seconds: list[float]) -> float:
    return sum(each <= WITHIN for each in seconds) / len(seconds) if seconds else 1.0


def _median(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.1f} s" if seconds else ""


async def _press(url: str, visitors: int, length: float) -> dict[str, list[float]]:
    """Let visitors press; return for each kind of press the seconds to its answer, infinite for none."""
    config, end = await page_config(url), time.monotonic() + length
    answers: dict[str, list[float]] = defaultdict(list)
    await asyncio.gather(*(_visit(url, config, number, end, answers) for number in range(visitors)))
    return answers


async def _visit(
    url: str, config: dict[str, Any], number: int, end: float, answers: dict[str, list[float]]
) -> None:
    async with Client(url, config, f"127.0.{number // 250 + 1}.{number % 250 + 1}", timeout=120) as client:
        while True:
            pause = random.expovariate(1 / PAUSE)
            if time.monotonic() + pause > end:
                return
            await asyncio.sleep(pause)
            (kind,) = random.choices(list(PRESSES), [share for share, *_ in PRESSES.values()])
            answers[kind].append(await _wait_for_answer(client, PRESSES[kind][2]()))


async def _wait_for_answer(client: Client, controls: dict[str, object]) -> float:
    """Press Prune, and return the seconds to the first of the pruned model's answer; then watch it to its end."""
    events: list[str] = []
    start, seen = time.monotonic(), 0
    pressing = asyncio.create_task(
        client.join(client.body(client.function("prune"), **controls), events=events)
    )
    answered = float("inf")
    with suppress(TimeoutError):
        async with asyncio.timeout(LONGEST):
            while answered == float("inf") and not (pressing.done() and seen == len(events)):
                new, seen = events[seen:], len(events)
                if any(re.search(FIRST_TOKEN, line) for line in new):
                    answered = time.monotonic() - start
                await asyncio.sleep(0.05)
            await pressing
    if not pressing.done():
        pressing.cancel()
        await asyncio.gather(pressing, return_exceptions=True)
        await client.direct("stop")
    return answered
