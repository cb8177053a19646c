"""Serve the page as `python app.py` does, for the browser tests and the README's picture."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]
START_SECONDS = 240
SHARED = ("mapped", "models", "quality", "statistics")
"""What the pages under test have of the user's cache."""
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
"""The arguments for Chromium."""


def page_cache(home: Path, user_cache: Path) -> str:
    """Return a cache folder for a page under test.

    It shares converted weights and statistics with the user's cache, but what others recorded is not in it.

    Args:
        home: Where it is made.
        user_cache: The user's cache.
    """
    folder = home / "cache"
    folder.mkdir()
    for name in SHARED:
        (user_cache / name).mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(user_cache / name)
    return str(folder)


def serve(environment: dict[str, str], log: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start the page, wait until it answers, and return its process and its address.

    Raises `RuntimeError` with the log if it does not.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=ROOT,
            env=os.environ | environment | {"PORT": str(port)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the page did not start:\n{log.read_text()}")
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return process, url
        except OSError:
            time.sleep(0.5)
    process.kill()
    raise RuntimeError(f"the page did not answer:\n{log.read_text()}")
