"""The command `sweep`."""

from typing import Annotated

import typer

from pruning.cli.options import (
    AsJson,
    CalibrationText,
    CalibrationTokens,
    Device,
    Model,
    Plot,
    Seed,
    check_picture,
    given,
)
from pruning.cli.output import print_json, reporter
from pruning.criteria import DEFAULT_CRITERION, criterion_named
from pruning.evaluation.plot import save_plot
from pruning.loading.load import load
from pruning.progress import clear_bar
from pruning.shape_search.scores import LOSS, TITLES, check_score
from pruning.shape_search.sweep import iter_sweep
from pruning.text.choice import Calibration
from pruning.text.passages import CHAT_AND_GENERAL


def sweep(
    model: Model,
    criterion: Annotated[
        str,
        typer.Option("--criterion", help="What ranks the neurons: one criterion, or several with commas."),
    ] = DEFAULT_CRITERION,
    calibration: CalibrationText = CHAT_AND_GENERAL,
    tokens: CalibrationTokens = None,
    seed: Seed = 0,
    score: Annotated[
        str, typer.Option("--score", help="Measure answers or skills in addition to the loss.")
    ] = LOSS,
    plot: Plot = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Measure quality against size, with growing cuts."""
    check_picture(plot)
    check_score(score)
    names = [criterion_named(name.strip()).name for name in criterion.split(",")]
    text = Calibration.named(calibration, **given(tokens=tokens))
    base = load(model, device=device, progress=reporter())
    rows = []
    for point in iter_sweep(base, names, calibration=text, seed=seed, score=score, progress=reporter()):
        rows.append(point)
        if not as_json:
            clear_bar()
            scored = "" if point.score is None else f"{score} {point.score:>4.0%}  "
            print(
                f"{point.fraction:>4.0%}  {point.parameters:>14,}  perplexity {point.perplexity:>10.2f}  "
                f"{scored}{point.criterion}",
                flush=True,
            )
    clear_bar()
    if plot is not None:
        series = {
            name: [
                (row.parameters / 1e6, row.perplexity if row.score is None else row.score)
                for row in rows
                if row.criterion == name
            ]
            for name in names
        }
        save_plot(
            plot, f"Quality of {model} by size", series, "million parameters", TITLES.get(score, "perplexity")
        )
    if as_json:
        print_json(
            [
                {
                    "criterion": row.criterion,
                    "fraction": row.fraction,
                    "parameters": row.parameters,
                    "perplexity": row.perplexity,
                    "score": row.score,
                    "recipe": row.recipe.to_dict(),
                }
                for row in rows
            ]
        )
