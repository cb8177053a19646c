"""The license in a model card and the kept layers in a recipe: two values, read from YAML at a bounded cost.

Hostile YAML is expensive to build (aliases of aliases, merge keys) but not to scan, so only its events are read,
by the parser written in C, and only until the value is found.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

FRONT_MATTER_BYTES = 8_000
"""How much of a model card is read for its license."""

MAX_FACT_CHARACTERS = 200
"""A value that is taken from a card or a config has fewer characters than this."""

RECIPE_FILE = "recipe.yaml"
"""The recipe in the folder of a model that Secateur saved."""

MAX_RECIPE_BYTES = 100_000
"""The largest recipe that is read for its `kept_layers` alone."""

MAX_LAYER_NUMBERS = 1_000

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_STRING = "tag:yaml.org,2002:str"


def short_text(value: object) -> str | None:
    """Return a value from a card or config if it is one short line of text, and None otherwise.

    Others wrote it: a value may be a list that refers to itself a million times, or hold a whole page.
    """
    if not isinstance(value, str) or len(value) >= MAX_FACT_CHARACTERS or not value.isprintable():
        return None
    return value.strip()


def plain_license(value: object) -> str | None:
    """Return a license if it is one short line of text; None for anything else that a card may hold."""
    return short_text(value) or None


def license_in(folder: Path) -> str | None:
    """Return the license that the model card in a folder names, or None."""
    try:
        with (folder / "README.md").open("rb") as card:
            text = card.read(FRONT_MATTER_BYTES).decode("utf-8-sig", "replace")
    except OSError:
        return None
    if not text.lstrip().startswith("---"):
        return None
    value = _top_level(text.lstrip().removeprefix("---").partition("\n---")[0], "license")
    return plain_license(value)


def kept_layers_in(folder: Path) -> tuple[int, ...] | None:
    """Return the `kept_layers` that the recipe in a folder records, or None."""
    try:
        with (folder / RECIPE_FILE).open("rb") as recipe:
            content = recipe.read(MAX_RECIPE_BYTES + 1)
        text = content.decode("utf-8")
    except (OSError, ValueError):
        return None
    layers = _top_level(text, "kept_layers") if len(content) <= MAX_RECIPE_BYTES else None
    if not isinstance(layers, list) or not all(layer.isdecimal() and len(layer) < 6 for layer in layers):
        return None
    return tuple(map(int, layers)) or None


def _top_level(text: str, key: str) -> str | list[str] | None:
    """Return the string, or the list of scalars, under a key of a YAML mapping; None for anything else."""
    with suppress(yaml.YAMLError, ValueError, RecursionError):
        events = yaml.parse(text, Loader=_LOADER)
        depth, is_key = 0, True
        for event in events:
            if depth == 0 and isinstance(event, yaml.SequenceStartEvent):
                return None
            if depth == 1 and is_key and isinstance(event, yaml.ScalarEvent) and event.value == key:
                return _value(events)
            if isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
                depth -= 1
                is_key = not is_key if depth == 1 else is_key
            elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
                depth += 1
            elif depth == 1 and isinstance(event, (yaml.ScalarEvent, yaml.AliasEvent)):
                is_key = not is_key
    return None


def _value(events: Iterator[Any]) -> str | list[str] | None:
    event = next(events)
    if isinstance(event, yaml.ScalarEvent):
        return event.value if _is_string(event) else None
    if not isinstance(event, yaml.SequenceStartEvent):
        return None
    values: list[str] = []
    while isinstance(event := next(events), yaml.ScalarEvent) and len(values) < MAX_LAYER_NUMBERS:
        values.append(event.value)
    return values if isinstance(event, yaml.SequenceEndEvent) else None


def _is_string(event: Any) -> bool:
    """Return whether a scalar is text, and not a number, a date, or an object of some tag."""
    if event.tag is not None or len(event.value) >= MAX_FACT_CHARACTERS:
        return event.tag in (_STRING, "!") and len(event.value) < MAX_FACT_CHARACTERS
    if event.style:  # quoted
        return True
    resolved: str = yaml.resolver.Resolver().resolve(yaml.ScalarNode, event.value, (True, False))
    return resolved == _STRING
