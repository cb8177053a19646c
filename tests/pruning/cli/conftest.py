"""Run commands of the shell in this process."""

import json
import sys

import pytest

from pruning.cli import main


@pytest.fixture
def shell(monkeypatch, capsys):
    """`shell("preview", …)` returns the exit status, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["pruning", *map(str, arguments)])
        status = main()
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def as_json(shell):
    """`as_json("preview", …)` returns the one JSON value that a successful command prints."""

    def run(*arguments):
        status, out, err = shell(*arguments, "--json")
        assert status == 0, err
        return json.loads(out)

    return run


@pytest.fixture
def refused(shell):
    """`refused("preview", …)` returns the one line of a command that fails."""

    def run(*arguments):
        status, out, err = shell(*arguments)
        assert (status, out) == (2, "")
        *before, last = err.splitlines()
        assert last.startswith("Error: ")
        assert "Traceback" not in err
        assert not any(line.startswith("Error") for line in before)
        return last

    return run
