"""A pruned model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.architectures.families import (
    CHANNEL,
    EXPERT,
    GATE,
    KEY_VALUE,
    NEURON,
    QUERY,
    SHARED,
    TOKEN,
    UP,
    kind_of,
)
from pruning.architectures.shape import Shape
from pruning.formatting import UNIT_TITLES, format_ranges
from pruning.lazy import torch
from pruning.loading.source import Source
from pruning.progress import Reporter, silent
from pruning.recipe import Recipe
from pruning.report import Report
from pruning.saving.save import rewrite_card, save_model
from pruning.surgery import KeptIndices

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

UNIT_NAMES = {
    NEURON: "neurons",
    QUERY: "heads",
    KEY_VALUE: "key_value_heads",
    CHANNEL: "channels",
    TOKEN: "tokens",
    EXPERT: "experts",
}
"""What `Pruned.kept` calls each kind of unit."""

NUMBERED = (*UNIT_NAMES, SHARED, GATE, UP)
"""The kinds of units whose numbers in the base are known."""


def numbers_in_base(before: KeptIndices, kept: KeptIndices, layers: Sequence[int] | None) -> KeptIndices:
    """Return the numbers that the units of a model have in the base, after one more cut.

    Args:
        before: Those before the cut.
        kept: What the cut kept, by the numbers before it.
        layers: Which layers it kept; None for all.
    """
    after: dict[str, Sequence[torch.Tensor]] = {}
    for kind in NUMBERED:
        if kind not in before and kind not in kept:
            continue
        # Until gate and up are cut apart, they have the numbers of whole neurons; and a later cut is of these again.
        old, new = (numbers.get(kind) or numbers.get(kind_of(kind)) for numbers in (before, kept))
        experts = kept.get(EXPERT) if kind == NEURON else None
        numbers = [each.cpu() for each in (old or new or ())]
        if old and experts:
            numbers = [
                each[rows.cpu()] if each.ndim == 2 else each
                for each, rows in zip(numbers, experts, strict=True)
            ]
        if old and new:
            numbers = [_numbers_of(each, chosen.cpu()) for each, chosen in zip(numbers, new, strict=True)]
        after[kind] = [numbers[layer] for layer in layers] if layers and kind != TOKEN else numbers
    return after


def _numbers_of(numbers: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Return the numbers of the chosen units, `[chosen]`, or `[experts, chosen]` if each expert has others."""
    return numbers.gather(-1, chosen) if chosen.ndim == 2 == numbers.ndim else numbers[chosen]


def names_in_base(names: Iterable[str], place: str, layers: Sequence[int]) -> frozenset[str]:
    """Return the names that tensors of a pruned model have in its base.

    Args:
        names: Their names.
        place: The name of the module that holds the layers.
        layers: The number of each layer in the base.
    """
    pattern = re.compile(rf"(?<={re.escape(place)}\.)\d+")
    return frozenset(pattern.sub(lambda number: str(layers[int(number[0])]), name, count=1) for name in names)


