"""Arguments and options that several commands share, and checks of where a command writes."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from pruning.errors import RecipeError
from pruning.evaluation.plot import check_plot
from pruning.files import temporary_folder
from pruning.loading.metadata import RECIPE_FILE

Saved = TypeVar("Saved")

Model = Annotated[str, typer.Argument(help="A catalog name, a Hub id, or a folder.")]
SavedFolder = Annotated[Path, typer.Argument(help="A folder that `prune` wrote.")]
OwnCriterion = Annotated[
    str | None,
    typer.Option(
        "--criterion", metavar="FILE.py:NAME", help="The file of the user's own criterion in the recipe."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value and nothing else.")]
CalibrationText = Annotated[
    str,
    typer.Option(
        "--calibration",
        help="The calibration text: a bundled one by name, a text or JSONL file, or hub:OWNER/NAME[:COLUMN].",
    ),
]
CalibrationTokens = Annotated[
    int | None, typer.Option("--tokens", help="Calibration tokens; 24576 by default, 8192 of a single text.")
]
Plot = Annotated[Path | None, typer.Option("--plot", help="A picture to write, such as picture.png.")]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype", help="Save in float32, bfloat16 or float16; by default in the precision of the base."
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", help="Where to compute: cpu, which uses float32, or cuda; by default where it fits."
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="The seed of everything that is drawn at random.")]
WithAnswers = Annotated[bool, typer.Option("--answers", help="Also judge answers to the bundled questions.")]
WithSkills = Annotated[bool, typer.Option("--skills", help="Also measure nine skills, on the bundled items.")]


def given(**values: object) -> dict[str, Any]:
    """Return the options that were given, to leave the rest at its default."""
    return {name: value for name, value in values.items() if value is not None}


def check_new_folder(folder: Path, overwrite: bool = False) -> None:
    """Check before any work that a folder can be written.

    Args:
        folder: The folder.
        overwrite: Whether a model that Secateur saved there may be replaced.

    Raises:
        RecipeError: If it exists and is not empty, or cannot be created.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        is_ours = (folder / RECIPE_FILE).is_file()
        if not (overwrite and is_ours):
            more = ", or replace the model there with --overwrite" if is_ours and not overwrite else ""
            why = "" if is_ours or not overwrite else ", and is not a model that Secateur saved"
            raise RecipeError(f"{folder} exists and is not empty{why}. Choose another folder{more}.")
    check_writable(folder)


def save_instead(save: Callable[[Path], Saved], folder: Path) -> Saved:
    """Save a model in a folder, in place of one that is there, which remains if this fails.

    Args:
        save: Writes a new folder, and is called with it.
        folder: The folder that is wanted.

    Returns:
        What `save` returned.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return save(folder)
    with temporary_folder(folder.absolute().parent) as beside:
        saved = save(beside / folder.name)
        folder.rename(beside / "replaced")
        (beside / folder.name).rename(folder)
    return saved


def check_picture(picture: Path | None) -> None:
    """Check before any work that a picture can be drawn and written, if one is asked for.

    Raises:
        RecipeError: If it cannot.
    """
    if picture is not None:
        check_plot(picture)
        check_writable(picture)


def check_writable(output: Path) -> None:
    """Check before any work that a file or a folder can be created.

    Raises:
        RecipeError: If nothing can be written where it would lie.
    """
    parent = next(folder for folder in output.absolute().parents if folder.exists())
    try:
        with temporary_folder(parent):
            pass
    except OSError as error:
        raise RecipeError(
            f"{output} cannot be written: {error.strerror or error}. Choose another place."
        ) from None
