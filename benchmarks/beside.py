"""Prune while another visitor distills: `python -m benchmarks beside`.

Measures the seconds from Prune to the pruned model's first token, on an idle page and beside a distillation. Then
kills the worker of each job in turn: the other job goes on, and the distilled model outlives both workers.
"""

import argparse
import asyncio
import re
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import psutil

from benchmarks.client import FIRST_TOKEN, Client, fresh_page, page_config, told
from benchmarks.common import table
from benchmarks.contained import busiest, kill, workers
from page.workers.pool import INTERACTIVE_NICENESS, LONG_NICENESS
from page.workers.process import ENDED

RATIO = 1.5
REPLACED_SECONDS = 5.0
PATIENCE = 900.0
TRAINING = "tokens read"
"""In the status line of a distillation that has begun."""


class Failure(Exception):
    """The page did not do what was asked."""


class Measurement:
    """One run against a page.

    Attributes:
        checks: What was found to hold or not, in words.
    """

    def __init__(self, url: str, process: psutil.Process) -> None:
        self._url, self._process = url, process
        self._config: dict[str, Any] = {}
        self._seed = 0
        self.checks: list[tuple[str, bool]] = []

    async def run(self, prunings: int, minutes: int) -> dict[str, list[float]]:
        """Measure, and return the seconds of each kind of pruning."""
        self._config = await page_config(self._url)
        async with self._visitor() as other:
            await self._expect_done(other.queued("prune"))
            await self._first_token()
            seconds = {"idle page": [await self._first_token() for _ in range(prunings)]}
            events: list[str] = []
            distilling = await self._distill(other, minutes, events)
            seconds["beside a distillation"] = [await self._first_token() for _ in range(prunings)]
            self._check("the distillation was under way all the time", not distilling.done())
            await self._kill_prune(distilling)
            await self._expect_done(distilling, PATIENCE)
            await self._outlive(other, minutes)
            await self._kill_distillation(other, minutes)
        seconds["to the first token after a worker was killed"] = [await self._replace() for _ in range(3)]
        return seconds

    def _visitor(self) -> Client:
        return Client(self._url, self._config)

    def _check(self, what: str, holds: bool) -> None:
        self.checks.append((what, holds))

    async def _expect_done(self, work: Awaitable[str], seconds: float = PATIENCE) -> None:
        answer = told(await asyncio.wait_for(work, seconds))
        if not answer.startswith("done"):
            raise Failure(answer)

    async def _first_token(self) -> float:
        """Prune by a recipe that nobody used before; return the seconds to the first token, and stop."""
        self._seed += 1
        async with self._visitor() as client:
            client.set("seed", self._seed)
            start = time.monotonic()
            answer = await client.join(client.body(client.function("prune")), until=FIRST_TOKEN)
            seconds = time.monotonic() - start
            await client.direct("stop")
            if not re.search(FIRST_TOKEN, answer):
                raise Failure(told(answer))
            return seconds

    async def _distill(self, client: Client, minutes: int, events: list[str]) -> "asyncio.Task[str]":
        """Start a distillation, and return as soon as it trains."""
        call = client.body(client.function("distill"), minutes=minutes)
        distilling = asyncio.create_task(client.join(call, events=events))
        await _until(lambda: distilling.done() or any(TRAINING in line for line in events))
        if distilling.done():
            raise Failure(told(distilling.result()))
        return distilling

    async def _kill(self, niceness: int) -> None:
        worker = await asyncio.to_thread(lambda: busiest(workers(self._process, (niceness,))))
        if worker is None:
            raise Failure("no worker was found")
        kill(worker)

    async def _kill_prune(self, distilling: "asyncio.Task[str]") -> None:
        async with self._visitor() as client:
            client.set("neurons-fraction", 33)
            pruning = asyncio.create_task(client.queued("prune"))
            await asyncio.sleep(2)
            await self._kill(INTERACTIVE_NICENESS)
            self._check(
                "Prune hears of its worker's end in one sentence", told(await pruning) == f"failed: {ENDED}"
            )
        await self._first_token()
        self._check("the distillation goes on", not distilling.done())

    async def _outlive(self, client: Client, minutes: int) -> None:
        """Kill every worker, and look into the distilled model."""
        for worker in workers(self._process, (INTERACTIVE_NICENESS, LONG_NICENESS)):
            kill(worker)
        start = time.monotonic()
        answer = await client.queued("show_next_tokens")
        while ENDED in answer:  # It was given to a worker just before its end.
            answer = await client.queued("show_next_tokens")
        took = time.monotonic() - start
        self._check(
            f"the distilled model outlives all workers: it was there again after {took:.0f} s",
            "<td" in answer and took < 60 * minutes,
        )

    async def _kill_distillation(self, other: Client, minutes: int) -> None:
        distilling = await self._distill(other, minutes, [])
        async with self._visitor() as client:
            client.set("neurons-fraction", 34)
            pruning = asyncio.create_task(client.queued("prune"))
            await self._kill(LONG_NICENESS)
            self._check(
                "the distillation hears of its worker's end in one sentence",
                told(await distilling) == f"failed: {ENDED}",
            )
            self._check("Prune goes on", told(await pruning).startswith("done"))

    async def _replace(self) -> float:
        """Kill the worker that prunes; return the seconds until another one has output a token."""
        await self._kill(INTERACTIVE_NICENESS)
        start = time.monotonic()
        while True:
            try:
                await self._first_token()
                break
            except Failure as failure:
                if ENDED not in str(failure):  # It was given to a worker just before its end.
                    raise
        seconds = time.monotonic() - start
        await _until(lambda: len(workers(self._process, (INTERACTIVE_NICENESS,))) >= 2)
        return seconds


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not holds():
            await asyncio.sleep(0.1)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this benchmark."""
    parser.add_argument("--prunings", type=int, default=7, help="prunings on an idle page, and beside")
    parser.add_argument("--minutes", type=int, default=2, help="length of the distillation")


def main(prunings: int, minutes: int) -> None:
    """Serve the page, measure, and print two tables; exit with 1 if a check fails."""
    with fresh_page() as (process, url):
        measurement = Measurement(url, psutil.Process(process.pid))
        seconds = asyncio.run(measurement.run(prunings, minutes))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    table(
        "From Prune to the first token, a new recipe each time",
        ["", "median", "longest", "of"],
        [
            (name, f"{medians[name]:.2f} s", f"{max(times):.2f} s", len(times))
            for name, times in seconds.items()
        ],
    )
    idle, beside, replaced = medians.values()
    checks = [
        (
            f"beside a distillation over an idle page: {beside / idle:.2f}, at most {RATIO}",
            beside / idle <= RATIO,
        ),
        (
            f"a killed worker is replaced in {replaced:.1f} s, at most {REPLACED_SECONDS:g} s",
            replaced <= REPLACED_SECONDS,
        ),
        *measurement.checks,
    ]
    print()
    for check, holds in checks:
        print(f"{'yes' if holds else 'NO '}  {check}")
    if not all(holds for _, holds in checks):
        raise SystemExit(1)
