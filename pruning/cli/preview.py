"""The command `preview`."""

import typer

from pruning import previews
from pruning.cli.options import AsJson, Model
from pruning.cli.output import print_json, print_parameters
from pruning.cli.step_options import selected_steps, with_steps
from pruning.recipe import Recipe


@with_steps
def preview(context: typer.Context, model: Model, as_json: AsJson = False) -> None:
    """Show how large a pruned model would be, from the config alone."""
    recipe = Recipe(base=model, steps=selected_steps(context, model))
    show_preview(previews.preview_plain(recipe), as_json)


def show_preview(shapes: previews.Preview, as_json: bool) -> None:
    """Print how large the model of a recipe would be."""
    result = shapes.to_dict()
    if as_json:
        print_json(result)
    else:
        print_parameters(result)
