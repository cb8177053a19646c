"""What the benchmarks share: the texts, the default model, taking turns, and tables."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

import pruning
from page.workers.memory import release_memory

WIKITEXT = Path(__file__).parents[2] / "shared" / "data" / "wikitext-2" / "valid.txt"
ROUNDS = 5


@cache
def base() -> pruning.LoadedModel:
    return pruning.load("smollm2-135m")


@cache
def wikitext() -> tuple[str, str]:
    """WikiText-2 validation text: the first half to calibrate on, the second half held out."""
    if not WIKITEXT.is_file():
        raise SystemExit(f"This benchmark reads WikiText-2 from {WIKITEXT}, which is not there.")
    text = WIKITEXT.read_text(encoding="utf-8")
    middle = text.index("\n = ", len(text) // 2)
    return text[:middle], text[middle:]


def medians(tasks: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of each task. They take turns, in the other order every other round, so that
    what else the machine does weighs on all of them alike; a round before the first is not counted. Before
    each turn free memory goes back to the system: whoever needs new memory gets it fresh, and not what
    the task before happened to leave."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(rounds + 1):
        for name in list(tasks)[:: -1 if turn % 2 else 1]:
            release_memory()
            start = time.perf_counter()
            made = tasks[name]()
            if turn:
                seconds[name].append(time.perf_counter() - start)
            del made
    return {name: statistics.median(times) for name, times in seconds.items()}


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a Markdown table."""
    print(f"\n{title}\n")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(str(cell) for cell in row)} |", flush=True)
