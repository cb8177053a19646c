"""Many visitors at the same time, over HTTP: `python -m benchmarks load --visitors 50 --minutes 10 --kills 20`.

Each visitor opens the page, moves the slider, prunes, generates with both models, downloads a file, stops a
job or leaves during one, as Gradio's own client would. Each puts a unique mark into its prompt and a unique
seed into its settings, and checks that the answers carry them and no other visitor's. Meanwhile workers are
killed at random times: of each, only the visitor whose job it performed may hear, in one sentence.
"""

import argparse
import asyncio
import io
import os
import random
import re
import statistics
import subprocess
import tempfile
import time
import traceback
import uuid
import zipfile
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path

import httpx
import psutil

from benchmarks.client import API, STATUS, Client, page_config, told
from benchmarks.common import table
from benchmarks.contained import busiest, kill, shared_once, workers
from page.workers.pool import INTERACTIVE_NICENESS, LONG_NICENESS
from page.workers.process import ENDED
from pruning.memory import total_memory
from tests.helpers.serving import serve

TOKEN = "hf_a-token-that-no-visitor-may-see"
OVERHEAD = 2_500_000_000
"""Extra bytes for the page process, the standby workers and the look-up workers."""
FRACTIONS = (5, 10, 15, 20, 25, 30, 35, 40, 50, 60)
FILES = 3
PAUSE = 4.0
PATIENCE = (20, 120)
"""Seconds after which a visitor presses Stop: the least and the most."""

MARK = re.compile(r"mark-[0-9a-f]{10}")
REFUSALS = ("queue is full", "already waiting", "went to someone else", "longer than the", "Queue is full")


class LoadReport:
    """Everything that happened to all visitors."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.previews: dict[int, list[float]] = defaultdict(list)
        self.outcomes: Counter = Counter()
        self.errors: list[str] = []
        self.memory: list[tuple[float, int]] = []
        self.stops: list[float] = []
        self.files = 0
        self.kills = 0
        self.ended = 0
        self.marks: set[str] = set()

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start


class Visitor(Client):
    """One visit: a session with its own mark and seed."""

    def __init__(self, url: str, config: dict, report: LoadReport) -> None:
        # Everyone has an address of their own, as on a Space.
        super().__init__(url, config, ".".join(["127", *(str(random.randrange(1, 255)) for _ in range(3))]))
        self.report, self.mark = report, f"mark-{uuid.uuid4().hex[:10]}"
        self.seed = random.randrange(1, 2**31)
        self.prompt = f"The visitor {self.mark} walked to the"
        report.marks.add(self.mark)
        self.set("prompt", self.prompt)
        self.set("seed", self.seed)

    async def visit(self, until: float) -> None:
        """Open the page, move the slider and use the models until the visit is over."""
        heartbeat = asyncio.create_task(self._heartbeat())
        job = None
        try:
            await self._open_page()
            while self.report.now < until:
                await asyncio.sleep(random.expovariate(1 / PAUSE))
                await self._preview()
                if job is None or job.done():
                    if job is not None:
                        job.result()
                    action = random.choices((self._prune, self._generate, None), (0.2, 0.1, 0.7))[0]
                    job = asyncio.create_task(action()) if action else None
                elif random.random() < 0.04:
                    self.report.outcomes["left during a job"] += 1
                    return
        finally:
            for task in (job, heartbeat):
                if task is not None:
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)

    async def _heartbeat(self) -> None:
        async with self.http.stream("GET", f"{API}/heartbeat/{self.session}", timeout=None) as stream:
            async for _ in stream.aiter_lines():
                pass

    async def _open_page(self) -> None:
        (await self.http.get("/")).raise_for_status()
        events = await self.join(self.body(self.function("show_first")) | {"data": []})
        self._expect("first look", "parameters-after" in events, events)

    async def _preview(self) -> None:
        self.set("neurons-fraction", random.choice(FRACTIONS))
        start = time.perf_counter()
        answer = await self.direct("show_shape")
        self.report.previews[int(self.report.now // 60)].append(time.perf_counter() - start)
        self._expect("preview", answer.status_code == 200 and "parameters-after" in answer.text, answer.text)

    async def _prune(self) -> None:
        events = await self._prune_or_stop()
        self._check_isolation("prune", events)
        shown = f"seed: {self.seed}" in events and self.mark in events
        self.report.outcomes["prune: model and texts shown"] += shown
        if self._succeeded("prune", events):
            self._expect("prune", shown, events)
            if self.report.files < FILES:
                self.report.files += 1
                await self._download()

    async def _prune_or_stop(self) -> str:
        """Prune and return all events; press Stop once the visitor's patience ends."""
        pruning = asyncio.create_task(self.queued("prune"))
        try:
            done, _ = await asyncio.wait({pruning}, timeout=random.uniform(*PATIENCE))
            if not done:
                start = time.perf_counter()
                await self.direct("stop")
                await pruning
                self.report.stops.append(time.perf_counter() - start)
            return await pruning
        finally:
            pruning.cancel()

    async def _download(self) -> None:
        """Download the pruned model, and check that its recipe is this visitor's."""
        events = await self.queued("prepare")
        if not self._succeeded("file", events):
            return
        path = re.findall(r'"path":\s*"([^"]+)"', events)[-1]
        answer = await self.http.get(f"{API}/file={path}", timeout=300)
        answer.raise_for_status()
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            (recipe,) = (name for name in archive.namelist() if name.endswith("recipe.yaml"))
            written = archive.read(recipe).decode()
        self._expect("file", f"seed: {self.seed}" in written, written)

    async def _generate(self) -> None:
        call = self.body(self.function("generate", private=False))
        call["data"][0], call["data"][2] = self.prompt, random.choice(FRACTIONS)
        events = await self.join(call)
        if self._succeeded("generate", events):
            self._check_isolation("generate", events)
            self._expect("generate", self.mark in events and '"before"' in events, events)

    async def direct(self, name: str, **changes: object) -> httpx.Response:
        answer = await super().direct(name, **changes)
        self._check_isolation(name, answer.text)
        return answer

    def _succeeded(self, what: str, events: str) -> bool:
        """Whether a call succeeded; a refusal or an error is counted."""
        refused = next((words for words in REFUSALS if words in events), None)
        if refused:
            self.report.outcomes[f"{what}: refused ({refused})"] += 1
            return False
        ends = STATUS.findall(events)
        if ends and ends[-1][0] == "stopped":
            self.report.outcomes[f"{what}: stopped"] += 1
            return False
        if told(events) in (ENDED, f"failed: {ENDED}"):
            self.report.ended += 1
            return False
        failed = (ends and ends[-1][0] == "failed") or '"success":false' in events or not events
        self._expect(what, not failed, events)
        if not failed:
            self.report.outcomes[f"{what}: done"] += 1
        return not failed

    def _check_isolation(self, what: str, answer: str) -> None:
        # A model may miscopy a mark: only a mark that was given to another visitor is a leak.
        leaked = set(MARK.findall(answer)) & self.report.marks - {self.mark}
        self._expect(f"{what}: another visitor's text", not leaked, str(leaked))
        self._expect(f"{what}: the machine's token", TOKEN not in answer, answer)

    def _expect(self, what: str, holds: bool, answer: str) -> None:
        if not holds:
            lines = answer.count("\n") + 1
            self.report.errors.append(
                f"{what}, at {self.report.now:.0f} s, {lines} lines: {answer[:400]} … {answer[-600:]}"
            )


