"""The command `export`."""

from pathlib import Path
from typing import Annotated

import typer

from pruning.cli.options import AsJson, SavedFolder, check_writable
from pruning.cli.output import print_json, reporter
from pruning.errors import RecipeError
from pruning.sharing import gguf


def export(
    folder: SavedFolder,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    file_format: Annotated[str, typer.Option("--format", help="gguf, the format of llama.cpp.")] = "gguf",
    weight_type: Annotated[
        str, typer.Option("--type", help=f"How to store weights: {' or '.join(gguf.GGUF_TYPES)}.")
    ] = "f16",
    as_json: AsJson = False,
) -> None:
    """Convert a saved model to GGUF and compare it in llama.cpp.

    The file is handed over if llama.cpp computes with it what transformers computes with the model.
    """
    if file_format != "gguf":
        raise RecipeError(f"There is no format {file_format!r} to export to; choose gguf.")
    check_writable(output)
    exported = gguf.export_and_compare(folder, output, weight_type, progress=reporter())
    if as_json:
        print_json(exported.to_dict())
        return
    print(f"saved to {exported.file}, {exported.file.stat().st_size / 1e6:.0f} MB")
    for line in exported.notes:
        print(line)
