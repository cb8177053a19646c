"""The command `families`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from pruning.architectures.families import UNITS
from pruning.architectures.support import supported
from pruning.cli.options import AsJson
from pruning.cli.output import print_rows
from pruning.errors import RecipeError


def families(
    as_json: AsJson = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a table in Markdown, without the reasons.")
    ] = False,
) -> None:
    """List model types and what can be removed."""
    if as_json and markdown:
        raise RecipeError("Give either --json or --markdown, and not both.")
    if markdown:
        print("\n".join(table({each.name: each.units for each in supported()})))
        return
    rows = [asdict(each) | {"units": list(each.units)} for each in supported()]
    print_rows(
        rows if as_json else [row | {"units": ", ".join(row["units"])} for row in rows],
        as_json,
        "name",
        "units",
        "reason",
    )


def table(proven: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table in Markdown.

    Args:
        proven: The kinds of unit that can be removed, by model type.
    """
    yield f"| type | {' | '.join(UNITS)} |"
    yield f"|---|{'---|' * len(UNITS)}"
    for name, units in proven.items():
        yield f"| `{name}` | {' | '.join('yes' if unit in units else '' for unit in UNITS)} |".replace(
            "|  |", "| |"
        )
