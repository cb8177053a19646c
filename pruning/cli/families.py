"""The command `families`."""

from dataclasses import asdict

from pruning.architectures.support import supported
from pruning.cli.options import AsJson
from pruning.cli.output import print_rows


def families(as_json: AsJson = False) -> None:
    """List model types and what can be removed."""
    rows = [asdict(each) | {"units": list(each.units)} for each in supported()]
    print_rows(
        rows if as_json else [row | {"units": ", ".join(row["units"])} for row in rows],
        as_json,
        "name",
        "units",
        "reason",
    )
