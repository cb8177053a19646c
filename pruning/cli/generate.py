"""The command `generate`."""

from typing import Annotated

import typer

from pruning.cli.options import AsJson, Device, Model, Seed
from pruning.cli.output import print_json, reporter, warn
from pruning.loading.load import load
from pruning.text.chat import PlainText
from pruning.text.chat_learning import learn_chat_format
from pruning.text.generation import Sampling, stream


def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="The question to answer, or the text to continue.")],
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--plain",
            help="Ask a question in the model's chat format, or let it continue a text. By default it is asked "
            "if the model has a chat template.",
            show_default=False,
        ),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="A system prompt for the chat.")] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", help="The largest number of tokens to generate.")
    ] = 40,
    temperature: Annotated[
        float, typer.Option("--temperature", help="0 takes the likeliest token each time.")
    ] = 0.0,
    seed: Seed = 0,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Answer a question, or continue a text."""
    sampling = Sampling(max_new_tokens, temperature, seed)
    loaded = load(model, device=device, progress=reporter())
    if chat is None and system is None:
        chat_format = learn_chat_format(loaded.tokenizer)
        chat = not isinstance(chat_format, PlainText)
        if isinstance(chat_format, PlainText) and loaded.tokenizer.chat_template:
            warn(f"{chat_format.reason} The text is continued instead.")
    chat = chat is not False
    pieces = stream(loaded, prompt, sampling, chat=chat, system=system)
    if as_json:
        print_json({"prompt": prompt, "chat": chat, "text": "".join(pieces)})
        return
    if not chat:
        print(prompt, end="")
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