@dataclass(frozen=True)
class Pruned:
    """A pruned model: an ordinary transformers model, and how it came about.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer.
        recipe: The recipe, pinned to the revision of the base.
        report: What was done and measured.
        source: Where the base comes from.
        shape: The model's shape.
        storage_dtype: The precision in which it is saved.
        layers: The number that each of its layers has in the base.
        units: The numbers that its other units have in the base; of each kind that was cut, one tensor for each layer.
        changed: The base's names of the tensors with new values, by repair or training.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    recipe: Recipe
    report: Report
    source: Source
    shape: Shape
    storage_dtype: torch.dtype
    layers: tuple[int, ...]
    units: KeptIndices = field(default_factory=dict, compare=False)
    changed: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        before, after = self.report.before.parameters, self.report.after.parameters
        steps = "; ".join(step.describe() for step in self.recipe.steps)
        return (
            f"Pruned({type(self.model).__name__} from {self.recipe.base!r}, {before:,} → {after:,} parameters, "
            f"without {steps})"
        )

    @property
    def kept(self) -> dict[str, Any]:
        """The numbers that layers, heads, neurons, channels, experts and tokens have in the base, of what was kept.

        `layers`, `channels` and `tokens` are lists. The others hold a list for each kept layer, by its number in the
        base; of neurons inside experts, a list for each expert. A kind is left out if none of it was removed, but for
        the layers.

        Example:
            >>> import pruning
            >>> pruned = pruning.prune("smollm2-135m", steps=[pruning.Layers(count=1)])
            >>> pruned.kept["layers"] == list(pruned.layers)
            True
        """
        kept: dict[str, Any] = {"layers": list(self.layers)}
        for kind, name in UNIT_NAMES.items():
            numbers = [each.tolist() for each in self.units.get(kind, ())]
            if numbers:
                by_layer = dict(zip(self.layers, numbers, strict=False))
                kept[name] = numbers[0] if kind in (CHANNEL, TOKEN) else by_layer
        return kept

    @property
    def removed(self) -> tuple[str, ...]:
        """The layers, heads, channels and experts of the base that the model lacks, such as `heads 3-5 of layer 0`."""
        counts = self.report.before.units
        lines = []
        if gone := set(range(counts.get("layers", 0))) - set(self.layers):
            lines.append(f"layers {format_ranges(gone)}")
        for kind, unit in (
            (KEY_VALUE, "key_value_heads"),
            (QUERY, "heads"),
            (CHANNEL, "channels"),
            (EXPERT, "experts"),
        ):
            everything = set(range(counts.get(unit, 0)))
            for layer, kept in zip(self.layers, self.units.get(kind, ()), strict=False):
                if gone := everything - set(kept.flatten().tolist()):
                    place = "" if kind == CHANNEL else f" of layer {layer}"
                    lines.append(f"{UNIT_TITLES.get(unit, unit)} {format_ranges(gone)}{place}")
                if kind == CHANNEL:
                    break
        return tuple(lines)

    @property
    def saved_recipe(self) -> Recipe:
        """The recipe as a saved model carries it: with the names of what was removed."""
        return self.recipe.model_copy(update={"removed": self.removed or None})

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: parameters, sizes with the exact share removed, config, recipe and report."""
        return {
            "parameters": self.report.parameters,
            "sizes": self.report.sizes,
            "config": self.model.config.to_dict(),
            "recipe": self.recipe.to_dict(),
            "report": self.report.to_dict(),
        }

    def save(
        self,
        folder: str | Path,
        *,
        name: str | None = None,
        max_shard_size: int | str = "50GB",
        progress: Reporter = silent,
    ) -> Path:
        """Write everything that plain transformers loads, a model card and the recipe.

        The folder appears when it is complete and its model was read back; on failure nothing is left.

        Args:
            folder: The folder to write. It must not exist, or be empty.
            name: The model's name on its card; the folder's name by default.
            max_shard_size: The largest weights file, in bytes.
            progress: Is called with each stage.

        Returns:
            The folder.

        Raises:
            SavingError: The folder cannot be written.

        Example:
            >>> import pruning
            >>> recipe = pruning.Recipe(base="smollm2-135m", steps=[pruning.Neurons(fraction=0.2)])
            >>> folder = pruning.run(recipe, evaluate=False).save("smaller")
            >>> sorted(file.name for file in folder.iterdir())  # doctest: +NORMALIZE_WHITESPACE
            ['README.md', 'config.json', 'generation_config.json', 'model.safetensors', 'recipe.yaml',
             'tokenizer.json', 'tokenizer_config.json']
        """
        return save_model(
            Path(folder),
            model=self.model,
            tokenizer=self.tokenizer,
            source=self.source,
            recipe=self.saved_recipe,
            report=self.report,
            storage_dtype=self.storage_dtype,
            name=name,
            max_shard_size=max_shard_size,
            progress=progress,
        )

    def write_card(self, folder: str | Path, *, name: str | None = None) -> None:
        """Replace the card in a folder that `save` wrote by one with what was measured since.

        Args:
            folder: The folder.
            name: The model's name on its card; the folder's name by default.

        Raises:
            SavingError: The card cannot be written.
        """
        rewrite_card(Path(folder), name or Path(folder).name, self.source, self.saved_recipe, self.report)
