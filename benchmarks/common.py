"""What the benchmarks share: texts, the default model, timing by turns, and tables."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

import pruning
from pruning.memory import release_memory

WIKITEXT = Path(__file__).parents[2] / "shared" / "data" / "wikitext-2" / "valid.txt"
ROUNDS = 5


class Unavailable(Exception):
    """A benchmark needs something that is not in the repository and not on this machine."""


@cache
def base() -> pruning.LoadedModel:
    """Load the default model, once per process."""
    return pruning.load("smollm2-135m")


@cache
def wikitext() -> tuple[str, str]:
    """Read the validation text of WikiText-2, split between two articles.

    Returns:
        The first half, to calibrate on, and the second half, which is held out.

    Raises:
        Unavailable: the text is not beside the repository, which does not include it.
    """
    if not WIKITEXT.is_file():
        raise Unavailable(
            "this benchmark reads the validation text of WikiText-2, which is not part of the repository; "
            f"put it at {WIKITEXT} (https://huggingface.co/datasets/Salesforce/wikitext, wikitext-2-v1)."
        )
    text = WIKITEXT.read_text(encoding="utf-8")
    middle = text.index("\n = ", len(text) // 2)
    return text[:middle], text[middle:]


def medians(tasks: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Measure the median seconds of each task.

    The tasks take turns, in reverse order every other round, so that other load on the machine affects all
    of them alike. A first round is not counted. Before each turn, free memory is returned to the system:
    every task pays for fresh memory, and none reuses what the task before it left.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(rounds + 1):
        for name in list(tasks)[:: -1 if turn % 2 else 1]:
            release_memory()
            start = time.perf_counter()
            result = tasks[name]()
            if turn:
                seconds[name].append(time.perf_counter() - start)
            del result
    return {name: statistics.median(times) for name, times in seconds.items()}


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a Markdown table."""
    print(f"\n{title}\n")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(str(cell) for cell in row)} |", flush=True)
