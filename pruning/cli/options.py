"""Arguments and options that several commands share, and checks of where a command writes."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pruning.errors import RecipeError
from pruning.files import temporary_folder

Model = Annotated[str, typer.Argument(help="A catalog name, a Hub id, or a folder.")]
SavedFolder = Annotated[Path, typer.Argument(help="A folder that `prune` wrote.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value and nothing else.")]
CalibrationText = Annotated[
    str, typer.Option("--calibration", help="The calibration text: a bundled text by name, or a text file.")
]
CalibrationTokens = Annotated[
    int | None, typer.Option("--tokens", help="Calibration tokens; 24576 by default, 8192 of a single text.")
]
Seed = Annotated[int, typer.Option("--seed", help="The seed of everything that is drawn at random.")]


def given(**values: object) -> dict[str, Any]:
    """Return the options that were given, to leave the rest at its default."""
    return {name: value for name, value in values.items() if value is not None}


def check_new_folder(folder: Path) -> None:
    """Check before any work that a folder can be written.

    Raises:
        RecipeError: If it exists and is not empty, or cannot be created.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecipeError(f"{folder} exists and is not empty. Choose another folder.")
    check_writable(folder)


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
