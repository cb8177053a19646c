"""Measurements, each a ratio within one run: `make bench`, or `python -m benchmarks NAME`."""

import importlib
import platform
import sys
from datetime import date
from itertools import takewhile

import torch

USUAL = ("quality", "cutting", "calibrating", "generating", "memory", "starting", "page")
LONG = ("distilling", "reconstruction", "load")
"""Half an hour or so each: they run when they are named."""
BENCHMARKS = USUAL + LONG

if __name__ == "__main__":
    # What follows the names are options of a benchmark's own.
    chosen = list(takewhile(lambda word: not word.startswith("--"), sys.argv[1:])) or USUAL
    if unknown := set(chosen) - set(BENCHMARKS):
        sys.exit(f"No benchmark {', '.join(sorted(unknown))}. There are: {', '.join(BENCHMARKS)}.")
    print(
        f"{date.today()}, {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for name in chosen:
        importlib.import_module(f"benchmarks.{name}").main()
