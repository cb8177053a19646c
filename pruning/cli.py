"""The shell: python -m pruning …"""

import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from pruning import catalog
from pruning.errors import PruningError, RecipeError
from pruning.progress import Progress, silent
from pruning.runtime import configure
from pruning.steps import STEPS
from pruning.steps.settings import Setting, Switch
from pruning.text.choice import Calibration, TextChoice, read_text

app = typer.Typer(
    help="Prune small language models.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Model = Annotated[str, typer.Argument(help="A catalogue name, a Hub id, or a folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")]


def _in_order(context: typer.Context, option: typer.CallbackParam, value):
    """Remember the order in which the cuts were written: it is the order of the recipe's steps."""
    if value is not None:
        context.meta.setdefault("cuts", {})[option.name] = value
    return value


def _settings() -> dict[str, tuple[str, bool]]:
    """Every flag of every step, with its help and whether it is a switch."""
    flags: dict[str, tuple[str, bool]] = {}
    for step in STEPS.values():
        for setting in step.settings:
            flags.setdefault(setting.flag, (setting.label, isinstance(setting.control, Switch)))
    return flags


def with_cuts(command):
    """Give a command the options of every step, from the steps' own tables."""

    def run(**values):
        for name in names:
            values.pop(name)
        return command(**values)

    signature = inspect.signature(command)
    names, parameters = [], list(signature.parameters.values())
    for flag, (label, switch) in _settings().items():
        name = flag.removeprefix("--").replace("-", "_")
        declared = f"{flag}/--no-{flag.removeprefix('--')}" if switch else flag
        option = typer.Option(declared, help=f"{label}.", callback=_in_order)
        annotation = Annotated[(bool if switch else str) | None, option]
        names.append(name)
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        )
    run.__signature__ = signature.replace(parameters=parameters)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


CalibrationOption = Annotated[
    str, typer.Option("--calibration", help="A bundled text by name, or a text file.")
]
TokensOption = Annotated[int, typer.Option("--tokens", help="Calibration tokens.")]
SeedOption = Annotated[int, typer.Option("--seed")]


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the models on offer."""
    rows = [
        {
            "name": entry.name,
            "hub_id": entry.hub_id,
            "family": entry.family,
            "parameters": entry.parameters,
            "licence": entry.license,
            "gated": entry.gated,
            "offline": entry.offline is not None,
            "teaches": entry.description,
        }
        for entry in catalog.MODELS.values()
    ]
    _print_rows(rows, as_json, "name", "parameters", "licence", "teaches")


@app.command()
def methods(as_json: AsJson = False) -> None:
    """List the criteria that rank what to cut."""
    from pruning.criteria import CRITERIA

    rows = [
        {
            "name": criterion.name,
            "title": criterion.title,
            "formula": criterion.formula,
            "source": criterion.source,
            "url": criterion.url,
            "needs": "calibration text" if criterion.needs_calibration else "weights",
            "warning": criterion.warning,
        }
        for criterion in CRITERIA.values()
    ]
    _print_rows(rows, as_json, "name", "formula", "source")


@app.command()
def lessons(as_json: AsJson = False) -> None:
    """List the lessons of the course."""
    from pruning.lessons import LESSONS

    rows = [
        {"name": lesson.key, "number": lesson.number, "title": lesson.title, "see": lesson.introduction}
        for lesson in LESSONS
    ]
    _print_rows(rows, as_json, "number", "title")


@app.command()
@with_cuts
def preview(
    context: typer.Context,
    model: Model,
    as_json: AsJson = False,
) -> None:
    """Show the shape that a cut leads to, from the config alone."""
    from pruning import pipeline

    recipe = _recipe(model, _steps(context, model))
    result = pipeline.preview(recipe).to_dict()
    if as_json:
        _print_json(result)
        return
    _print_parameters(result["parameters"])


@app.command()
@with_cuts
def prune(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(help="A catalogue name, a Hub id, or a folder.")] = None,
    output: Annotated[Path, typer.Option("--output", help="The folder to write.")] = ...,
    recipe_file: Annotated[
        str | None,
        typer.Option("--recipe", help="A recipe in YAML or JSON, or a model that carries one, not options."),
    ] = None,
    calibration: CalibrationOption = "general",
    tokens: TokensOption = 8192,
    seed: SeedOption = 0,
    evaluate: Annotated[bool, typer.Option(help="Measure perplexity and speed, for the model card.")] = True,
    stream: Annotated[
        bool, typer.Option("--stream", help="Never hold the whole model: for one larger than memory.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Prune a model and save it as a folder that plain transformers loads."""
    from pruning import pipeline, streaming

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RecipeError(f"{output} exists and is not empty. Choose another folder.")
    if recipe_file is not None:
        if model is not None or context.meta.get("cuts"):
            raise RecipeError("Give either a recipe or a model with cuts, and not both.")
        recipe = _read_recipe(recipe_file, calibration)
    elif model is None:
        raise RecipeError("Name a model, or give a recipe with --recipe.")
    else:
        text = Calibration.named(calibration, tokens=tokens)
        recipe = _recipe(model, _steps(context, model), text, seed)
    if stream:
        pruned = streaming.prune(recipe, output, progress=_reporter())
    else:
        pruned = pipeline.run(recipe, evaluate=evaluate, progress=_reporter())
        pruned.save(output, progress=_reporter())
    result = pruned.to_dict() | {"output": str(output)}
    report = pruned.report
    if as_json:
        _print_json(result)
        return
    _print_parameters(result["parameters"])
    if report.after.quality:
        before, after = report.before.quality.overall, report.after.quality.overall
        if any(step.changes_vocabulary for step in recipe.steps):
            measure, values = "bits per byte", (before.bits_per_byte, after.bits_per_byte)
        else:
            measure, values = "perplexity", (before.value, after.value)
        print(f"{measure} {values[0]:.3f} → {values[1]:.3f} ({after.text}, {after.tokens} tokens)")
    print(f"saved to {output}")


