"""Many visitors at once, over HTTP: `python -m benchmarks load --visitors 50 --minutes 10`.

Each opens the page, moves the slider, prunes, lets both models write, takes a file, stops or leaves in the
middle, as Gradio's own client would. Each writes a mark of its own into its prompt and its seed, and checks
that what comes back carries it and nobody else's.
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
from page.workers.memory import machine_memory
from tests.helpers.serving import serve

TOKEN = "hf_a-token-that-nobody-may-see"
SPARE = 2_500_000_000
"""Bytes that the process may take beside the models that it keeps: Python, libraries, one job's work."""
FRACTIONS = (5, 10, 15, 20, 25, 30, 35, 40, 50, 60)
FILES = 3
PAUSE = 4.0
PATIENCE = (20, 120)
MARK = re.compile(r"mark-[0-9a-f]{10}")
SAID = re.compile(r'class=\\"status (failed|stopped|done)\\"[^>]*><span>(.*?)</span>')
POLITE = ("already waiting", "already under way", "longer than the", "Queue is full")


class Report:
    """What happened to all visitors."""

    def __init__(self):
        self.start = time.perf_counter()
        self.previews: dict[int, list[float]] = defaultdict(list)
        self.outcomes: Counter = Counter()
        self.wrong: list[str] = []
        self.memory: list[tuple[float, int]] = []
        self.stops: list[float] = []
        self.files = 0
        self.marks: set[str] = set()

    @property
    def now(self) -> float:
        return time.perf_counter() - self.start


