"""The command `criteria`."""

from pruning.cli.options import AsJson
from pruning.cli.output import print_rows
from pruning.criteria import CRITERIA


def criteria(as_json: AsJson = False) -> None:
    """List the criteria that rank which neurons to prune."""
    rows = [
        {
            "name": criterion.name,
            "title": criterion.title,
            "formula": criterion.formula,
            "source": criterion.source,
            "url": criterion.url,
            "needs": "calibration text" if criterion.needs_calibration else "weights",
            "warning": criterion.warning,
        }
        for criterion in CRITERIA.values()
    ]
    print_rows(rows, as_json, "name", "formula", "source")
