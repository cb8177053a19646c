"""Many visitors at the same time, over HTTP: `python -m benchmarks load_test --visitors 50 --minutes 10`.

Each visitor opens the page, moves the slider, prunes, generates with both models, downloads a file, stops a
job or leaves during one, as Gradio's own client would. Each puts a unique mark into its prompt and a unique
seed into its settings, and checks that the answers carry them and no other visitor's.
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
from pathlib import Path

import httpx
import psutil

from benchmarks.common import table
from pruning.memory import total_memory
from tests.helpers.serving import serve

TOKEN = "hf_a-token-that-no-visitor-may-see"
OVERHEAD = 2_500_000_000
"""Bytes that the process may use beyond cached models: Python, libraries, the work of one job."""
FRACTIONS = (5, 10, 15, 20, 25, 30, 35, 40, 50, 60)
FILES = 3
PAUSE = 4.0
PATIENCE = (20, 120)
"""Seconds after which a visitor presses Stop: the least and the most."""

MARK = re.compile(r"mark-[0-9a-f]{10}")
STATUS = re.compile(r'class=\\"status (failed|stopped|done)\\"[^>]*><span>(.*?)</span>')
REFUSALS = ("queue is full", "calls are already running", "longer than the", "Queue is full")


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
        self.marks: set[str] = set()

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start


class Visitor:
    """One visit: a session with its own mark and seed."""

    def __init__(self, http: httpx.AsyncClient, config: dict, report: LoadReport) -> None:
        self.http, self.report = http, report
        self.session, self.mark = uuid.uuid4().hex[:12], f"mark-{uuid.uuid4().hex[:10]}"
        self.seed = random.randrange(1, 2**31)
        report.marks.add(self.mark)
        self.values = {entry["id"]: entry["props"].get("value") for entry in config["components"]}
        named = {
            entry["props"].get("elem_id") or entry["props"].get("label"): entry
            for entry in config["components"]
        }
        self.fraction, self.prompt = named["neurons-fraction"]["id"], named["prompt"]["id"]
        self.values[self.prompt] = f"The visitor {self.mark} walked to the"
        self.values[named["seed"]["id"]] = self.seed
        private = {e["api_name"]: e for e in config["dependencies"] if e["api_visibility"] == "private"}
        public = {e["api_name"]: e for e in config["dependencies"] if e["api_visibility"] == "public"}
        self.preview_call, self.stop_call = private["show_shape"], private["stop"]
        self.look_call, self.prepare_call = private["show_first"], private["prepare"]
        (self.prune_call,) = (entry for name, entry in private.items() if name.startswith("prune"))
        self.generate_call = public["generate"]

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
        async with self.http.stream("GET", f"heartbeat/{self.session}", timeout=None) as stream:
            async for _ in stream.aiter_lines():
                pass

    async def _open_page(self) -> None:
        (await self.http.get(str(self.http.base_url).removesuffix("gradio_api/"))).raise_for_status()
        events = await self._queued(self.look_call, [])
        self._expect("first look", "parameters-after" in events, events)

    async def _preview(self) -> None:
        self.values[self.fraction] = random.choice(FRACTIONS)
        start = time.perf_counter()
        answer = await self._direct(self.preview_call)
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
        pruning = asyncio.create_task(self._queued(self.prune_call))
        try:
            done, _ = await asyncio.wait({pruning}, timeout=random.uniform(*PATIENCE))
            if not done:
                start = time.perf_counter()
                await self._direct(self.stop_call)
                await pruning
                self.report.stops.append(time.perf_counter() - start)
            return await pruning
        finally:
            pruning.cancel()

    async def _download(self) -> None:
        """Download the pruned model, and check that its recipe is this visitor's."""
        events = await self._queued(self.prepare_call)
        if not self._succeeded("file", events):
            return
        path = re.findall(r'"path":\s*"([^"]+)"', events)[-1]
        answer = await self.http.get(f"file={path}", timeout=300)
        answer.raise_for_status()
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            (recipe,) = (name for name in archive.namelist() if name.endswith("recipe.yaml"))
            written = archive.read(recipe).decode()
        self._expect("file", f"seed: {self.seed}" in written, written)

    async def _generate(self) -> None:
        values = [self.values[index] for index in self.generate_call["inputs"]]
        values[0] = self.values[self.prompt]
        values[2] = random.choice(FRACTIONS)
        events = await self._queued(self.generate_call, values)
        if self._succeeded("generate", events):
            self._check_isolation("generate", events)
            self._expect("generate", self.mark in events and '"before"' in events, events)

    async def _direct(self, call: dict) -> httpx.Response:
        answer = await self.http.post("run/predict", json=self._body(call))
        self._check_isolation("direct", answer.text)
        return answer

    def _body(self, call: dict, values: list | None = None) -> dict:
        values = [self.values[index] for index in call["inputs"]] if values is None else values
        return {"data": values, "fn_index": call["id"], "session_hash": self.session}

    async def _queued(self, call: dict, values: list | None = None) -> str:
        """Make a call through the queue, and return all its events until it is done."""
        answer = await self.http.post("queue/join", json=self._body(call, values))
        if answer.status_code != 200:
            return answer.text
        event, events = answer.json()["event_id"], []
        parameters = {"session_hash": self.session}
        async with self.http.stream("GET", "queue/data", params=parameters, timeout=None) as stream:
            async for line in stream.aiter_lines():
                events.append(line)
                if event in line and ('"process_completed"' in line or '"unexpected_error"' in line):
                    break
                if '"close_stream"' in line:
                    break
        return "\n".join(events)

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
        # Shorter than the server's 5 seconds: reusing a connection just as the server closes it would look
        # like an error of the page, whereas a browser retries by itself.
        limits = httpx.Limits(max_connections=None, keepalive_expiry=2)
        async with httpx.AsyncClient(base_url=f"{url}/gradio_api/", timeout=60, limits=limits) as http:
            visitor = Visitor(http, config, report)
            try:
                await visitor.visit(min(until, report.now + random.uniform(60, 240)))
            except (httpx.HTTPError, KeyError, ValueError) as error:
                frames = traceback.extract_tb(error.__traceback__)
                called = " in ".join(frame.name for frame in reversed(frames) if frame.filename == __file__)
                report.errors.append(f"{type(error).__name__} at {report.now:.0f} s in {called}: {error}")


