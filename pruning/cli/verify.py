"""The command `verify`."""

from pruning.cli.options import AsJson, Model
from pruning.cli.output import print_json, reporter
from pruning.sharing import verify as verification


def verify(model: Model, as_json: AsJson = False) -> None:
    """Check a saved or published model against its recipe and its card."""
    result = verification.verify(model, progress=reporter())
    result.require()
    if as_json:
        print_json(result.to_dict())
        return
    for check in result.checks:
        print(f"{'holds' if check.holds else '–':<6} {check.name}: {check.detail}")