async def _seat(url: str, config: dict, report: LoadReport, until: float) -> None:
    """Simulate one visitor after another, each for some minutes."""
    await asyncio.sleep(random.random() * min(20, until / 4))
    while report.now < until:
        async with Visitor(url, config, report) as visitor:
            try:
                await visitor.visit(min(until, report.now + random.uniform(60, 240)))
            except (httpx.HTTPError, KeyError, ValueError) as error:
                frames = traceback.extract_tb(error.__traceback__)
                called = " in ".join(frame.name for frame in reversed(frames) if frame.filename == __file__)
                report.errors.append(f"{type(error).__name__} at {report.now:.0f} s in {called}: {error}")


async def _record_memory(process: psutil.Process, report: LoadReport) -> None:
    """Record what the page and its workers take for themselves; what workers share counts once."""
    while True:
        with suppress(psutil.Error):
            processes = [process, *process.children(recursive=True)]
            report.memory.append((report.now, shared_once(processes)))
        await asyncio.sleep(1)


async def _kill_workers(process: psutil.Process, report: LoadReport, until: float, kills: int) -> None:
    """Kill the worker that works most, at random times."""
    for moment in sorted(random.uniform(0, until) for _ in range(kills)):
        await asyncio.sleep(max(0.0, moment - report.now))
        niceness = random.choice((INTERACTIVE_NICENESS, LONG_NICENESS))
        worker = await asyncio.to_thread(busiest, workers(process, (niceness,)))
        if worker is not None:
            report.kills += 1
            kill(worker)


