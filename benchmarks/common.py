"""What the benchmarks share: the text, the default model, and tables."""

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import pruning

WIKITEXT = Path(__file__).parents[2] / "shared" / "data" / "wikitext-2" / "valid.txt"


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


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a Markdown table."""
    print(f"\n{title}\n")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(str(cell) for cell in row)} |", flush=True)
