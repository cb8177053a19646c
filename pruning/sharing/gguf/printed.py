"""What another program printed last, as a part of a sentence."""

import re

from pruning.formatting import printable

LONGEST = 200
"""The characters of a line that are shown."""


def last_line(printed: str) -> str:
    """Return the last line that a program printed, with files by their names alone; empty if it printed nothing.

    Args:
        printed: What it printed, with its progress if it showed one.
    """
    lines = [line.strip() for line in re.split(r"[\r\n]", printed)]
    lines = [line for line in lines if line and not line.startswith("Writing:")]
    named = re.sub(r"(?<![\w/])/(?:[^\s/'\"]+/)*([^\s/'\"]+)", r"\1", (lines or [""])[-1])
    shown = " ".join(printable(named).split())
    return shown if len(shown) <= LONGEST else shown[:LONGEST] + "…"
