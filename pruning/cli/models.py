"""The command `models`."""

from pruning.catalog import MODELS
from pruning.cli.options import AsJson
from pruning.cli.output import print_rows


def models(as_json: AsJson = False) -> None:
    """List the models of the catalog."""
    rows = [
        {
            "name": model.name,
            "hub_id": model.hub_id,
            "family": model.family,
            "parameters": model.parameters,
            "license": model.license,
            "gated": model.gated,
            "offline": model.offline is not None,
            "teaches": model.teaches,
        }
        for model in MODELS.values()
    ]
    print_rows(rows, as_json, "name", "parameters", "license", "teaches")
