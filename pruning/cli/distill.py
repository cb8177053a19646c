"""The command `distill`."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from pruning import pipeline
from pruning.cli.options import AsJson, Model, Seed, check_new_folder
from pruning.cli.output import print_json, reporter, warn
from pruning.distillation.progress import is_first_process, stop_on_interrupt
from pruning.distillation.settings import Training
from pruning.errors import RecipeError
from pruning.pipeline import Pruned
from pruning.progress import silent
from pruning.recipe import Recipe
from pruning.steps.distillation import Distillation, HubDataset
from pruning.text.choice import TextChoice
from pruning.text.passages import CHAT_AND_GENERAL


class ShellFields(NamedTuple):
    """Fields of a distillation as the shell gives them, and a line on each former name among them."""

    fields: dict[str, Any]
    notices: tuple[str, ...]


def settings_from(dataset: str | None, words: Sequence[str]) -> ShellFields:
    """Read fields of a distillation from the options of the shell.

    Args:
        dataset: `OWNER/NAME[:COLUMN]`, a dataset on the Hub.
        words: `NAME=VALUE` for other fields. Names of release 0.1.0 are accepted, with a notice.

    Returns:
        The fields under their present names, and the notices, to be shown to the user.

    Raises:
        RecipeError: If a word is not `NAME=VALUE`.
    """
    fields: dict[str, Any] = {}
    notices = []
    present = {former: name for name, former in Training.published_names.items()}
    if dataset is not None:
        name, _, column = dataset.partition(":")
        fields["dataset"] = HubDataset(name=name, column=column or "text")
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise RecipeError(f"--set is {word!r}; NAME=VALUE is needed, such as batch=8.")
        if name in present:
            notices.append(f"--set {name} is now called --set {present[name]}.")
            name = present[name]
        fields[name] = value
        with suppress(ValueError):  # Anything that is not JSON is a word.
            fields[name] = json.loads(value)
    return ShellFields(fields, tuple(notices))


def distill(
    model: Model,
    teacher: Annotated[str, typer.Option("--teacher", help="The model that it was pruned from.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="Minutes of training; 5 by default.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Optimizer steps, instead of minutes.")] = None,
    text: Annotated[
        str, typer.Option("--text", help="A bundled text by name, or a text file.")
    ] = CHAT_AND_GENERAL,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="OWNER/NAME[:COLUMN] on the Hub, instead of a text.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Another setting: NAME=VALUE, such as batch=8.")
    ] = None,
    checkpoint_every: Annotated[
        float, typer.Option("--checkpoint-every", help="Seconds between checkpoints.")
    ] = 60.0,
    seed: Seed = 0,
    evaluate: Annotated[
        bool,
        typer.Option("--evaluate/--no-evaluate", help="Measure perplexity and speed, for the model card."),
    ] = True,
    stream: Annotated[bool, typer.Option("--stream", hidden=True)] = False,
    as_json: AsJson = False,
) -> None:
    """Train a pruned model to predict what its teacher predicts.

    Ctrl-C ends the training and keeps the best model so far. If the process is killed, the same command
    resumes from its checkpoint. `accelerate launch -m pruning distill …` shares the work between processes.
    """
    if stream:
        raise RecipeError("Distillation trains the model in memory, so it cannot stream. Remove --stream.")
    if steps is not None and minutes is not None:
        raise RecipeError("Give either --minutes or --steps, and not both.")
    check_new_folder(output)
    length = {"steps": steps} if steps is not None else {"minutes": 5.0 if minutes is None else minutes}
    more = settings_from(dataset, settings or [])
    for notice in more.notices:
        warn(notice)
    fields: dict[str, Any] = length | {"text": TextChoice.named(text)} | more.fields
    checkpoint = output.parent / f".{output.name}.checkpoint"
    step = Distillation(teacher=teacher, **fields).with_checkpoint(checkpoint, checkpoint_every)
    recipe = Recipe(base=model, steps=(step,), seed=seed)
    first = is_first_process()
    with stop_on_interrupt(reporter() if first else silent) as report:
        pruned = pipeline.run(recipe, evaluate=evaluate and first, progress=report)
    if not first:
        return
    pruned.save(output, progress=reporter())
    checkpoint.unlink(missing_ok=True)
    if as_json:
        print_json(pruned.to_dict() | {"output": str(output)})
    else:
        _print_summary(pruned)
        print(f"saved to {output}")


def _print_summary(pruned: Pruned) -> None:
    """Print how long the training took and what it gained."""
    (note,) = pruned.report.notes[0]
    if note.refit_tokens:
        print(f"layers refitted on {note.refit_tokens:,} tokens")
    print(f"{note.steps} steps, {note.tokens:,} tokens, {note.seconds:.0f} seconds")
    print(
        f"held-out perplexity {note.perplexity_before:.2f} → {note.perplexity_after:.2f} "
        f"(teacher: {note.perplexity_teacher:.2f})"
    )
    if not note.improved:
        print("No improvement on held-out text; the model is unchanged.")
