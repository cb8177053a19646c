"""The command `search`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pruning.architectures.shape import Shape
from pruning.cli.options import (
    AsJson,
    CalibrationText,
    CalibrationTokens,
    Device,
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
    score: Annotated[str, typer.Option("--score", help="Choose by loss, answers or skills.")] = "loss",
    multiple_of: Annotated[
        int | None, typer.Option("--multiple-of", help="What widths are a multiple of; 32 by default.", min=1)
    ] = None,
    top_k: Annotated[
        int, typer.Option("--top-k", help="How many of the best predicted shapes to measure.", min=1)
    ] = 4,
    memory: Annotated[
        str | None,
        typer.Option("--memory", help="Instead of --budget: 300MB of weights and cache at --context tokens."),
    ] = None,
    context: Annotated[int, typer.Option("--context", help="The tokens that the cache holds.", min=1)] = 2048,
    latency: Annotated[
        float | None,
        typer.Option("--latency", help="Instead of --budget: seconds for each new token on this machine."),
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Find the combination of cuts within a budget that loses least."""
    if (budget, memory, latency) == (None, None, None):
        raise RecipeError("Say how large the model may be, for example with --budget 30%.")
    if output is not None:
        check_writable(output)
    text = Calibration.named(calibration, **given(tokens=tokens))
    base = load(model, device=device, progress=reporter())
    target = shape_search.Budget(latency=latency, context=context)
    if memory is not None:
        target = replace(target, memory_bytes=shape_search.read_bytes(memory))
    if budget is not None:
        sized = shape_search.Budget.parse(budget, Shape.of(base.model.config), base.storage_dtype.itemsize)
        target = replace(target, parameters=sized.parameters)
    # The same command resumes a search that was stopped.
    scores = None if output is None else output.absolute().parent / f".{output.name}.scores"
    result = shape_search.search(
        base,
        target,
        calibration=text,
        seed=seed,
        thorough=thorough,
        score=score,
        multiple_of=multiple_of,
        top_k=top_k,
        scores=scores,
        progress=reporter(),
    )
    if output is not None and scores is not None:
        result.chosen.recipe.save(output)
        scores.unlink(missing_ok=True)
    if as_json:
        print_json(result.to_dict())
        return
    for trial in result.trials:
        mark = "→" if trial is result.chosen else " "
        print(
            f"{mark} {trial.candidate.parameters:>14,}  perplexity {trial.perplexity:>10.2f}  {trial.title}"
        )
    print(f"Best of {result.shapes_considered:,} shapes; perplexity on held-out calibration text.")