@app.command()
def search(
    model: Model,
    budget: Annotated[str, typer.Option("--budget", help="100M parameters, 300MB on disk, or 30% smaller.")],
    output: Annotated[
        Path | None, typer.Option("--output", help="A file for the recipe, for `prune --recipe`.")
    ] = None,
    calibration: CalibrationOption = "general",
    tokens: TokensOption = 8192,
    seed: SeedOption = 0,
    thorough: Annotated[
        bool, typer.Option(help="Try each layer, and reconstruct the best models: better, and slower.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Find the mix of cuts within a budget that loses least."""
    from pruning.architectures.shape import Shape
    from pruning.files import replacing
    from pruning.loading.load import load
    from pruning.shape_search.search import Budget
    from pruning.shape_search.search import search as find

    text = Calibration.named(calibration, tokens=tokens)
    base = load(model, progress=_reporter())
    target = Budget.parse(budget, Shape.of(base.model.config), base.storage_dtype.itemsize)
    found = find(base, target, text, seed, _reporter(), thorough)
    if output is not None:
        with replacing(output) as temporary:
            temporary.write_text(found.chosen.recipe.to_yaml(), encoding="utf-8")
    if as_json:
        _print_json(found.to_dict())
        return
    for point in found.points:
        mark = "→" if point is found.chosen else " "
        print(f"{mark} {point.mix.parameters:>14,}  perplexity {point.perplexity:>10.2f}  {point.title}")
    print(f"of {found.shapes_considered:,} shapes; perplexity on held-out calibration text")


@app.command()
def evaluate(
    model: Model,
    text: Annotated[Path | None, typer.Option("--text", help="A text file to evaluate on.")] = None,
    tokens: Annotated[int | None, typer.Option("--tokens", help="Tokens to read.", min=2)] = None,
    as_json: AsJson = False,
) -> None:
    """Measure perplexity and bits per byte, on the bundled held-out passages or on a text file."""
    from pruning.evaluation import perplexity as evaluation
    from pruning.loading.load import load

    content = read_text(text) if text else None
    loaded = load(model, progress=_reporter())
    if content is not None:
        measured = evaluation.perplexity(
            loaded.model, loaded.tokenizer, content, tokens, name=text.name, progress=_reporter()
        )
        genres = {}
    else:
        found = evaluation.quality(loaded.model, loaded.tokenizer, _reporter(), tokens)
        measured, genres = found.overall, found.genres
    result = {
        "perplexity": measured.value,
        "bits_per_byte": measured.bits_per_byte,
        "tokens": measured.tokens,
        "window": measured.window,
        "text": measured.text,
        "genres": {genre: one.value for genre, one in genres.items()},
        "genres_bits_per_byte": {genre: one.bits_per_byte for genre, one in genres.items()},
    }
    if as_json:
        _print_json(result)
        return
    print(f"perplexity {measured.value:.3f}, {measured.bits_per_byte:.3f} bits per byte")
    for genre, one in genres.items():
        print(f"  {genre:<14} {one.value:>8.3f}  {one.bits_per_byte:.3f}")
    print(f"on {measured.tokens} tokens ({measured.text})")


@app.command()
def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens")] = 40,
    temperature: Annotated[float, typer.Option("--temperature", help="0: the likeliest token.")] = 0.0,
    seed: SeedOption = 0,
    as_json: AsJson = False,
) -> None:
    """Continue a prompt."""
    from pruning.loading.load import load
    from pruning.text.generation import Sampling, stream

    sampling = Sampling(max_new_tokens, temperature, seed)
    loaded = load(model, progress=_reporter())
    pieces = stream(loaded.model, loaded.tokenizer, prompt, sampling)
    if as_json:
        _print_json({"prompt": prompt, "text": "".join(pieces)})
        return
    print(prompt, end="")
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


@app.command()
def verify(model: Model, as_json: AsJson = False) -> None:
    """Check that a saved model is what its recipe and its card say."""
    from pruning.sharing.verify import verify as check

    result = check(model, progress=_reporter())
    result.require()
    if as_json:
        _print_json(result.to_dict())
        return
    for each in result.checks:
        print(f"{'holds' if each.holds else '–':<6} {each.name}: {each.detail}")


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="A folder written by `prune`.")],
    output: Annotated[Path, typer.Option("--output", help="The file to write.")],
    form: Annotated[str, typer.Option("--format", help="gguf, the format of llama.cpp.")] = "gguf",
    kind: Annotated[str, typer.Option("--type", help="How to store weights: f16 or q8_0.")] = "f16",
    as_json: AsJson = False,
) -> None:
    """Convert a saved model to the format of another program."""
    from pruning.sharing.gguf import export as convert

    if form != "gguf":
        raise RecipeError(f"There is no format {form!r} to export to; choose gguf.")
    file = convert(folder, output, kind, progress=_reporter())
    if as_json:
        _print_json({"output": str(file), "type": kind, "bytes": file.stat().st_size})
    else:
        print(f"saved to {file}, {file.stat().st_size / 1e6:.0f} MB")


