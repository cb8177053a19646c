"""The command `prune`."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from pruning import pipeline, previews, streaming
from pruning.cli.evaluate import print_panels
from pruning.cli.options import (
    AsJson,
    CalibrationText,
    CalibrationTokens,
    Device,
    Dtype,
    Seed,
    WithAnswers,
    WithSkills,
    check_new_folder,
    given,
    save_instead,
)
from pruning.cli.output import print_json, print_parameters, reporter, warn
from pruning.cli.preview import show_preview
from pruning.cli.step_options import load_own_criterion, selected_steps, step_values, with_steps
from pruning.errors import RecipeError
from pruning.guard import warn_of_ruin
from pruning.loading import load as loading
from pruning.loading.load import LoadedModel
from pruning.pipeline import Pruned
from pruning.progress import clear_bar
from pruning.recipe import Recipe, located
from pruning.request import Request
from pruning.text.choice import Calibration, TextChoice, read_text
from pruning.text.passages import CHAT_AND_GENERAL, CUSTOM
from pruning.text.sources import HUB


@with_steps
def prune(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(help="A catalog name, a Hub id, or a folder.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The folder to write.")] = None,
    recipe_source: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            help="A recipe in YAML or JSON, or a model that carries one, instead of options. A model that is named too "
            "takes the place of the recipe's base.",
        ),
    ] = None,
    calibration: CalibrationText = CHAT_AND_GENERAL,
    tokens: CalibrationTokens = None,
    seed: Seed = 0,
    evaluate: Annotated[
        bool | None,
        typer.Option(
            "--evaluate/--no-evaluate",
            help="Measure speed and samples too once the model is written, for its card; or nothing. By default "
            "perplexity alone.",
        ),
    ] = None,
    answers: WithAnswers = False,
    with_skills: WithSkills = False,
    stream: Annotated[
        bool, typer.Option("--stream", help="Never hold the whole model: for one larger than memory.")
    ] = False,
    dtype: Dtype = None,
    device: Device = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show how large the model would be, and write nothing.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a model that Secateur saved in the folder.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Prune a model and save it for plain transformers."""
    if output is not None:
        check_new_folder(output, overwrite)
    elif not dry_run:
        raise RecipeError("Name the folder to write with --output, or look at the size alone with --dry-run.")
    metrics = [name for name, asked in (("answers", answers), ("skills", with_skills)) if asked]
    if stream and (evaluate or metrics):
        raise RecipeError(
            "A streamed model is never run, so it cannot be evaluated. Remove --evaluate, --answers and --skills."
        )
    if stream and (dtype or device):
        raise RecipeError(
            "A streamed model keeps its precision, and no device holds it. Remove --dtype and --device."
        )
    text = None
    if recipe_source is not None:
        if step_values(context).keys() - {"--criterion"}:
            raise RecipeError("Give either a recipe, or a model with steps, and not both.")
        load_own_criterion(context)
        text = _recipe_text(recipe_source)
        recipe = _read_recipe(text, calibration)
        if model is not None:
            recipe = recipe.model_copy(update={"base": model})
    elif model is None:
        raise RecipeError("Name a model, or give a recipe with --recipe.")
    else:
        recipe = Recipe(
            base=model,
            steps=selected_steps(context, model),
            calibration=Calibration.named(calibration, **given(tokens=tokens)),
            seed=seed,
        )
    with located(text) if text is not None else nullcontext():
        if output is None or dry_run:
            show_preview(previews.preview(recipe), as_json)
            return
        base = None
        if stream:
            pruned = save_instead(lambda folder: streaming.prune(recipe, folder, progress=reporter()), output)
        else:
            pruned, base = _prune(recipe, dtype, device)
            save_instead(lambda folder: pruned.save(folder, name=output.name, progress=reporter()), output)
    if not as_json:
        clear_bar()
        print_parameters(pruned.to_dict())
        for note in pruned.report.base_notes:
            print(note)
        print(f"saved to {output}", flush=True)
    if base is not None and evaluate is not False:
        # The model is there already: whoever stops this keeps it.
        measure = pipeline.evaluate_pruned if evaluate else pipeline.evaluate_quality
        pruned = measure(pruned, base, progress=reporter())
        pruned.write_card(output)
    if base is not None and metrics:
        pruned = pipeline.evaluate_on_panels(pruned, base, metrics, progress=reporter())
        pruned.write_card(output)
    if as_json:
        print_json(pruned.to_dict() | {"output": str(output)})
    else:
        clear_bar()
        _print_quality(pruned)


def _prune(recipe: Recipe, dtype: str | None, device: str | None) -> tuple[Pruned, LoadedModel]:
    """Prune a model that is only saved, so that it may share the base's memory, and return the base too."""
    recipe, base = Request.of(recipe).open(progress=reporter(), dtype=dtype, device=device)
    return pipeline.prune(recipe, base, share_memory=True, progress=reporter()), base


def _recipe_text(source: str) -> str:
    """Return the recipe in a file, in the folder of a saved model, or in a model on the Hub, as written."""
    is_file = Path(source).is_file() or Path(source).suffix in (".yaml", ".yml", ".json")
    return read_text(Path(source)) if is_file else loading.fetch_recipe(source)


def _read_recipe(text: str, calibration: str) -> Recipe:
    """Read a recipe and put the user's own text back in; `calibration` names its file.

    Raises:
        RecipeError: If the recipe is invalid, or its own text is missing or another one.
    """
    recipe = Recipe.parse(text)
    missing = [choice for choice in recipe.texts if choice.text == CUSTOM and choice.content is None]
    if not missing:
        return recipe
    if not Path(calibration).is_file() and not calibration.startswith(HUB):
        raise RecipeError(
            f"This recipe was calibrated on the user's own text (sha256 {str(missing[0].sha256)[:12]}…), which a "
            f"recipe never holds. Give the same text again, with --calibration {_address(missing[0])}."
        )
    made = Calibration.of(calibration, tokens=recipe.calibration.tokens, progress=reporter())
    if made.sha256 != missing[0].sha256 and Path(calibration).is_file():
        # Of a step, or of release 0.1.0, which read every file as a plain text.
        return recipe.with_custom_text(read_text(Path(calibration)))
    return recipe.with_custom_text(made.content or "")


def _address(choice: TextChoice) -> str:
    return getattr(choice, "address", None) or "FILE"


def _print_quality(pruned: Pruned) -> None:
    """Print what was measured."""
    qualities = pruned.report.before.quality, pruned.report.after.quality
    if qualities[0] is None or qualities[1] is None:
        return
    before, after = qualities[0].overall, qualities[1].overall
    if any(step.changes_vocabulary for step in pruned.recipe.steps):
        measure, values = "bits per byte", (before.bits_per_byte, after.bits_per_byte)
    else:
        measure, values = "perplexity", (before.value, after.value)
    print(f"{measure} {values[0]:.3f} → {values[1]:.3f} ({after.text}, {after.tokens} tokens)")
    print_panels(pruned.report.after, pruned.report.before)
    if warning := warn_of_ruin(pruned.recipe.steps, pruned.report):
        warn(warning)
