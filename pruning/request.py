"""What a caller asks for: a recipe, or a model with steps, resolved to a recipe and a loaded base."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pruning.architectures.shape import Shape
from pruning.errors import RecipeError
from pruning.lazy import torch
from pruning.loading.given import TENSORS, AnyModel, fingerprint, name_of, open_model
from pruning.loading.load import LoadedModel, find
from pruning.loading.placement import AnyDtype
from pruning.loading.source import Source, Token
from pruning.progress import Reporter, silent
from pruning.recipe import Recipe
from pruning.steps.base import Step
from pruning.text.choice import AnyCalibration, Calibration

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Steps = Step | Sequence[Step]


@dataclass(frozen=True)
class Request:
    """A recipe, and the model that it is for.

    Attributes:
        recipe: What to do.
        model: The base, as the caller gave it.
        tokenizer: Its tokenizer, if it was given apart.
    """

    recipe: Recipe
    model: AnyModel
    tokenizer: PreTrainedTokenizerBase | None = None

    @classmethod
    def of(
        cls,
        model: AnyModel | Recipe,
        tokenizer: PreTrainedTokenizerBase | LoadedModel | None = None,
        steps: Steps | None = None,
        recipe: Recipe | None = None,
        calibration: AnyCalibration | None = None,
        seed: int | None = None,
        base: AnyModel | None = None,
        progress: Reporter = silent,
    ) -> Request:
        """Read the arguments of `pruning.prune`, which describes them.

        Raises:
            RecipeError: They contradict one another, or say nothing to do.
            ModelError: The model is of no known kind.
        """
        if isinstance(tokenizer, LoadedModel):
            base, tokenizer = tokenizer, None
        changes = _changes(calibration, seed, progress)
        if isinstance(model, Recipe):
            if recipe is not None or steps is not None:
                raise RecipeError("Give steps or another recipe with a model, not with a recipe.")
            base = model.base if base is None else base
            return cls(_changed(model, changes), base, tokenizer)
        if base is not None:
            raise RecipeError("A base is given with a recipe. Give the model alone.")
        if (steps is None) == (recipe is None):
            raise RecipeError("Say what to prune: give either steps=[...] or recipe=..., and not both.")
        changes["base"] = name_of(model)
        if recipe is None:
            listed = (steps,) if isinstance(steps, Step) else tuple(steps or ())
            recipe = Recipe(base=str(changes["base"]), steps=listed)  # type: ignore[arg-type]
        return cls(_changed(recipe, changes), model, tokenizer)

    @property
    def revision(self) -> str | None:
        """The revision that a model by name must have; None for any."""
        revision = self.recipe.revision
        return None if revision is None or revision.startswith(TENSORS) else revision

    def open(
        self,
        token: Token = None,
        progress: Reporter = silent,
        *,
        dtype: AnyDtype | None = None,
        device: str | torch.device | None = None,
    ) -> tuple[Recipe, LoadedModel]:
        """Check the recipe against the model, and load it if it is not loaded, as `pruning.load` does.

        Raises:
            RecipeError: A step does not fit the model, or it is not the one that the recipe was made for.
            ModelError: The model cannot be used.
        """
        model = self.model
        if isinstance(model, str | os.PathLike):
            model = find(model, revision=self.revision, token=token, weights=True, progress=progress)
        if isinstance(model, Source):
            self.recipe.check(Shape.of(model.config))
        loaded = open_model(model, self.tokenizer, token=token, dtype=dtype, device=device, progress=progress)
        if not isinstance(model, Source):
            self.recipe.check(Shape.of(loaded.model.config))
        wanted = self.recipe.revision or ""
        if wanted.startswith(TENSORS) and fingerprint(loaded.model) != wanted:
            raise RecipeError(
                "The recipe was made for a model with other weights, which were given in memory. Give that model, or "
                "remove the revision from the recipe."
            )
        return self.recipe, loaded


def _changed(recipe: Recipe, changes: dict[str, object]) -> Recipe:
    """Return the recipe with other values, which are checked."""
    return Recipe(**dict(recipe) | changes) if changes else recipe


def _changes(calibration: AnyCalibration | None, seed: int | None, progress: Reporter) -> dict[str, object]:
    changes: dict[str, object] = {}
    if calibration is not None:
        changes["calibration"] = Calibration.of(calibration, progress=progress)
    if seed is not None:
        changes["seed"] = seed
    return changes
