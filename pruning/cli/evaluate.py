"""The command `evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from pruning.cli.options import AsJson, Model
from pruning.cli.output import print_json, reporter
from pruning.evaluation import perplexity as evaluation
from pruning.loading.load import load
from pruning.text.choice import read_text


def evaluate(
    model: Model,
    text: Annotated[
        Path | None, typer.Option("--text", help="A text file, instead of the bundled held-out passages.")
    ] = None,
    tokens: Annotated[int | None, typer.Option("--tokens", help="Tokens to read.", min=2)] = None,
    as_json: AsJson = False,
) -> None:
    """Measure perplexity and bits per byte.

    Reads the bundled held-out passages in five genres, or a text file.
    """
    content = read_text(text) if text else None
    loaded = load(model, progress=reporter())
    if text is not None and content is not None:
        measured = evaluation.perplexity(
            loaded.model, loaded.tokenizer, content, tokens=tokens, name=text.name, progress=reporter()
        )
        genres = {}
    else:
        quality = evaluation.evaluate(loaded, tokens=tokens, progress=reporter())
        measured, genres = quality.overall, quality.genres
    if as_json:
        print_json(
            {
                "perplexity": measured.value,
                "bits_per_byte": measured.bits_per_byte,
                "tokens": measured.tokens,
                "window": measured.window,
                "text": measured.text,
                "genres": {genre: result.value for genre, result in genres.items()},
                "genres_bits_per_byte": {genre: result.bits_per_byte for genre, result in genres.items()},
            }
        )
        return
    print(f"perplexity {measured.value:.3f}, {measured.bits_per_byte:.3f} bits per byte")
    for genre, result in genres.items():
        print(f"  {genre:<14} {result.value:>8.3f}  {result.bits_per_byte:.3f}")
    print(f"on {measured.tokens} tokens ({measured.text})")
