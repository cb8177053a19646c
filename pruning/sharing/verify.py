"""Verify that a saved model is what its recipe and its card claim."""

import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from pruning.architectures.shape import Shape
from pruning.errors import ModelError, PruningError
from pruning.evaluation import perplexity
from pruning.evaluation.answers import evaluate_answers
from pruning.evaluation.skills import measure_skills
from pruning.loading.load import LoadedModel, fetch_recipe, load
from pruning.loading.source import Source, Token
from pruning.previews import preview
from pruning.progress import Progress, Reporter, silent
from pruning.recipe import Recipe
from pruning.saving.card import CardClaims, read_card
from pruning.saving.code_free import check_code_free, is_code
from pruning.saving.provenance import read_safetensors_metadata
from pruning.sharing.gguf.verify import is_gguf, iter_checks

TOLERANCE = 0.01
"""How far a perplexity may lie from the card's, as a share of it: other machines sum in another order."""

PANEL_TOLERANCE = 0.05
"""How far the share of good answers, or of right items, may lie from the card's: a near tie may go the other way."""


@dataclass(frozen=True)
class Check:
    """One thing that was checked.

    Attributes:
        name: What was checked.
        holds: Whether it holds; None if it could not be checked.
        detail: What was found, or why it could not be checked.
    """

    name: str
    holds: bool | None
    detail: str


@dataclass(frozen=True)
class Verification:
    """All checks of a model, in the order in which they were made."""

    model: str
    checks: tuple[Check, ...]

    @property
    def holds(self) -> bool:
        """Whether no check failed."""
        return all(check.holds is not False for check in self.checks)

    def require(self) -> None:
        """Raise `ModelError` with every check that failed."""
        if not self.holds:
            failed = "; ".join(
                f"{check.name}: {check.detail}" for check in self.checks if check.holds is False
            )
            raise ModelError(f"{self.model} is not what its recipe and card claim: {failed}.")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"model": self.model, "holds": self.holds, "checks": [asdict(check) for check in self.checks]}


def verify(name: str, *, token: Token = None, progress: Reporter = silent) -> Verification:
    """Compare a saved or published model with its recipe and its card.

    The model is read again, which refuses damaged files and values that are not finite. A GGUF file is opened with
    llama.cpp, and compared with what transformers computed when it was exported.

    Args:
        name: A folder, a Hub id or a GGUF file.
        token: The access token of the caller.
        progress: Is called with each stage.

    Returns:
        Every check, in the order in which they were made.

    Raises:
        PruningError: The model, the recipe or the card cannot be read at all.

    Example:
        >>> import pruning
        >>> recipe = pruning.Recipe(base="smollm2-135m", steps=[pruning.Neurons(fraction=0.2)])
        >>> folder = pruning.run(recipe).save("smaller")
        >>> pruning.verify(str(folder)).holds
        True
    """
    if is_gguf(name):
        progress(Progress("Opening the file with llama.cpp"))
        return Verification(name, tuple(Check(*found) for found in iter_checks(Path(name), token)))
    recipe = Recipe.parse(fetch_recipe(name, token=token))
    loaded = load(name, token=token, progress=progress)
    claims = read_card(loaded.source.folder)
    checks = (
        Check("weights", True, "they load into plain transformers, and every value is finite"),
        _check_code(loaded.source, token),
        _check_recipe(recipe, claims, loaded.source.folder),
        _check_shape(recipe, loaded, token, progress),
        _check_parameters(claims, loaded),
        *_check_perplexities(claims, loaded, progress),
        *_check_panels(claims, loaded, progress),
    )
    return Verification(name, checks)


def _check_code(source: Source, token: Token) -> Check:
    """Check that no file is code or asks for some: in the folder, and for a repository in all of its list."""
    try:
        check_code_free(source.folder)
    except ModelError as error:
        return Check("code", False, str(error))
    if source.hub_id is not None:
        try:
            api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
            names = api.list_repo_files(source.hub_id, revision=source.revision)
        except Exception as error:  # The client has many errors, and none of them is a fault of the model.
            return Check("code", None, f"the list of files could not be read ({type(error).__name__})")
        if code := next(filter(is_code, names), None):
            return Check("code", False, f"{code} is code, or can hold some")
    return Check("code", True, "no file is code or asks for any")


def _check_recipe(recipe: Recipe, claims: CardClaims, folder: Path) -> Check:
    """Check that the card and the weights name the recipe that is beside the model."""
    digests = {"the card": claims.recipe}
    for file in sorted(folder.glob("*.safetensors")):
        digests[file.name] = read_safetensors_metadata(file).get("recipe")
    for place, digest in digests.items():
        if digest != recipe.digest:
            named = f"recipe {digest}" if digest else "no recipe"
            return Check("recipe", False, f"{place} names {named}, recipe.yaml is {recipe.digest}")
    return Check("recipe", True, f"{recipe.digest}, as the card and the weights say")


def _check_shape(recipe: Recipe, loaded: LoadedModel, token: Token, progress: Reporter) -> Check:
    """Check that the model has the shape that the recipe leads to, if the base's config can be found."""
    progress(Progress("Working out the shape that the recipe leads to"))
    try:
        config = preview(recipe, token=token).after.config
    except PruningError as error:
        return Check("shape", None, f"not checked, because the base's config cannot be found: {error}")
    units, expected = Shape.of(loaded.model.config).anatomy.units, Shape.of(config).anatomy.units
    wrong = [
        f"{units[kind]} of {kind}, but the recipe leads to {count}"
        for kind, count in expected.items()
        if units[kind] != count
    ]
    return Check("shape", not wrong, ", ".join(wrong) or "the one that the recipe leads to")


def _check_parameters(claims: CardClaims, loaded: LoadedModel) -> Check:
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    if claims.parameters is None:
        return Check("parameters", None, f"{parameters:,}; the card does not say how many")
    if parameters != claims.parameters:
        return Check("parameters", False, f"{parameters:,}, the card says {claims.parameters:,}")
    return Check("parameters", True, f"{parameters:,}, as the card says")


def _check_perplexities(claims: CardClaims, loaded: LoadedModel, progress: Reporter) -> list[Check]:
    """Measure each perplexity of the card again, on the same tokens."""
    if not claims.perplexities:
        return [Check("perplexity", None, "not checked: the card states none that can be measured here")]
    checks = []
    for genre, result in perplexity.iter_evaluate(loaded, progress=progress):
        if (claim := claims.perplexities.get(genre)) is None:
            continue
        name, values = f"perplexity, {genre}", f"{result.value:.3f}, the card says {claim.value:.3f}"
        if (claim.tokens, claim.window) != (result.tokens, result.window):
            text = f"{claim.tokens} tokens in windows of {claim.window}"
            checks.append(Check(name, None, f"not checked: the card measured {text}"))
        else:
            checks.append(Check(name, math.isclose(result.value, claim.value, rel_tol=TOLERANCE), values))
    return checks


def _check_panels(claims: CardClaims, loaded: LoadedModel, progress: Reporter) -> Iterator[Check]:
    """Ask the bundled questions again that the card states results of."""
    if claims.good_answers is not None:
        answers = evaluate_answers(loaded, progress=progress)
        yield _check_share("good answers", answers.good / answers.items, claims.good_answers)
    if claims.accuracy is not None:
        accuracy = measure_skills(loaded, progress=progress).overall.accuracy
        yield _check_share("skills", accuracy or 0.0, claims.accuracy)


def _check_share(name: str, share: float, claim: float) -> Check:
    return Check(name, abs(share - claim) <= PANEL_TOLERANCE, f"{share:.1%}, the card says {claim:.1%}")