@app.command()
def distill(
    model: Model,
    teacher: Annotated[str, typer.Option("--teacher", help="The model that it was made from.")],
    output: Annotated[Path, typer.Option("--output", help="The folder to write.")],
    minutes: Annotated[float | None, typer.Option("--minutes", help="How long; 5 by default.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="How many steps, instead.")] = None,
    text: Annotated[str, typer.Option("--text", help="A bundled text by name, or a text file.")] = "general",
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="OWNER/NAME[:COLUMN] on the Hub, instead.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Another setting: NAME=VALUE, such as batch=8.")
    ] = None,
    checkpoint_every: Annotated[float, typer.Option(help="Seconds between checkpoints.")] = 60.0,
    seed: SeedOption = 0,
    evaluate: Annotated[bool, typer.Option(help="Measure perplexity and speed, for the model card.")] = True,
    stream: Annotated[
        bool, typer.Option("--stream", help="Never hold the whole model: for one larger than memory.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a pruned model to say what its teacher says. Ctrl-C ends it and keeps the best so far; killed,
    it goes on from its checkpoint when it is called again. `accelerate launch -m pruning distill …` shares
    the work between processes."""
    from pruning import pipeline
    from pruning.distillation.progress import is_first_process, stop_on_interrupt
    from pruning.steps.distillation import settings_from

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RecipeError(f"{output} exists and is not empty. Choose another folder.")
    length = {"steps": steps} if steps is not None else {"minutes": 5.0 if minutes is None else minutes}
    if steps is not None and minutes is not None:
        raise RecipeError("Give either --minutes or --steps, and not both.")
    fields, notices = settings_from(dataset, settings or [])
    for notice in notices:
        print(notice, file=sys.stderr)
    source = {"text": TextChoice.named(text)} | fields
    checkpoint = output.parent / f".{output.name}.checkpoint"
    step = STEPS["distillation"](teacher=teacher, **length, **source)
    step = step.with_checkpoint(checkpoint, checkpoint_every)
    first = is_first_process()
    with stop_on_interrupt(_reporter() if first else silent) as report:
        recipe = _recipe(model, [step], seed=seed)
        pruned = pipeline.run(recipe, evaluate=evaluate and first, progress=report)
    if not first:
        return
    pruned.save(output, progress=_reporter())
    checkpoint.unlink(missing_ok=True)
    (note,) = pruned.report.notes[0]
    if as_json:
        _print_json(pruned.to_dict() | {"output": str(output)})
        return
    before, after = note.perplexity_before, note.perplexity_after
    print(f"{note.steps} steps, {note.tokens:,} tokens, {note.seconds:.0f} seconds")
    print(f"held-out perplexity {before:.2f} → {after:.2f}, the teacher's {note.perplexity_teacher:.2f}")
    if not note.improved:
        print("Nothing was gained: this is the model that went in.")
    print(f"saved to {output}")


@app.command()
def publish(
    folder: Annotated[Path, typer.Argument(help="A folder written by `prune`.")],
    repo_id: Annotated[str, typer.Argument(metavar="OWNER/NAME")],
    public: Annotated[bool, typer.Option("--public", help="Visible to everyone.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write to a repository that Secateur did not make.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Push a saved model to the Hub, private unless told otherwise."""
    from pruning.sharing.publish import publish as push

    url = push(folder, repo_id, private=not public, overwrite=overwrite, progress=_reporter())
    if as_json:
        _print_json({"url": url})
    else:
        print(url)


def _steps(context: typer.Context, model: str) -> list:
    """The cuts as steps, in the order in which they were written."""
    given = {f"--{name.replace('_', '-')}": value for name, value in context.meta.get("cuts", {}).items()}
    values: dict[str, dict] = {}
    for flag, text in given.items():
        for name, step in STEPS.items():
            for setting in step.settings:
                if setting.flag == flag and setting.activates_step:
                    values.setdefault(name, {}).update(_value(setting, text))
    used = set()
    for name, fields in values.items():
        for setting in STEPS[name].settings:
            if setting.flag in given:
                used.add(setting.flag)
                if not setting.activates_step:
                    said = _value(setting, given[setting.flag])
                    if fields.keys() & said.keys():
                        raise RecipeError(f"{setting.flag} says again what another option says. Remove one.")
                    fields.update(said)
    # Switching off what is not there does no harm.
    idle = [flag for flag, value in given.items() if flag not in used and value is not False]
    if values and idle:
        raise RecipeError(f"{idle[0]} belongs to a cut that is not asked for. Remove it, or add the cut.")
    return [STEPS[name].for_model(model, **fields) for name, fields in values.items()]


def _value(setting: Setting, text: str | bool) -> dict:
    value = setting.read(setting.flag, text) if setting.read else text
    return value if isinstance(value, dict) else {setting.field: value}


def _recipe(model: str, steps: list, calibration: Calibration | None = None, seed: int = 0):
    from pruning.recipe import Recipe

    if not steps:
        raise RecipeError("Nothing to cut: say what, for example --neurons 20%.")
    return Recipe(base=model, steps=steps, calibration=calibration or Calibration(), seed=seed)


def _read_recipe(name: str, calibration: str):
    """The recipe in a file, in the folder of a saved model, or in a model on the Hub."""
    from pruning import pipeline
    from pruning.loading import load as loading
    from pruning.recipe import Recipe, located
    from pruning.text.passages import CUSTOM

    is_file = Path(name).is_file() or Path(name).suffix in (".yaml", ".yml", ".json")
    text = read_text(Path(name)) if is_file else loading.fetch_recipe(name)
    recipe = Recipe.parse(text)
    if any(choice.text == CUSTOM for choice in recipe.texts) and Path(calibration).is_file():
        recipe = recipe.with_own_text(read_text(Path(calibration)))
    with located(text):
        pipeline.preview(recipe)
    return recipe


def _reporter() -> Callable[[Progress], None]:
    """Progress on standard error: in place on a terminal, stage by stage elsewhere."""
    if sys.stderr.isatty():
        return lambda progress: print(f"\r\x1b[K{progress}", end="", file=sys.stderr, flush=True)
    seen: list[str] = []

    def report(progress: Progress) -> None:
        if seen[-1:] != [progress.text]:
            seen.append(progress.text)
            print(progress.text, file=sys.stderr, flush=True)

    return report


def _print_json(value) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def _print_rows(rows: list[dict], as_json: bool, *columns: str) -> None:
    if as_json:
        _print_json(rows)
        return
    widths = [max(len(_cell(row[column])) for row in rows) for column in columns]
    for row in rows:
        cells = (_cell(row[column]).ljust(width) for column, width in zip(columns, widths, strict=True))
        print("  ".join(cells).rstrip())


def _cell(value) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _print_parameters(parameters: dict) -> None:
    rows = {"parameters": parameters} | parameters["components"]
    for name, row in rows.items():
        before, after = row["before"], row["after"]
        if before:
            print(f"{name:<12} {before:>16,} → {after:>16,}  {(after - before) / before:+8.2%}")


def main() -> int:
    """Run the shell; a `PruningError` is one line on standard error and exit status 2."""
    configure()
    try:
        app(standalone_mode=False)
    except PruningError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except typer.Exit as stop:
        return stop.exit_code
    except typer.Abort:
        return 130
    except Exception as error:
        if hasattr(error, "format_message"):
            # Empty where the help was printed, for want of a command.
            if message := error.format_message():
                print(f"Error: {message}", file=sys.stderr)
            return 2
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
