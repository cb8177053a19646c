"""Let no time pass while the product or its client waits for the Hub."""

import sys
import time

WAITING = ("pruning.", "huggingface_hub.")
"""The modules whose pauses are skipped; threads that other tests left behind wait as they always do."""


def skip_pauses(monkeypatch):
    """Let pauses between attempts take no time, and return the list to which their seconds are appended."""
    seconds, sleep = [], time.sleep

    def skip(duration):
        if sys._getframe(1).f_globals["__name__"].startswith(WAITING):
            seconds.append(duration)
        else:
            sleep(duration)

    monkeypatch.setattr("time.sleep", skip)
    return seconds
