"""The command `generate`."""

from typing import Annotated

import typer

from pruning.cli.options import AsJson, Model, Seed
from pruning.cli.output import print_json, reporter
from pruning.loading.load import load
from pruning.text.generation import Sampling, stream


def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", help="The largest number of tokens to generate.")
    ] = 40,
    temperature: Annotated[
        float, typer.Option("--temperature", help="0 takes the likeliest token each time.")
    ] = 0.0,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Continue a prompt."""
    sampling = Sampling(max_new_tokens, temperature, seed)
    loaded = load(model, progress=reporter())
    pieces = stream(loaded, prompt, sampling)
    if as_json:
        print_json({"prompt": prompt, "text": "".join(pieces)})
        return
    print(prompt, end="")
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