async def _simulate(
    url: str, process: psutil.Process, visitors: int, minutes: float, kills: int
) -> LoadReport:
    config = await page_config(url)
    async with Visitor(url, config, LoadReport()) as first:
        await first._generate()  # Only a first visitor would wait for this.
    report = LoadReport()
    until = 60 * minutes
    background = [
        asyncio.create_task(work)
        for work in (_record_memory(process, report), _kill_workers(process, report, until, kills))
    ]
    await asyncio.gather(*(_seat(url, config, report, until) for _ in range(visitors)))
    await asyncio.sleep(5)
    for task in background:
        task.cancel()
    return report


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this benchmark."""
    parser.add_argument("--visitors", type=int, default=50, help="visitors at the same time")
    parser.add_argument("--minutes", type=float, default=10, help="length of the test")
    parser.add_argument("--memory", type=float, default=4e9, help="bytes that workers with models may use")
    parser.add_argument("--kills", type=int, default=0, help="how many workers are killed meanwhile")


def main(visitors: int, minutes: float, memory: float, kills: int) -> None:
    """Serve the page, simulate the visitors, and print what happened; exit with 1 if a check fails."""
    share = min(1.0, memory / total_memory())
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        settings = {
            "HF_TOKEN": TOKEN,
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "GRADIO_TEMP_DIR": folder,
            "SECATEUR_MEMORY_SHARE": f"{share:.6f}",
            "SECATEUR_JOB_SECONDS": os.environ.get("SECATEUR_JOB_SECONDS", "300"),
        }
        process, url = serve(settings, log)
        try:
            report = asyncio.run(_simulate(url, psutil.Process(process.pid), visitors, minutes, kills))
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        logged = log.read_text()
    if "Traceback" in logged:
        report.errors.append(f"in the log: {logged[logged.index('Traceback') :][:3000]}")
    _print(report, f"{visitors} visitors at the same time, {minutes:g} minutes, {kills} kills", memory)
    if report.errors:
        raise SystemExit(1)


def _print(report: LoadReport, title: str, bound: float) -> None:
    """Print the tables and the checks; a check that fails is added to the errors."""
    table(title, ["what", "how often"], sorted(report.outcomes.items()))
    worst_preview = _print_previews(report)
    if report.stops:
        print(
            "\nStop, from the call until the page confirms it: "
            f"median {statistics.median(report.stops):.2f} s, longest {max(report.stops):.2f} s, "
            f"of {len(report.stops)}"
        )
    peak, growth = _print_memory(report, bound)
    checks = {
        "the median of every minute's previews is below 300 ms": worst_preview < 0.3,
        f"memory stays below {(bound + OVERHEAD) / 1e9:.1f} GB": peak < bound + OVERHEAD,
        "memory is flat at the end": growth < 1.1,
        f"of {report.kills} killed workers, at most as many jobs heard: {report.ended}": report.ended
        <= report.kills,
        "no errors other than refusals (queue full, time limit), no other visitor's text": not report.errors,
    }
    for check, holds in checks.items():
        print(f"{'yes' if holds else 'NO '}  {check}")
        if not holds:
            report.errors.append(check)
    for error in report.errors[:10]:
        print(f"\n{error[:1500]}")


def _print_previews(report: LoadReport) -> float:
    """Print how long previews took, and return the longest median of any minute, in seconds."""
    minutes = {minute: times for minute, times in sorted(report.previews.items()) if len(times) > 4}
    table(
        "Preview, from the call to its answer",
        ["minute", "median", "95 of 100 within", "of"],
        [
            (
                minute + 1,
                f"{1000 * statistics.median(times):.0f} ms",
                f"{1000 * statistics.quantiles(times, n=20)[-1]:.0f} ms",
                len(times),
            )
            for minute, times in minutes.items()
        ],
    )
    return max((statistics.median(times) for times in minutes.values()), default=float("nan"))


def _print_memory(report: LoadReport, bound: float) -> tuple[int, float]:
    """Print the private memory, and return its peak in bytes and the last quarter's over the third's."""
    end = report.memory[-1][0]
    quarters = [
        [size for moment, size in report.memory if end * part / 4 <= moment < end * (part + 1) / 4]
        for part in range(4)
    ]
    peak = max(size for _, size in report.memory)
    table(
        f"Private memory of the page and its workers, which may take {bound / 1e9:.1f} GB",
        ["at the start", "highest", "median of each quarter"],
        [
            (
                f"{report.memory[0][1] / 1e9:.2f} GB",
                f"{peak / 1e9:.2f} GB",
                ", ".join(f"{statistics.median(sizes) / 1e9:.2f}" for sizes in quarters if sizes) + " GB",
            )
        ],
    )
    return peak, statistics.median(quarters[3]) / statistics.median(quarters[2])
