"""The command `publish`."""

from typing import Annotated

import typer

from pruning.cli.options import AsJson, SavedFolder
from pruning.cli.output import print_json, reporter
from pruning.sharing import publish as publishing


def publish(
    folder: SavedFolder,
    repo_id: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository to create or update.")],
    public: Annotated[bool, typer.Option("--public", help="Visible to everyone.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write to a repository that Secateur did not create.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Push a saved model to the Hub, private by default."""
    url = publishing.publish(folder, repo_id, private=not public, overwrite=overwrite, progress=reporter())
    if as_json:
        print_json({"url": url})
    else:
        print(url)