async def _record_memory(process: psutil.Process, report: LoadReport) -> None:
    while True:
        report.memory.append((report.now, process.memory_info().rss))
        await asyncio.sleep(1)


async def _simulate(url: str, process: psutil.Process, visitors: int, minutes: float) -> LoadReport:
    async with httpx.AsyncClient() as http:
        config = (await http.get(f"{url}/config")).json()
    async with httpx.AsyncClient(base_url=f"{url}/gradio_api/", timeout=60) as http:
        await Visitor(http, config, LoadReport())._generate()  # Only a first visitor would wait for this.
    report = LoadReport()
    recorder = asyncio.create_task(_record_memory(process, report))
    until = 60 * minutes
    await asyncio.gather(*(_seat(url, config, report, until) for _ in range(visitors)))
    await asyncio.sleep(5)
    recorder.cancel()
    return report


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this benchmark."""
    parser.add_argument("--visitors", type=int, default=50, help="visitors at the same time")
    parser.add_argument("--minutes", type=float, default=10, help="length of the test")
    parser.add_argument("--memory", type=float, default=4e9, help="bytes that cached models may use")


def main(visitors: int, minutes: float, memory: float) -> None:
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
            report = asyncio.run(_simulate(url, psutil.Process(process.pid), visitors, minutes))
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        logged = log.read_text()
    if "Traceback" in logged:
        report.errors.append(f"in the log: {logged[logged.index('Traceback') :][:3000]}")
    _print(report, f"{visitors} visitors at the same time, {minutes:g} minutes", memory)
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
    """Print the resident memory, and return its peak in bytes and the last quarter's over the third's."""
    end = report.memory[-1][0]
    quarters = [
        [size for moment, size in report.memory if end * part / 4 <= moment < end * (part + 1) / 4]
        for part in range(4)
    ]
    peak = max(size for _, size in report.memory)
    table(
        f"Resident memory; cached models may use {bound / 1e9:.1f} GB",
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
