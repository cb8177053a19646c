"""The command `info`."""

from pruning.architectures.shape import Shape
from pruning.cli.options import AsJson, Model
from pruning.cli.output import print_json, reporter
from pruning.formatting import UNIT_TITLES
from pruning.loading.find import find
from pruning.report import count_units


def info(model: Model, as_json: AsJson = False) -> None:
    """Show what a model consists of, from its config alone."""
    source = find(model, plain=True, progress=reporter())
    shape = Shape.of(source.config)
    facts = {
        "model": source.name,
        "origin": source.origin,
        "revision": source.revision,
        "license": source.license,
        "notes": " ".join(source.notes) or None,
        "type": source.config.model_type,
        "context": getattr(source.config, "max_position_embeddings", None),
        "parameters": shape.parameters,
    }
    units = {UNIT_TITLES.get(name, name): count for name, count in count_units(shape).items()}
    if as_json:
        print_json(facts | {"units": units, "components": shape.components})
        return
    for name, value in {**facts, **units, **shape.components}.items():
        if value is not None:
            print(f"{name:<18} {value:,}" if isinstance(value, int) else f"{name:<18} {value}")
