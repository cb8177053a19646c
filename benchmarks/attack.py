"""Hostile inputs against the page, beside an honest visitor: `python -m benchmarks attack --only tokenizer`.

The page runs in a memory cgroup, as in a container, and knows a Hub on loopback on which a stranger publishes.
For each input of `attacks.py`: the page answers the visitor's previews within a second, the visitor's job ends
well, memory and disk stay within their bounds, and ten seconds later the page is whole again.
"""

import argparse
import asyncio
import os
import re
import statistics
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.attack_hub import hostile_hub
from benchmarks.attacker import Attacker, Input, Leak
from benchmarks.attacks import INPUTS
from benchmarks.client import API, Client, page_config, told
from benchmarks.common import table
from benchmarks.contained import ContainedPage, contained
from page.workers.pool import STORAGE_BYTES
from page.workers.process import ENDED

MEMORY_BYTES = 6 * 10**9
"""The page's container, as in the smallest free one that people rent."""
MEMORY_BOUND = int(0.95 * MEMORY_BYTES)
"""What the page and its workers may take for themselves together: the limit, with a margin."""
CACHE_BYTES = 2 * 10**9
"""What the page is told to keep of downloads, and again of float32 copies."""
DISK_BOUND = STORAGE_BYTES + 2 * CACHE_BYTES + 10**9
DISK_GROWTH = 2 * 10**9
"""What a single input may leave on the disk."""
PREVIEW_SECONDS = 1.0
WHOLE_SECONDS = 10.0
PATIENCE = 60.0
"""How long it is observed whether the page becomes whole again, and whether the honest job ends."""
ATTACK_SECONDS = 45.0
"""After which an attacker goes away."""
JOB_SECONDS = 300
"""How long one job may take on this page, as on a Space; `SECATEUR_JOB_SECONDS` changes it."""
START_PATIENCE = 400.0
HONEST_MODEL = "honest/small"
"""What the honest visitor prunes, so that a run is not longer than it must be; `--model` names another."""
QUIET_SECONDS = 8.0
"""How long previews are measured before any attack."""
PAUSE = 0.4
"""Seconds between two previews of the honest visitor."""
HEAD = ["input", "kind", "what the attacker was told", "preview", "memory", "disk", "whole after", "passed"]


@dataclass
class Outcome:
    """What happened during one input.

    Attributes:
        told: What the attacker was told.
        previews: The seconds that each preview of the honest visitor took.
        memory: The highest memory, in bytes.
        disk: The bytes on the disk at the end.
        whole: Seconds until the page was whole again; None if it was not.
        problems: What is wrong with that.
    """

    told: str = ""
    previews: list[float] = field(default_factory=list)
    memory: int = 0
    disk: int = 0
    whole: float | None = None
    problems: list[str] = field(default_factory=list)

    def check(self, page: ContainedPage, disk_before: int, kills_before: int) -> None:
        """Compare with the bounds, and note what is beyond them."""
        if not page.alive:
            self.problems.append("the page has ended")
        if not self.previews:
            self.problems.append("no preview was answered")
        elif max(self.previews) > PREVIEW_SECONDS:
            self.problems.append(f"a preview took {max(self.previews):.1f} s")
        if self.memory > MEMORY_BOUND:
            self.problems.append(f"memory reached {self.memory / 1e9:.1f} GB")
        if page.kernel_kills > kills_before:
            self.problems.append(f"the kernel killed {page.kernel_kills - kills_before} processes")
        if self.disk > DISK_BOUND or self.disk - disk_before > DISK_GROWTH:
            self.problems.append(f"the disk grew by {(self.disk - disk_before) / 1e9:.1f} GB")
        if self.whole is None:
            self.problems.append(f"the page was not whole again after {PATIENCE:.0f} s")
        elif self.whole > WHOLE_SECONDS:
            self.problems.append(f"the page was whole again only after {self.whole:.0f} s")

    def row(self, entry: Input) -> tuple[str, ...]:
        """Return the row of the table."""
        return (
            entry.name,
            entry.kind,
            _cell(self.told),
            f"{1000 * max(self.previews, default=0.0):.0f} ms",
            f"{self.memory / 1e9:.2f} GB",
            f"{self.disk / 1e9:.2f} GB",
            "never" if self.whole is None else f"{self.whole:.1f} s",
            "yes" if not self.problems else f"NO: {_cell('; '.join(self.problems), 400)}",
        )


