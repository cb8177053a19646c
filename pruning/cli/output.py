"""What the commands print: results on standard output, progress and warnings on standard error."""

import json
import sys
from collections.abc import Mapping, Sequence

from pruning.formatting import UNIT_TITLES
from pruning.progress import Progress, Reporter, bar


def reporter() -> Reporter:
    """Return a reporter for standard error: in place on a terminal, else a line for each stage."""
    if sys.stderr.isatty():
        return bar
    seen: list[str] = []

    def report(progress: Progress) -> None:
        if seen[-1:] != [progress.text]:
            seen.append(progress.text)
            print(progress.text, file=sys.stderr, flush=True)

    return report


def warn(message: str) -> None:
    """Print one line on standard error."""
    print(f"Warning: {message}", file=sys.stderr)


def warn_renamed(old: str, new: str) -> None:
    """Print one line that names what a command or an option is called now."""
    warn(f"{old} is now {new}. The old name works in this version only.")


def print_json(value: object) -> None:
    """Print one JSON value; what JSON does not know is written as text."""
    is_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    print(json.dumps(value, ensure_ascii=not is_unicode, indent=2, default=str))


def print_rows(rows: Sequence[Mapping[str, object]], as_json: bool, *columns: str) -> None:
    """Print the columns of each row on one line, or, with `as_json`, all rows as one list."""
    if as_json:
        print_json(rows)
        return
    widths = [max(len(_cell(row[column])) for row in rows) for column in columns]
    for row in rows:
        cells = (_cell(row[column]).ljust(width) for column, width in zip(columns, widths, strict=True))
        print("  ".join(cells).rstrip())


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def print_parameters(facts: Mapping) -> None:
    """Print the number of parameters before and after, in all and for each component, and the sizes that changed.

    Args:
        facts: What `Preview.to_dict` or `Pruned.to_dict` returned.
    """
    parameters = facts["parameters"]
    sizes = {UNIT_TITLES.get(name, name): row for name, row in facts["sizes"].items()}
    rows = {"parameters": parameters} | parameters["components"] | sizes
    width = max(map(len, rows))
    for name, row in rows.items():
        before, after = row["before"], row["after"]
        if before:
            print(f"{name:<{width}} {before:>16,} → {after:>16,}  {(after - before) / before:+8.2%}")
