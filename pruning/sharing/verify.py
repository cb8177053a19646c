"""Is a saved model what its recipe and its card say?"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

from pruning import pipeline
from pruning.architectures.shape import Shape
from pruning.errors import ModelError, PruningError
from pruning.evaluation import perplexity as evaluation
from pruning.loading import load as loading
from pruning.loading.load import LoadedModel
from pruning.loading.source import Token
from pruning.progress import Progress, Reporter, silent
from pruning.recipe import Recipe
from pruning.saving.card import CardClaims, read_card
from pruning.saving.provenance import read_safetensors_metadata

TOLERANCE = 0.01
"""How far a perplexity may lie from the card's, as a share of it: other machines add up in another order."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `holds` is None where it could not be, and `detail` says why."""

    name: str
    holds: bool | None
    detail: str


@dataclass(frozen=True)
class Verification:
    """Every check of a model, in the order in which they were made."""

    model: str
    checks: tuple[Check, ...]

    @property
    def holds(self) -> bool:
        return all(check.holds is not False for check in self.checks)

    def require(self) -> None:
        """Raise `ModelError` with everything that does not hold."""
        if not self.holds:
            wrong = "; ".join(
                f"{check.name}: {check.detail}" for check in self.checks if check.holds is False
            )
            raise ModelError(f"{self.model} is not what its recipe and card say: {wrong}.")

    def to_dict(self) -> dict:
        return {"model": self.model, "holds": self.holds, "checks": [asdict(check) for check in self.checks]}


def verify(name: str, *, token: Token = None, progress: Reporter = silent) -> Verification:
    """Compare a saved or published model with its recipe and its card.

    `name` is a folder or a Hub id. The model is read again, which refuses damaged files and values that
    are no numbers. Raises `PruningError` where the model, the recipe or the card cannot be read at all.
    """
    recipe = Recipe.parse(loading.fetch_recipe(name, token=token))
    loaded = loading.load(name, token=token, progress=progress)
    stated = read_card(loaded.source.folder)
    checks = (
        Check("weights", True, "they load into plain transformers, and every value is a finite number"),
        _provenance(recipe, stated, loaded.source.folder),
        _shape(recipe, loaded, token, progress),
        _parameters(stated, loaded),
        *_perplexities(stated, loaded, progress),
    )
    return Verification(name, checks)


def _provenance(recipe: Recipe, stated: CardClaims, folder: Path) -> Check:
    """The recipe beside the model is the one that its card and its weights name."""
    named = {"the card": stated.recipe}
    for file in sorted(folder.glob("*.safetensors")):
        named[file.name] = read_safetensors_metadata(file).get("recipe")
    for place, digest in named.items():
        if digest != recipe.digest:
            told = f"recipe {digest}" if digest else "no recipe"
            return Check("recipe", False, f"{place} names {told}, recipe.yaml is {recipe.digest}")
    return Check("recipe", True, f"{recipe.digest}, as the card and the weights say")


def _shape(recipe: Recipe, loaded: LoadedModel, token: Token, progress: Reporter) -> Check:
    """The model has the shape that the recipe leads to, wherever the base's config can be had."""
    progress(Progress("Working out the shape that the recipe leads to"))
    try:
        expected = pipeline.preview(recipe, token=token).after.config
    except PruningError as error:
        return Check("shape", None, f"not checked, for want of the base's config: {error}")
    found, expected = Shape.of(loaded.model.config).anatomy.units, Shape.of(expected).anatomy.units
    wrong = [
        f"{found[kind]} of {kind}, the recipe leads to {count}"
        for kind, count in expected.items()
        if found[kind] != count
    ]
    return Check("shape", not wrong, ", ".join(wrong) or "the one that the recipe leads to")


def _parameters(stated: CardClaims, loaded: LoadedModel) -> Check:
    found = sum(parameter.numel() for parameter in loaded.model.parameters())
    if stated.parameters is None:
        return Check("parameters", None, f"{found:,}; the card does not say how many")
    if found != stated.parameters:
        return Check("parameters", False, f"{found:,}, the card says {stated.parameters:,}")
    return Check("parameters", True, f"{found:,}, as the card says")


def _perplexities(stated: CardClaims, loaded: LoadedModel, progress: Reporter) -> list[Check]:
    """Each perplexity of the card, measured again on the same tokens."""
    if not stated.perplexities:
        return [Check("perplexity", None, "not checked: the card states none that can be measured here")]
    checks = []
    for genre, result in evaluation.iter_evaluate(loaded, progress=progress):
        if (said := stated.perplexities.get(genre)) is None:
            continue
        name, values = f"perplexity, {genre}", f"{result.value:.3f}, the card says {said.value:.3f}"
        if (said.tokens, said.window) != (result.tokens, result.window):
            read = f"{said.tokens} tokens in windows of {said.window}"
            checks.append(Check(name, None, f"not checked: the card measured {read}"))
        else:
            checks.append(Check(name, math.isclose(result.value, said.value, rel_tol=TOLERANCE), values))
    return checks
