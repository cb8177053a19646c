"""The shell refuses in one line on standard error, before any work, and leaves nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pruning
from tests.helpers.models import folder_of

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["preview", "MODEL"], "Nothing to prune"),
        (["preview", "MODEL", "--criterion", "l1"], "Nothing to prune"),
        (["preview", "MODEL", "--neurons", "0"], "greater than 0"),
        (["preview", "MODEL", "--neurons", "100%"], "less than 1"),
        (["preview", "MODEL", "--neurons", "-20%"], "greater than 0"),
        (["preview", "MODEL", "--neurons", "150%"], "less than 1"),
        (["preview", "MODEL", "--neurons", "20"], "such as 20%"),
        (["preview", "MODEL", "--neurons", "nan"], "enter a number"),
        (["preview", "MODEL", "--neurons", "many"], "such as 20%"),
        (["preview", "MODEL", "--neurons", ""], "such as 20%"),
        (
            ["preview", "MODEL", "--neurons", "20%", "--intermediate-size", "9"],
            "either fraction or intermediate_size",
        ),
        (["preview", "MODEL", "--intermediate-size", "99"], "removes none"),
        (["preview", "MODEL", "--intermediate-size", "0"], "intermediate_size"),
        (["preview", "MODEL", "--neurons", "20%", "--criterion", "taylor"], "no criterion 'taylor'"),
        (["preview", "MODEL", "--neurons", "20%", "--criterion", "gate_up_unpaired"], "has no gate"),
        (["preview", "no such model", "--neurons", "20%"], "no such model"),
        (["prune", "MODEL", "--neurons", "20%"], "--output"),
        (["prune", "MODEL", "--output", "OUT"], "Nothing to prune"),
        (["prune", "--output", "OUT"], "Name a model"),
        (["prune", "--recipe", "nowhere.yaml", "--output", "OUT"], "nowhere.yaml cannot be read"),
        (["prune", "MODEL", "--recipe", "RECIPE", "--output", "OUT"], "steps.0.fraction"),
        (["prune", "--recipe", "RECIPE", "--neurons", "20%", "--output", "OUT"], "not both"),
        (["prune", "--recipe", "RECIPE", "--criterion", "l1", "--output", "OUT"], "the file of your own"),
        (["prune", "--recipe", "RECIPE", "--output", "OUT"], "steps.0.fraction"),
        (["prune", "MODEL", "--neurons", "20%", "--calibration", "bible", "--output", "OUT"], "'bible'"),
        (["prune", "MODEL", "--neurons", "20%", "--calibration", "custom", "--output", "OUT"], "'custom'"),
        (["prune", "MODEL", "--neurons", "20%", "--calibration", "SHORT", "--output", "OUT"], "longer text"),
        (["prune", "MODEL", "--neurons", "20%", "--calibration", "BINARY", "--output", "OUT"], "not UTF-8"),
        (["prune", "MODEL", "--neurons", "20%", "--tokens", "9", "--output", "OUT"], "tokens"),
        (["prune", "MODEL", "--neurons", "20%", "--seed", "-1", "--output", "OUT"], "seed"),
        (["prune", "MODEL", "--neurons", "20%", "--output", "MODEL"], "not empty"),
        (["prune", "MODEL", "--neurons", "20%", "--output", "SHORT"], "not empty"),
        (["prune", "MODEL", "--neurons", "20%", "--output", "UNDER"], "cannot be written"),
        (["prune", "--recipe", "OWN", "--output", "OUT"], "Give the same text again, with --calibration"),
        (["search", "MODEL", "--budget", "10%", "--output", "UNDER"], "cannot be written"),
        (["export", "MODEL", "--output", "UNDER"], "cannot be written"),
        (["export", "MODEL", "--output", "OUT", "--format", "onnx"], "no format 'onnx'"),
        (["distill", "MODEL", "--teacher", "MODEL", "--output", "UNDER"], "cannot be written"),
        (["distill", "MODEL", "--teacher", "MODEL", "--output", "OUT", "--stream"], "cannot stream"),
        (["prune", "DAMAGED", "--neurons", "20%", "--output", "OUT"], "damaged"),
        (["evaluate", "MODEL", "--text", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["evaluate", "MODEL", "--tokens", "1"], "--tokens"),
        (["evaluate", "EMPTY"], "config.json"),
        (["generate", "MODEL", ""], "prompt is empty"),
        (["generate", "MODEL", "x" * 30_000], "Shorten it"),
        (["generate", "MODEL", "Hello", "--max-new-tokens", "0"], "max_new_tokens"),
        (["generate", "MODEL", "Hello", "--temperature", "9"], "temperature"),
        (["generate", "MODEL"], "prompt"),
        (["generate", "MODEL", "Hello", "--colour", "green"], "--colour"),
        (["publish", "EMPTY", "me/model"], "You are not signed in"),
        (["paint"], "paint"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, message, refused, tmp_path):
    work = tmp_path / "work"
    places = {
        name: work / name.lower() for name in ("OUT", "SHORT", "BINARY", "RECIPE", "EMPTY", "DAMAGED", "OWN")
    }
    places["UNDER"] = places["SHORT"] / "out"
    (work / "empty").mkdir(parents=True)
    places["SHORT"].write_text("Too short.")
    places["BINARY"].write_bytes(b"\xff\xfe\x00" * 2000)
    places["RECIPE"].write_text(f"base: {folder_of('gpt2')}\nsteps:\n- step: neurons\n  fraction: 1.5\n")
    own = pruning.Calibration.custom("The user's own text. " * 500)
    recipe = pruning.Recipe(
        base=str(folder_of("gpt2")), calibration=own, steps=[pruning.Neurons(fraction=0.5)]
    )
    places["OWN"].write_text(recipe.to_yaml())
    shutil.copytree(folder_of("gpt2"), places["DAMAGED"])
    weights = places["DAMAGED"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    places["MODEL"] = folder_of("gpt2")
    before = {path: path.stat().st_mtime_ns for path in [*work.rglob("*"), *places["MODEL"].iterdir()]}
    line = refused(*(places.get(argument, argument) for argument in arguments))
    assert message in line
    assert before == {
        path: path.stat().st_mtime_ns for path in [*work.rglob("*"), *places["MODEL"].iterdir()]
    }


@pytest.mark.parametrize(
    "options",
    [("prune", "--neurons", "20%"), ("distill", "--teacher", "TEACHER", "--steps", "1")],
    ids=lambda options: options[0],
)
def test_an_output_that_cannot_be_written_is_refused_before_any_work(options, refused, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("pruning.pipeline.run", lambda *_, **__: pytest.fail("work has begun"))
    command, *rest = options
    arguments = [str(folder_of("gpt2")) if value == "TEACHER" else value for value in rest]
    message = refused(command, folder_of("gpt2"), *arguments, "--output", tmp_path / "file" / "out")
    assert "Choose another place" in message


def test_bug_is_not_hidden(shell, monkeypatch):
    monkeypatch.setattr("pruning.previews.preview_plain", lambda recipe: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        shell("preview", folder_of("gpt2"), "--neurons", "20%")


def test_process_fails_in_one_line():
    process = subprocess.run(
        [sys.executable, "-m", "pruning", "preview", folder_of("gpt2"), "--neurons", "100%"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.count("\n") == 1
    assert process.stderr.startswith("Error: ")


@pytest.mark.parametrize(
    ("encoding", "arguments"),
    [
        ("ascii", ["criteria"]),
        ("ascii", ["criteria", "--json"]),
        ("cp1252", ["prune", "x", "--neurons", "𝔽→%"]),
    ],
)
def test_an_output_that_cannot_show_every_character_ends_no_command(encoding, arguments):
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(
        [sys.executable, "-m", "pruning", *arguments], capture_output=True, env=environment, cwd=ROOT
    )
    assert b"UnicodeEncodeError" not in done.stderr
    if "--json" in arguments:
        assert json.loads(done.stdout.decode(encoding))