class Visitor:
    """One visit: a session with a mark of its own."""

    def __init__(self, http: httpx.AsyncClient, config: dict, report: Report):
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
        self.values[named["Seed"]["id"]] = self.seed
        private = {e["api_name"]: e for e in config["dependencies"] if e["api_visibility"] == "private"}
        public = {e["api_name"]: e for e in config["dependencies"] if e["api_visibility"] == "public"}
        self.preview_call, self.stop_call = private["show_shape"], private["stop"]
        self.look_call, self.prepare_call = private["first_look"], private["prepare"]
        (self.prune_call,) = (entry for name, entry in private.items() if name.startswith("prune"))
        self.generate_call = public["generate"]

    async def visit(self, until: float) -> None:
        """Look, move the slider and use the models until the visit is over."""
        alive = asyncio.create_task(self._heartbeat())
        dear = None
        try:
            await self._page()
            while self.report.now < until:
                await asyncio.sleep(random.expovariate(1 / PAUSE))
                await self._preview()
                if dear is None or dear.done():
                    if dear is not None:
                        dear.result()
                    action = random.choices((self._prune, self._generate, None), (0.2, 0.1, 0.7))[0]
                    dear = asyncio.create_task(action()) if action else None
                elif random.random() < 0.04:
                    self.report.outcomes["left in the middle"] += 1
                    return
        finally:
            for task in (dear, alive):
                if task is not None:
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)

    async def _heartbeat(self) -> None:
        async with self.http.stream("GET", f"heartbeat/{self.session}", timeout=None) as beat:
            async for _ in beat.aiter_lines():
                pass

    async def _page(self) -> None:
        (await self.http.get(str(self.http.base_url).removesuffix("gradio_api/"))).raise_for_status()
        said = await self._queued(self.look_call, [])
        self._expect("first look", "parameters-after" in said, said)

    async def _preview(self) -> None:
        self.values[self.fraction] = random.choice(FRACTIONS)
        start = time.perf_counter()
        answer = await self._direct(self.preview_call)
        self.report.previews[int(self.report.now // 60)].append(time.perf_counter() - start)
        self._expect("preview", answer.status_code == 200 and "parameters-after" in answer.text, answer.text)

    async def _prune(self) -> None:
        said = await self._until_stopped()
        self._own("prune", said)
        shown = f"seed: {self.seed}" in said and self.mark in said
        self.report.outcomes["prune: model and texts shown"] += shown
        if self._ended("prune", said):
            self._expect("prune", shown, said)
            if self.report.files < FILES:
                self.report.files += 1
                await self._file()

    async def _until_stopped(self) -> str:
        """What a pruning says; when it takes longer than the visitor's patience, they press Stop."""
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

    async def _file(self) -> None:
        """The download of what was pruned, which names its recipe."""
        said = await self._queued(self.prepare_call)
        if not self._ended("file", said):
            return
        path = re.findall(r'"path":\s*"([^"]+)"', said)[-1]
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
        said = await self._queued(self.generate_call, values)
        if self._ended("generate", said):
            self._own("generate", said)
            self._expect("generate", self.mark in said and '"before"' in said, said)

    async def _direct(self, call: dict) -> httpx.Response:
        answer = await self.http.post("run/predict", json=self._body(call))
        self._own("direct", answer.text)
        return answer

    def _body(self, call: dict, values: list | None = None) -> dict:
        values = [self.values[index] for index in call["inputs"]] if values is None else values
        return {"data": values, "fn_index": call["id"], "session_hash": self.session}

    async def _queued(self, call: dict, values: list | None = None) -> str:
        """All that a call in the queue says until it is done."""
        answer = await self.http.post("queue/join", json=self._body(call, values))
        if answer.status_code != 200:
            return answer.text
        event, said = answer.json()["event_id"], []
        place = {"session_hash": self.session}
        async with self.http.stream("GET", "queue/data", params=place, timeout=None) as stream:
            async for line in stream.aiter_lines():
                said.append(line)
                if event in line and ('"process_completed"' in line or '"unexpected_error"' in line):
                    break
                if '"close_stream"' in line:
                    break
        return "\n".join(said)

    def _ended(self, what: str, said: str) -> bool:
        """Whether a call did what was asked; a refusal or an error is counted."""
        refused = next((words for words in POLITE if words in said), None)
        if refused:
            self.report.outcomes[f"{what}: refused politely ({refused})"] += 1
            return False
        ends = SAID.findall(said)
        if ends and ends[-1][0] == "stopped":
            self.report.outcomes[f"{what}: stopped"] += 1
            return False
        failed = (ends and ends[-1][0] == "failed") or '"success":false' in said or not said
        self._expect(what, not failed, said)
        if not failed:
            self.report.outcomes[f"{what}: done"] += 1
        return not failed

    def _own(self, what: str, said: str) -> None:
        # A model may copy a mark wrongly: only one that was given to another visitor is another's.
        strangers = set(MARK.findall(said)) & self.report.marks - {self.mark}
        self._expect(f"{what}: another's text", not strangers, str(strangers))
        self._expect(f"{what}: the machine's token", TOKEN not in said, said)

    def _expect(self, what: str, holds: bool, said: str) -> None:
        if not holds:
            lines = said.count("\n") + 1
            self.report.wrong.append(
                f"{what}, at {self.report.now:.0f} s, {lines} lines: {said[:400]} … {said[-600:]}"
            )


async def _seat(place: int, url: str, config: dict, report: Report, until: float) -> None:
    """One place in the room: visitors come, stay for some minutes, and are followed by others."""
    await asyncio.sleep(random.random() * min(20, until / 4))
    while report.now < until:
        # Shorter than the server's 5 seconds: a connection taken up again just as the server closes it
        # would look like an error of the page, where a browser tries again by itself.
        limits = httpx.Limits(max_connections=None, keepalive_expiry=2)
        async with httpx.AsyncClient(base_url=f"{url}/gradio_api/", timeout=60, limits=limits) as http:
            visitor = Visitor(http, config, report)
            try:
                await visitor.visit(min(until, report.now + random.uniform(60, 240)))
            except (httpx.HTTPError, KeyError, ValueError) as error:
                where = traceback.extract_tb(error.__traceback__)
                called = " in ".join(frame.name for frame in reversed(where) if frame.filename == __file__)
                report.wrong.append(f"{type(error).__name__} at {report.now:.0f} s in {called}: {error}")


async def _watch(process: psutil.Process, report: Report) -> None:
    while True:
        report.memory.append((report.now, process.memory_info().rss))
        await asyncio.sleep(1)


async def _room(url: str, process: psutil.Process, visitors: int, minutes: float) -> Report:
    async with httpx.AsyncClient() as http:
        config = (await http.get(f"{url}/config")).json()
    async with httpx.AsyncClient(base_url=f"{url}/gradio_api/", timeout=60) as http:
        await Visitor(http, config, Report())._generate()  # What only the first visitor would wait for.
    report = Report()
    hooks = asyncio.create_task(_watch(process, report))
    until = 60 * minutes
    await asyncio.gather(*(_seat(place, url, config, report, until) for place in range(visitors)))
    await asyncio.sleep(5)
    hooks.cancel()
    return report


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks load")
    parser.add_argument("load", nargs="?")
    parser.add_argument("--visitors", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--memory", type=float, default=4e9, help="bytes that models may take")
    chosen = parser.parse_args()
    share = min(1.0, chosen.memory / machine_memory())
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
            report = asyncio.run(_room(url, psutil.Process(process.pid), chosen.visitors, chosen.minutes))
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        written = log.read_text()
    if "Traceback" in written:
        report.wrong.append(f"in the log: {written[written.index('Traceback') :][:3000]}")
    _print(report, chosen, chosen.memory)
    if report.wrong:
        raise SystemExit(1)


def _print(report: Report, chosen: argparse.Namespace, bound: float) -> None:
    title = f"{chosen.visitors} visitors at once, {chosen.minutes:g} minutes"
    table(title, ["what", "how often"], sorted(report.outcomes.items()))
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
    worst = max((statistics.median(times) for times in minutes.values()), default=float("nan"))
    if report.stops:
        print(
            f"\nStop, from the call until the page says so: median {statistics.median(report.stops):.2f} s, "
            f"longest {max(report.stops):.2f} s, of {len(report.stops)}"
        )
    end = report.memory[-1][0]
    parts = [
        [size for moment, size in report.memory if end * part / 4 <= moment < end * (part + 1) / 4]
        for part in range(4)
    ]
    peak = max(size for _, size in report.memory)
    table(
        f"Resident memory; models may take {bound / 1e9:.1f} GB",
        ["at the start", "highest", "median of each quarter"],
        [
            (
                f"{report.memory[0][1] / 1e9:.2f} GB",
                f"{peak / 1e9:.2f} GB",
                ", ".join(f"{statistics.median(part) / 1e9:.2f}" for part in parts if part) + " GB",
            )
        ],
    )
    checks = {
        "the median of every minute's previews is below 300 ms": worst < 0.3,
        f"memory stays below {(bound + SPARE) / 1e9:.1f} GB": peak < bound + SPARE,
        "memory is flat at the end": statistics.median(parts[3]) < 1.1 * statistics.median(parts[2]),
        "no error that is not a polite refusal, nothing of another's": not report.wrong,
    }
    for check, holds in checks.items():
        print(f"{'yes' if holds else 'NO '}  {check}")
        if not holds:
            report.wrong.append(check)
    for wrong in report.wrong[:10]:
        print(f"\n{wrong[:1500]}")