class HonestVisitor:
    """Someone who uses the page at the same time."""

    def __init__(self, page: ContainedPage, config: dict[str, Any], model: str) -> None:
        self._page, self._config, self._model = page, config, model
        self._seed, self._percent = 0, 5
        self._left = threading.Event()
        self.outcome = Outcome()

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Move the slider all the time, and watch memory."""
        slider = asyncio.create_task(asyncio.to_thread(self._move_slider))
        memory = asyncio.create_task(self._watch_memory())
        try:
            yield
        finally:
            self._left.set()
            memory.cancel()
            await asyncio.gather(slider, memory, return_exceptions=True)

    async def prune(self, retries: int = 0) -> str:
        """Prune, compare and measure; return what went wrong, or nothing."""
        async with Client(self._page.url, self._config) as client:
            self._choose(client)
            answer = told(await client.queued("prune"))
        if retries and ENDED[:30] in answer:
            return await self.prune(retries - 1)
        return "" if answer.startswith("done") else answer or "no answer"

    async def wait_until_whole(self) -> float | None:
        """Return the seconds until the page is well and prunes; None if that takes too long."""
        start = time.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while not await self._is_whole():
                    await asyncio.sleep(0.2)
                return time.monotonic() - start
        return None

    async def _is_whole(self) -> bool:
        try:
            async with Client(self._page.url, self._config) as client:
                if (await client.http.get("/health")).status_code != 200:
                    return False
                seed = self._choose(client)
                shown = rf"seed: {seed}\b"
                answer = await client.join(client.body(client.function("prune")), until=shown)
                await client.direct("stop")
                return re.search(shown, answer) is not None
        except httpx.HTTPError:
            return False

    def _choose(self, client: Client) -> int:
        """Choose a cut that nobody chose before, and a short text; return the seed."""
        self._seed += 1
        client.set("model", self._model)
        client.set("seed", self._seed)
        client.set("neurons-fraction", 5 + self._seed % 40)
        client.set("length", 5)
        return self._seed

    def _move_slider(self) -> None:
        """Ask for one preview after the other, in a thread, so that the attacker's own work delays none."""
        client = Client(self._page.url, self._config)
        call = client.function("show_shape")
        with httpx.Client(timeout=client.http.timeout, trust_env=False) as http:
            while not self._left.wait(PAUSE):
                self._percent = 5 + (self._percent + 1) % 50
                body = client.body(call, **{"neurons-fraction": self._percent})
                start = time.monotonic()
                try:
                    answer = http.post(f"{self._page.url}{API}/run/predict", json=body)
                    self.outcome.previews.append(time.monotonic() - start)
                    if "parameters-after" not in answer.text:
                        self._note(f"a preview was answered {told(answer.text)[:200]!r}")
                except httpx.HTTPError as error:
                    self._note(f"a preview failed ({type(error).__name__})")

    def _note(self, problem: str) -> None:
        if problem not in self.outcome.problems:
            self.outcome.problems.append(problem)

    async def _watch_memory(self) -> None:
        while True:
            self.outcome.memory = max(self.outcome.memory, await asyncio.to_thread(lambda: self._page.memory))
            await asyncio.sleep(0.25)


async def _attempt(page: ContainedPage, visitor: HonestVisitor, entry: Input, attacker: Attacker) -> Outcome:
    """Try one input, and return what happened."""
    outcome = visitor.outcome = Outcome()
    disk, kills = page.disk, page.kernel_kills
    job = asyncio.create_task(_later(1.0, visitor.prune(entry.retries)))
    try:
        async with asyncio.timeout(ATTACK_SECONDS):
            outcome.told = await entry.act(attacker)
    except TimeoutError:
        outcome.told = f"nothing within {ATTACK_SECONDS:.0f} s"
    except Leak as leak:
        outcome.told = str(leak)
        outcome.problems.append(f"the attacker got what they wanted: {leak}")
    except (httpx.HTTPError, OSError, KeyError, ValueError) as error:
        outcome.told = f"{type(error).__name__}: {error}"
    await attacker.leave()
    outcome.whole = await visitor.wait_until_whole()
    try:
        async with asyncio.timeout(PATIENCE):
            if problem := await job:
                outcome.problems.append(f"the honest job: {problem}")
    except (TimeoutError, httpx.HTTPError) as error:
        outcome.problems.append(f"the honest job did not end ({type(error).__name__})")
    outcome.disk = await asyncio.to_thread(lambda: page.disk)
    outcome.check(page, disk, kills)
    return outcome


