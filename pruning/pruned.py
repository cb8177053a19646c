"""A pruned model, and what a preview knows of one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.architectures.shape import Shape
from pruning.loading.source import Source
from pruning.progress import Reporter, silent
from pruning.recipe import Recipe
from pruning.report import Report, compare_components
from pruning.saving.save import save_model


@dataclass(frozen=True)
class Preview:
    """The shapes before and after a recipe, from the config alone."""

    recipe: Recipe
    before: Shape
    after: Shape

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: parameters, config and recipe."""
        return {
            "parameters": compare_components(self.before.components, self.after.components),
            "config": self.after.config.to_dict(),
            "recipe": self.recipe.to_dict(),
        }


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
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    recipe: Recipe
    report: Report
    source: Source
    shape: Shape
    storage_dtype: torch.dtype
    layers: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: parameters, config, recipe and report."""
        return {
            "parameters": self.report.parameters,
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
            recipe=self.recipe,
            report=self.report,
            storage_dtype=self.storage_dtype,
            name=name,
            max_shard_size=max_shard_size,
            progress=progress,
        )
