"""The command `search`."""

from pathlib import Path
from typing import Annotated

import typer

from pruning.architectures.shape import Shape
from pruning.cli.options import (
    AsJson,
    CalibrationText,
    CalibrationTokens,
    Model,
    Seed,
    check_writable,
    given,
)
from pruning.cli.output import print_json, reporter
from pruning.errors import RecipeError
from pruning.loading.load import load
from pruning.shape_search import search as shape_search
from pruning.text.choice import Calibration
from pruning.text.passages import CHAT_AND_GENERAL


def search(
    model: Model,
    budget: Annotated[
        str | None,
        typer.Option("--budget", "--parameters", help="100M parameters, 300MB on disk, or 30% smaller."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file for the recipe, for `prune --recipe`.")
    ] = None,
    calibration: CalibrationText = CHAT_AND_GENERAL,
    tokens: CalibrationTokens = None,
    seed: Seed = 0,
    thorough: Annotated[
        bool,
        typer.Option(
            "--thorough/--no-thorough",
            help="Try each layer, and reconstruct the best models: better, and slower.",
        ),
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Find the combination of cuts within a budget that loses least."""
    if budget is None:
        raise RecipeError("Say how large the model may be, for example with --budget 30%.")
    if output is not None:
        check_writable(output)
    text = Calibration.named(calibration, **given(tokens=tokens))
    base = load(model, progress=reporter())
    target = shape_search.Budget.parse(budget, Shape.of(base.model.config), base.storage_dtype.itemsize)
    result = shape_search.search(
        base, target, calibration=text, seed=seed, thorough=thorough, progress=reporter()
    )
    if output is not None:
        result.chosen.recipe.save(output)
    if as_json:
        print_json(result.to_dict())
        return
    for trial in result.trials:
        mark = "→" if trial is result.chosen else " "
        print(
            f"{mark} {trial.candidate.parameters:>14,}  perplexity {trial.perplexity:>10.2f}  {trial.title}"
        )
    print(f"Best of {result.shapes_considered:,} shapes; perplexity on held-out calibration text.")
