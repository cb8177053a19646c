"""What a recipe leads to, from the base's config alone."""

from dataclasses import dataclass
from typing import Any

from pruning.architectures.shape import Shape
from pruning.loading.find import find
from pruning.loading.given import AnyModel, config_of
from pruning.loading.source import Access, Token
from pruning.recipe import Recipe
from pruning.report import compare_components, compare_units, count_units
from pruning.request import Request, Steps


@dataclass(frozen=True)
class Preview:
    """The shapes before and after a recipe, from the config alone."""

    recipe: Recipe
    before: Shape
    after: Shape

    def __repr__(self) -> str:
        return f"Preview({self.before.parameters:,} → {self.after.parameters:,} parameters)"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: parameters, sizes with the exact share removed, config and recipe."""
        return {
            "parameters": compare_components(self.before.components, self.after.components),
            "sizes": compare_units(count_units(self.before), count_units(self.after)),
            "config": self.after.config.to_dict(),
            "recipe": self.recipe.to_dict(),
        }


def preview(
    model: AnyModel | Recipe,
    *,
    steps: Steps | None = None,
    recipe: Recipe | None = None,
    token: Token = None,
    access: Access | None = None,
) -> Preview:
    """Work out the shape that a recipe leads to, from the base's config alone.

    Args:
        model: A recipe, or the base as `prune` takes it.
        steps: What to do with the base.
        recipe: What to do with it, instead of steps.
        token: The access token of the caller, if `access` is not given.
        access: Who asks.

    Returns:
        The shapes before and after.

    Raises:
        RecipeError: A step does not fit the base; the error knows which.
        ModelError: The base cannot be used.

    Example:
        >>> import pruning
        >>> shapes = pruning.preview("smollm2-135m", steps=[pruning.Neurons(fraction=0.2)])
        >>> shapes.after.parameters < shapes.before.parameters
        True
    """
    request = Request.of(model, steps=steps, recipe=recipe)
    before = Shape.of(config_of(request.model, revision=request.revision, token=token, access=access))
    return Preview(request.recipe, before, request.recipe.check(before))


def preview_plain(recipe: Recipe) -> Preview:
    """Work out what `preview` does, with configs that are plain values.

    Args:
        recipe: The recipe.

    Returns:
        The shapes before and after. Once the base is known, they are found without PyTorch and transformers.

    Raises:
        RecipeError: A step does not fit the base; the error knows which.
        ModelError: The base cannot be used.
    """
    request = Request.of(recipe)
    before = Shape.of(find(recipe.base, revision=request.revision, plain=True).config)
    return Preview(recipe, before, recipe.check(before))
