"""The shell: `secateur …` and `python -m pruning …`, one file per command.

A command is the function that its file is named for. It is imported when it is called, so that
`secateur --help` and `secateur models` start without PyTorch and transformers.
"""

import sys
from dataclasses import dataclass
from importlib import import_module
from io import TextIOWrapper
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from pruning.cli.output import warn_renamed
from pruning.cli.suggestions import suggest_command, suggest_option
from pruning.errors import PruningError
from pruning.version import __version__


@dataclass(frozen=True)
class Command:
    """One command of the table.

    Attributes:
        help: The first line of its help.
        runs_models: Whether it needs PyTorch and transformers, which are then set up before it is imported.
        reads_configs: If it does not, whether it may need them for a config that it does not know yet.
    """

    help: str
    runs_models: bool = True
    reads_configs: bool = False


COMMANDS = {
    "models": Command("List the models of the catalog.", runs_models=False),
    "families": Command("List model types and what can be removed."),
    "criteria": Command("List the criteria that rank which neurons to prune.", runs_models=False),
    "lessons": Command("List the lessons of the course."),
    "info": Command(
        "Show what a model consists of, from its config alone.", runs_models=False, reads_configs=True
    ),
    "preview": Command(
        "Show how large a pruned model would be, from the config alone.",
        runs_models=False,
        reads_configs=True,
    ),
    "prune": Command("Prune a model and save it for plain transformers."),
    "search": Command("Find the combination of cuts within a budget that loses least."),
    "sweep": Command("Measure quality against size, with growing cuts."),
    "importance": Command("Measure how much each layer and each neuron matters."),
    "distill": Command("Train a pruned model to predict what its teacher predicts."),
    "evaluate": Command("Measure perplexity, answers and skills."),
    "generate": Command("Answer a question, or continue a text."),
    "verify": Command("Check a saved model or a GGUF file against its recipe and card."),
    "export": Command("Convert a saved model to GGUF and compare it in llama.cpp."),
    "publish": Command("Push a saved model to the Hub, private by default."),
}
"""Every command, in the order of `secateur --help`. Its function and its file have the same name."""

RENAMED = {"methods": "criteria"}
"""Names of release 0.1.0 that still work, and the commands that they call."""


class LazyCommand(TyperCommand):
    """A command that is listed by its help line and imported when it is called."""

    def __init__(self, name: str, old_name: str = ""):
        """Describe the command `name`, listed under it or, hidden, under its `old_name`."""
        help_line = COMMANDS[name].help
        super().__init__(old_name or name, help=help_line, short_help=help_line, hidden=bool(old_name))
        self.target, self.old_name = name, old_name

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Import the command and parse its arguments; what is then invoked is the command itself."""
        if self.old_name:
            warn_renamed(self.old_name, self.target)
        return load(self.target).make_context(info_name, args, parent, **extra)


def load(name: str) -> Any:
    """Import a command and return it as Typer runs it."""
    command = COMMANDS[name]
    if command.runs_models or command.reads_configs:
        import_module("pruning.runtime").configure(models=command.runs_models)
    function = getattr(import_module(f"{__name__}.{name}"), name)
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name)(function)
    return typer.main.get_command(app)


def main() -> int:
    """Run the shell on the arguments of this process.

    Returns:
        The exit status: 0, 2 after one line on standard error for a `PruningError` or wrong usage, or 130 if
        the user interrupts it. Any other exception is a bug and is raised.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # What the terminal cannot show must not end the work.
            stream.reconfigure(errors="replace")
    commands = {name: LazyCommand(name) for name in COMMANDS}
    commands |= {old: LazyCommand(new, old) for old, new in RENAMED.items()}
    shell = TyperGroup(
        commands=dict[str, Any](commands),
        help="Prune small language models.",
        rich_markup_mode=None,
    )
    arguments = sys.argv[1:]
    if arguments in (["--version"], ["-V"], ["version"]):
        print(f"secateur {__version__}")
        return 0
    if arguments and not arguments[0].startswith("-") and arguments[0] not in commands:
        print(f"Error: {suggest_command(arguments[0], COMMANDS)}", file=sys.stderr)
        return 2
    try:
        shell.main(arguments or ["--help"], standalone_mode=False)
    except (PruningError, typer.TyperException) as error:
        message = _message_of(error)
        print(f"Error: {message}", file=sys.stderr)
        return 2
    except typer.Abort:
        return 130
    return 0 if arguments else 2


def _message_of(error: Exception) -> str:
    """Return one line for an error, which names the option that does what an unknown one asks for."""
    if not isinstance(error, typer.TyperException):
        return str(error)
    context, written = getattr(error, "ctx", None), getattr(error, "option_name", None)
    if written and context is not None and error.message.startswith("No such option"):
        parameters = context.command.params
        options = [name for each in parameters for name in (*each.opts, *each.secondary_opts)]
        return suggest_option(written, context.info_name or "secateur", options)
    return error.format_message()
