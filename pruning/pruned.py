"""A pruned model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.architectures.families import CHANNEL, KEY_VALUE, NEURON, QUERY, TOKEN
from pruning.architectures.shape import Shape
from pruning.formatting import UNIT_TITLES, format_ranges
from pruning.loading.source import Source
from pruning.progress import Reporter, silent
from pruning.recipe import Recipe
from pruning.report import Report
from pruning.saving.save import rewrite_card, save_model
from pruning.surgery import KeptIndices

UNIT_NAMES = {
    NEURON: "neurons",
    QUERY: "heads",
    KEY_VALUE: "key_value_heads",
    CHANNEL: "channels",
    TOKEN: "tokens",
}
"""What `Pruned.kept` calls each kind of unit."""


def numbers_in_base(before: KeptIndices, kept: KeptIndices, layers: Sequence[int] | None) -> KeptIndices:
    """Return the numbers that the units of a model have in the base, after one more cut.

    Args:
        before: Those before the cut.
        kept: What the cut kept, by the numbers before it.
        layers: Which layers it kept; None for all.
    """
    after: dict[str, Sequence[torch.Tensor]] = {}
    for kind in UNIT_NAMES:
        old, new = before.get(kind), kept.get(kind)
        if new is not None and old is not None:
            new = [numbers[indices.cpu()] for numbers, indices in zip(old, new, strict=True)]
        numbers = [each.cpu() for each in (old or ())] if new is None else [each.cpu() for each in new]
        if numbers:
            after[kind] = [numbers[layer] for layer in layers] if layers and kind != TOKEN else numbers
    return after


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

    def __repr__(self) -> str:
        before, after = self.report.before.parameters, self.report.after.parameters
        steps = "; ".join(step.describe() for step in self.recipe.steps)
        return (
            f"Pruned({type(self.model).__name__} from {self.recipe.base!r}, {before:,} → {after:,} parameters, "
            f"without {steps})"
        )

    @property
    def kept(self) -> dict[str, Any]:
        """The numbers that layers, heads, neurons, channels and tokens have in the base, of what was kept.

        `layers`, `channels` and `tokens` are lists. `neurons`, `heads` and `key_value_heads` hold a list for each kept
        layer, by its number in the base. A kind is left out if none of it was removed, but for the layers.

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
        """The layers, heads and channels of the base that are not in the model, such as `heads 3-5 of layer 0`."""
        counts = self.report.before.units
        lines = []
        if gone := set(range(counts.get("layers", 0))) - set(self.layers):
            lines.append(f"layers {format_ranges(gone)}")
        for kind, unit in ((KEY_VALUE, "key_value_heads"), (QUERY, "heads"), (CHANNEL, "channels")):
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
