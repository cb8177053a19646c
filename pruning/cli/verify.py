"""The command `verify`."""

from pruning.cli.options import AsJson, Model, OwnCriterion
from pruning.cli.output import print_json, reporter
from pruning.criteria.own import load_criterion
from pruning.sharing import verify as verification


def verify(model: Model, criterion: OwnCriterion = None, as_json: AsJson = False) -> None:
    """Check a saved model or a GGUF file against its recipe and card."""
    if criterion is not None:
        load_criterion(criterion)
    result = verification.verify(model, progress=reporter())
    result.require()
    if as_json:
        print_json(result.to_dict())
        return
    for check in result.checks:
        print(f"{'holds' if check.holds else '–':<6} {check.name}: {check.detail}")