async def _later(seconds: float, work: Awaitable[str]) -> str:
    await asyncio.sleep(seconds)
    return await work


async def _attack(
    page: ContainedPage, inputs: Sequence[Input], model: str, keep_going: bool
) -> list[tuple[Input, Outcome]]:
    """Try inputs one after the other, until the page is broken or, unless told to keep going, one fails."""
    config = await page_config(page.url)
    visitor = HonestVisitor(page, config, model)
    deadline = time.monotonic() + START_PATIENCE
    while problem := await visitor.prune():
        if time.monotonic() > deadline:
            raise RuntimeError(f"the page does not work before any attack: {problem}\n{page.log[-3000:]}")
    tried = []
    async with visitor.watching():
        await asyncio.sleep(QUIET_SECONDS)
        times = visitor.outcome.previews
        print(f"Before: a preview took {1000 * statistics.median(times):.0f} ms in the median,")
        print(f"{1000 * max(times):.0f} ms at the most\n", flush=True)
        for number, entry in enumerate(inputs):
            attacker = Attacker(page, config, f"127.{number // 200 + 1}.{number % 200 + 1}.66")
            outcome = await _attempt(page, visitor, entry, attacker)
            tried.append((entry, outcome))
            print(f"| {' | '.join(outcome.row(entry))} |", flush=True)
            if outcome.problems and (not keep_going or not page.alive or outcome.whole is None):
                break
    return tried


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this benchmark."""
    parser.add_argument("--only", default="", metavar="KIND[/NAME],…", help="some inputs only")
    parser.add_argument(
        "--keep-going", action="store_true", help="go on after a failure, with a new page if needed"
    )
    parser.add_argument("--list", action="store_true", help="print the inputs, and try none")
    parser.add_argument("--model", default=HONEST_MODEL, help="what the honest visitor prunes")
    parser.add_argument("--log", default="", metavar="FILE", help="keep the page's log in this file")


def main(only: str, keep_going: bool, list: bool, model: str, log: str) -> None:
    """Try the inputs, and print what happened; exit with 1 if a check fails."""
    wanted = only.split(",")
    inputs = [
        entry
        for entry in INPUTS
        if not only or entry.kind in wanted or f"{entry.kind}/{entry.name}" in wanted
    ]
    if not inputs:
        raise SystemExit(f"no input is called {only!r}: see --list")
    if list:
        table("Inputs", ["kind", "name"], [(entry.kind, entry.name) for entry in inputs])
        return
    outcomes: dict[Input, Outcome] = {}
    start = time.monotonic()
    with hostile_hub() as environment:
        environment |= {
            "SECATEUR_JOB_SECONDS": os.environ.get("SECATEUR_JOB_SECONDS", str(JOB_SECONDS)),
            "SECATEUR_CACHE_BYTES": str(CACHE_BYTES),
        }
        while left := [entry for entry in inputs if entry not in outcomes]:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    with contained(Path(folder), MEMORY_BYTES, environment) as page:
                        print(f"\n{MEMORY_BYTES / 1e9:g} GB for the page, by {page.kind}\n", flush=True)
                        outcomes |= asyncio.run(_attack(page, left, model, keep_going))
                finally:
                    if log:
                        with Path(log).open("a") as file:
                            file.write((Path(folder) / "log.txt").read_text(errors="replace"))
            if not keep_going and any(outcome.problems for outcome in outcomes.values()):
                break
    table(
        f"{len(outcomes)} of {len(inputs)} hostile inputs, {(time.monotonic() - start) / 60:.0f} minutes; "
        f"memory may reach {MEMORY_BOUND / 1e9:.1f} GB, disk {DISK_BOUND / 1e9:.0f} GB, "
        f"and one input may leave {DISK_GROWTH / 1e9:.0f} GB",
        HEAD,
        [outcome.row(entry) for entry, outcome in outcomes.items()],
    )
    failed = [entry for entry, outcome in outcomes.items() if outcome.problems]
    print(f"\n{len(outcomes) - len(failed)} passed, {len(failed)} failed")
    if failed:
        raise SystemExit(1)


def _cell(text: str, length: int = 160) -> str:
    """Return a text as one short cell of a Markdown table."""
    plain = " ".join(text.replace("|", "¦").split())
    return plain if len(plain) <= length else f"{plain[: length - 1]}…"
