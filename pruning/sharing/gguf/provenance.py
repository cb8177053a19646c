"""What a GGUF file says of its origin, and what it has to give, in its metadata."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pruning.recipe import Recipe
from pruning.sharing.gguf.expect import Expectation, Prompt
from pruning.version import __version__

_KEY = "secateur"


@dataclass(frozen=True)
class Origin:
    """What a GGUF file says of itself.

    Attributes:
        recipe: The recipe as text, if there is one.
        digest: The recipe's digest.
        name: The model's name.
        prompt: A text with the log-probabilities that transformers computed when the file was made.
    """

    recipe: str | None
    digest: str | None
    name: str
    prompt: Prompt | None


def facts_of(recipe: Recipe | None, weights: Mapping[str, str], expected: Expectation) -> dict[str, Any]:
    """Return the metadata that an export writes besides the converter's.

    Args:
        recipe: The recipe of the model, if it has one.
        weights: The metadata of its weights files.
        expected: What the file has to give; the shortest text becomes part of it, so that `verify` can compare.
    """
    prompt = expected.prompts[0]
    facts: dict[str, Any] = {
        f"{_KEY}.version": __version__,
        f"{_KEY}.check.ids": list(prompt.ids),
        f"{_KEY}.check.positions": list(prompt.positions),
        f"{_KEY}.check.asked": [number for row in prompt.asked for number in row],
        f"{_KEY}.check.expected": [value for row in prompt.expected for value in row],
    }
    if prompt.rounded:
        facts[f"{_KEY}.check.rounded"] = [value for once in prompt.rounded for row in once for value in row]
    for name in ("base_model", "base_revision"):
        if value := weights.get(name):
            facts[f"{_KEY}.{name}"] = value
    if recipe is not None:
        facts |= {
            "general.description": f"Pruned with Secateur, recipe {recipe.digest}",
            f"{_KEY}.recipe": recipe.to_yaml(),
            f"{_KEY}.recipe_digest": recipe.digest,
        }
    return facts


def origin_of(fields: Mapping[str, Any]) -> Origin:
    """Return what a file's metadata says of its origin.

    Args:
        fields: The metadata by key, with lists.
    """
    ids, positions, asked, expected, rounded = (
        fields.get(f"{_KEY}.check.{name}") or []
        for name in ("ids", "positions", "asked", "expected", "rounded")
    )
    prompt = None
    if ids and asked and len(asked) == len(expected) and positions and not len(asked) % len(positions):
        width = len(asked) // len(positions)
        times = () if len(rounded) % len(asked) else _rows(_rows(rounded, width), len(positions))
        prompt = Prompt(tuple(ids), tuple(positions), _rows(asked, width), _rows(expected, width), times)
    recipe, digest = fields.get(f"{_KEY}.recipe"), fields.get(f"{_KEY}.recipe_digest")
    return Origin(recipe, digest, str(fields.get("general.name", "the model")), prompt)


def _rows(values: Sequence[Any], width: int) -> tuple[tuple[Any, ...], ...]:
    return tuple(tuple(values[start : start + width]) for start in range(0, len(values), width))
