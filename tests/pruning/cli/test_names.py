"""The names of commands and options, their help, and those that 0.1.0 had."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from pruning.cli import COMMANDS, RENAMED
from pruning.steps import STEPS
from tests.helpers.models import folder_of

ROOT = Path(__file__).parents[3]


def test_every_command_is_a_function_in_the_file_of_its_name():
    shared = {"__init__", "options", "output", "step_options", "suggestions"}
    files = {file.stem for file in (ROOT / "pruning" / "cli").glob("*.py")}
    assert files - shared == set(COMMANDS)
    for name, command in COMMANDS.items():
        function = getattr(import_module(f"pruning.cli.{name}"), name)
        assert function.__doc__.splitlines()[0] == command.help


def test_help_lists_the_commands(shell):
    without, out, err = shell()
    assert (without, err) == (2, "")
    listed = [line.split()[0] for line in out.partition("Commands:")[2].splitlines() if line.startswith("  ")]
    assert listed == list(COMMANDS)
    assert shell("--help") == (0, out, "")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command, shell):
    status, out, err = shell(command, "--help")
    assert (status, err) == (0, "")
    assert COMMANDS[command].help in out
    assert f" {command} [OPTIONS]" in out.splitlines()[0]
    assert "--json" in out


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_renamed_command_works_and_names_the_new_one(old, new, shell):
    status, out, err = shell(old)
    assert (status, out) == shell(new)[:2]
    assert status == 0
    assert err == f"Warning: {old} is now {new}. The old name works in this version only.\n"


RENAMED_FLAGS = {
    old: setting.flag for step in STEPS.values() for setting in step.settings for old in setting.old_flags
}


def test_options_of_0_1_0_that_have_a_new_name():
    assert RENAMED_FLAGS == {
        "--width": "--intermediate-size",
        "--distil": "--distill",
        "--distil-steps": "--distill-steps",
    }


@pytest.mark.parametrize(("old", "new"), RENAMED_FLAGS.items())
def test_a_renamed_option_works_and_names_the_new_one(old, new, shell, refused):
    status, out, err = shell("preview", folder_of("llama"), old, "30", "--json")
    assert (status, out) == shell("preview", folder_of("llama"), new, "30", "--json")[:2]
    assert status == 0
    assert err == f"Warning: {old} is now {new}. The old name works in this version only.\n"
    assert f"{new} is given twice" in refused("preview", folder_of("llama"), new, "30", old, "30")


def run_python(code):
    """Run Python code that prints one JSON value, in a process of its own."""
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return process.stdout, process.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["models"], ["models", "--json"]])
def test_help_and_models_start_without_torch(arguments):
    out, err = run_python(
        f"import sys; sys.argv = ['/usr/local/bin/secateur', *{arguments}]\n"
        "from pruning.cli import main\n"
        "assert main() == 0\n"
        "print(*sorted({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)), file=sys.stderr)"
    )
    assert err == "\n"
    assert (
        out.startswith({"--help": "Usage: secateur ", "models": "smollm2-135m"}[arguments[0]])
        or arguments[1:]
    )


def test_usage_names_the_module_if_it_was_run():
    command = [sys.executable, "-m", "pruning", "--help"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout.startswith("Usage: python -m pruning [OPTIONS] COMMAND")
    assert process.stderr == ""
