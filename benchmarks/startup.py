"""Time from `python app.py` to a page that answers over HTTP, and to a model that is ready, cold and warm."""

import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.common import Unavailable, table
from tests.helpers.serving import ARGUMENTS

try:
    from playwright.sync_api import Browser, sync_playwright
except ImportError:
    raise Unavailable(
        "this benchmark drives a browser, and Playwright is not installed; "
        "run `pip install -r requirements-dev.txt`."
    ) from None

ROOT = Path(__file__).parents[1]
ROUNDS = 3
TIMEOUT = 400
"""Seconds to wait for the page, and for the model."""


def main() -> None:
    """Start the page once with an empty cache and several times with a full one, and print a table."""
    with tempfile.TemporaryDirectory() as empty, browser() as chromium:
        cold = [_start(chromium, {"SECATEUR_CACHE": empty})]
    with browser() as chromium:
        _start(chromium)
        warm = [_start(chromium) for _ in range(ROUNDS)]
    table(
        f"From `python app.py` (cold: nothing converted or calibrated yet, once; warm: median of {ROUNDS})",
        ["cache", "the page answers", "the model is ready, as the page shows in a browser"],
        [
            (name, *(f"{statistics.median(times):.1f} s" for times in zip(*starts, strict=True)))
            for name, starts in (("cold", cold), ("warm", warm))
        ],
    )


def _start(chromium: Browser, environment: dict[str, str] | None = None) -> tuple[float, float]:
    """Measure the seconds until the page answers, and until it shows that the model is ready."""
    start = time.perf_counter()
    with served(environment) as url:
        answers = time.perf_counter() - start
        page = chromium.new_page()
        page.goto(url)
        page.wait_for_selector("#status:has-text('Ready')", timeout=1000 * TIMEOUT)
        ready = time.perf_counter() - start
        page.close()
    return answers, ready


@contextmanager
def served(environment: dict[str, str] | None = None) -> Iterator[str]:
    """Run `python app.py` and yield the address of the page as soon as it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "app.py"],
        cwd=ROOT,
        env=os.environ | (environment or {}) | {"PORT": str(port)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.perf_counter() + TIMEOUT
        while True:
            try:
                urllib.request.urlopen(url, timeout=2).close()
                break
            except OSError:
                if process.poll() is not None or time.perf_counter() > end:
                    raise RuntimeError("The page did not start: run `python app.py` to see why.") from None
                time.sleep(0.02)
        yield url
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def browser() -> Iterator[Browser]:
    """Start Debian's Chromium and yield it.

    Raises:
        Unavailable: it is not installed.
    """
    chromium = shutil.which("chromium")
    if chromium is None:
        raise Unavailable(
            "this benchmark drives Chromium, which is not installed; on Debian, install chromium."
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()
