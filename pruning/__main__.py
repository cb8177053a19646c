"""The shell: python -m pruning …"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from pruning import catalog
from pruning.errors import PruningError, RecipeError
from pruning.progress import Progress, quiet

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


NeuronsOption = Annotated[
    str | None,
    typer.Option("--neurons", help="Share of MLP neurons to cut, such as 20%.", callback=_in_order),
]
HeadsOption = Annotated[
    int | None,
    typer.Option("--heads", help="Key/value groups to cut out of every layer.", callback=_in_order),
]
QueryHeadsOption = Annotated[
    int | None,
    typer.Option("--query-heads", help="Query heads to cut out of every group.", callback=_in_order),
]
LayersOption = Annotated[
    str | None,
    typer.Option(
        "--layers", help="How many layers to cut, or which: 3, or 4,5,9 (5, for one).", callback=_in_order
    ),
]
LayerMethodOption = Annotated[
    str | None,
    typer.Option("--layer-method", help="How to choose layers; block influence unless said otherwise."),
]
WidthOption = Annotated[
    int | None, typer.Option("--width", help="MLP neurons to keep instead.", callback=_in_order)
]
MultipleOption = Annotated[
    int, typer.Option("--multiple-of", help="Round the width up to a multiple of this.")
]
CriterionOption = Annotated[str | None, typer.Option("--criterion", help="How to rank; see `methods`.")]
RepairOption = Annotated[bool | None, typer.Option("--repair/--no-repair", help="Refit what writes back.")]
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
            "licence": entry.licence,
            "gated": entry.gated,
            "offline": entry.offline is not None,
            "teaches": entry.teaches,
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
            "needs": "calibration text" if criterion.statistics else "weights",
            "warning": criterion.warning,
        }
        for criterion in CRITERIA.values()
    ]
    _print_rows(rows, as_json, "name", "formula", "source")


@app.command()
def preview(
    context: typer.Context,
    model: Model,
    neurons: NeuronsOption = None,
    width: WidthOption = None,
    heads: HeadsOption = None,
    query_heads: QueryHeadsOption = None,
    layers: LayersOption = None,
    layer_method: LayerMethodOption = None,
    multiple_of: MultipleOption = 1,
    criterion: CriterionOption = None,
    repair: RepairOption = None,
    as_json: AsJson = False,
) -> None:
    """Show the shape that a cut leads to, from the config alone."""
    from pruning import pipeline

    recipe = _recipe(model, _steps(context, multiple_of, criterion, repair, layer_method))
    result = pipeline.preview(recipe).to_dict()
    if as_json:
        _print_json(result)
        return
    _print_parameters(result["parameters"])


@app.command()
def prune(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(help="A catalogue name, a Hub id, or a folder.")] = None,
    output: Annotated[Path, typer.Option("--output", help="The folder to write.")] = ...,
    recipe_file: Annotated[
        Path | None, typer.Option("--recipe", help="A recipe in YAML or JSON, instead of options.")
    ] = None,
    neurons: NeuronsOption = None,
    width: WidthOption = None,
    heads: HeadsOption = None,
    query_heads: QueryHeadsOption = None,
    layers: LayersOption = None,
    layer_method: LayerMethodOption = None,
    multiple_of: MultipleOption = 1,
    criterion: CriterionOption = None,
    repair: RepairOption = None,
    calibration: CalibrationOption = "general",
    tokens: TokensOption = 8192,
    seed: SeedOption = 0,
    evaluate: Annotated[bool, typer.Option(help="Measure perplexity and speed, for the model card.")] = True,
    as_json: AsJson = False,
) -> None:
    """Prune a model and save it as a folder that plain transformers loads."""
    from pruning import pipeline

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RecipeError(f"{output} exists and is not empty. Choose another folder.")
    steps = _steps(context, multiple_of, criterion, repair, layer_method)
    if recipe_file is not None:
        if model is not None or steps or criterion is not None or repair is not None:
            raise RecipeError("Give either a recipe or a model with cuts, and not both.")
        recipe = _read_recipe(recipe_file, calibration)
    elif model is None:
        raise RecipeError("Name a model, or give a recipe with --recipe.")
    else:
        recipe = _recipe(model, steps, _calibration(calibration, tokens), seed)
    pruned = pipeline.run(recipe, evaluate=evaluate, progress=_reporter())
    pruned.save(output, progress=_reporter())
    result = pruned.to_dict() | {"output": str(output)}
    report = pruned.report
    if as_json:
        _print_json(result)
        return
    _print_parameters(result["parameters"])
    if report.quality_after:
        before, after = report.quality_before.overall, report.quality_after.overall
        print(f"perplexity {before.value:.2f} → {after.value:.2f} ({after.text}, {after.tokens} tokens)")
    print(f"saved to {output}")


@app.command()
def evaluate(
    model: Model,
    text: Annotated[Path | None, typer.Option("--text", help="A text file to evaluate on.")] = None,
    tokens: Annotated[int | None, typer.Option("--tokens", help="Tokens to read.", min=2)] = None,
    as_json: AsJson = False,
) -> None:
    """Measure perplexity, on the bundled held-out passages or on a text file."""
    from pruning import evaluation
    from pruning.loading import load

    content = _read_text(text) if text else None
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
        "tokens": measured.tokens,
        "window": measured.window,
        "text": measured.text,
        "genres": {genre: one.value for genre, one in genres.items()},
    }
    if as_json:
        _print_json(result)
        return
    print(f"perplexity {measured.value:.3f} on {measured.tokens} tokens ({measured.text})")
    for genre, one in genres.items():
        print(f"  {genre:<14} {one.value:.3f}")


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
    from pruning.generation import Sampling, stream
    from pruning.loading import load

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
    from pruning.publishing import publish as push

    url = push(folder, repo_id, private=not public, overwrite=overwrite, progress=_reporter())
    if as_json:
        _print_json({"url": url})
    else:
        print(url)


def _steps(context: typer.Context, multiple_of, criterion, repair, layer_method) -> list:
    """The cuts as steps, in the order in which they were written."""
    from pruning.steps import Heads, Neurons

    cuts = context.meta.get("cuts", {})
    neurons = {"multiple_of": multiple_of, "repair": repair}
    if criterion is not None:
        neurons["criterion"] = criterion
    make = {
        "neurons": lambda share: Neurons(fraction=_share(share), width=cuts.get("width"), **neurons),
        "width": lambda width: None if "neurons" in cuts else Neurons(width=width, **neurons),
        "heads": lambda groups: Heads(groups=groups, repair=repair is not False),
        "query_heads": lambda queries: Heads(queries=queries, repair=repair is not False),
        "layers": lambda layers: _layers(layers, layer_method),
    }
    steps = [make[name](value) for name, value in cuts.items()]
    return [step for step in steps if step is not None]


def _layers(text: str, method: str | None):
    """`3` as a count of layers; `4,5,9` as those layers; `5,` as one."""
    from pruning.steps import Layers

    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise RecipeError(f"--layers is {text!r}; write how many, such as 3, or which: 4,5,9.") from None
    if "," in text:
        return Layers(layers=tuple(numbers))
    return Layers(count=numbers[0] if numbers else 0, **({"method": method} if method else {}))


def _share(text: str) -> float:
    """`20%` or `0.2` as 0.2."""
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        value = float(number)
    except ValueError:
        raise RecipeError(f"--neurons is {text!r}; a share such as 20% is needed.") from None
    if not percent and value > 1:
        raise RecipeError(f"--neurons is {text!r}; write a share with its sign, such as {number}%.")
    return value / 100 if percent else value


def _recipe(model: str, steps: list, calibration=None, seed: int = 0):
    from pruning.recipe import Calibration, Recipe

    if not steps:
        raise RecipeError("Nothing to cut: say what, for example --neurons 20%.")
    return Recipe(base=model, steps=steps, calibration=calibration or Calibration(), seed=seed)


def _calibration(name: str, tokens: int):
    from pruning.recipe import Calibration
    from pruning.texts import CALIBRATION_NAMES, OWN

    if name in CALIBRATION_NAMES and name != OWN:
        return Calibration(text=name, tokens=tokens)
    if not Path(name).is_file():
        raise RecipeError(
            f"There is no calibration text {name!r}: neither a file, nor one of "
            f"{', '.join(known for known in CALIBRATION_NAMES if known != OWN)}."
        )
    return Calibration.own(_read_text(Path(name)), tokens=tokens)


def _read_recipe(file: Path, calibration: str):
    from pruning.recipe import Recipe
    from pruning.texts import OWN

    recipe = Recipe.parse(_read_text(file))
    if recipe.calibration.text == OWN and Path(calibration).is_file():
        recipe = recipe.with_own_text(_read_text(Path(calibration)))
    return recipe


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise RecipeError(f"{file} cannot be read: {reason}.") from None


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
    quiet()
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
