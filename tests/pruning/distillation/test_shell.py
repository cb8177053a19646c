"""`distill` in the shell: refusals, results, a kill, and several processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pruning import Recipe
from pruning.cli import main
from tests.helpers.models import trained
from tests.pruning.distillation.helpers import QUICK, assert_equal

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, student):
    """The student and its teacher as folders."""
    folder = tmp_path_factory.mktemp("models") / "student"
    student.save_pretrained(folder)
    trained().tokenizer.save_pretrained(folder)
    return folder, trained().source.folder


def arguments(folders, output, *options):
    settings = [f"--set={name}={value}" for name, value in QUICK.items()]
    paths = [folders[0], "--teacher", folders[1], "--output", output]
    return [str(word) for word in ("distill", *paths, "--no-evaluate", *settings, *options)]


@pytest.fixture
def shell(monkeypatch, capsys):
    """`shell(…)` gives the exit status, standard output and standard error of a command."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["pruning", *words])
        status = main()
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "1", "--minutes", "1"], "not both"),
        (["--steps", "0"], "steps"),
        (["--steps", "1", "--set", "batch"], "NAME=VALUE"),
        (["--steps", "1", "--set", "color=green"], "color"),
        (["--steps", "1", "--text", "bible"], "bible"),
        (["--steps", "1", "--text", "code", "--dataset", "a/b"], "text or dataset"),
        (["--steps", "1", "--dataset", "ada/stories"], "cannot be reached"),
    ],
)
def test_shell_refuses_in_one_line(options, message, folders, tmp_path, shell):
    status, out, err = shell(*arguments(folders, tmp_path / "out", *options))
    assert (status, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert not any(tmp_path.glob("*out*"))


def test_shell_reports_and_saves_the_result(folders, tmp_path, shell):
    status, out, _ = shell(*arguments(folders, tmp_path / "out", "--steps", "12"))
    assert status == 0
    assert "12 steps, 1,536 tokens" in out
    assert "→" in out
    assert [path.name for path in tmp_path.iterdir() if path.name != "state"] == ["out"]
    recipe = Recipe.parse((tmp_path / "out" / "recipe.yaml").read_text())
    assert recipe.steps[0].steps == 12
    assert "/" not in recipe.steps[0].teacher  # A path on the user's machine is not published.


def test_shell_accepts_former_names_of_settings_with_one_line_each(folders, tmp_path, shell):
    former = ["--set", "at_once=2", "--set", "clip=0.5"]
    status, out, err = shell(*arguments(folders, tmp_path / "out", "--steps", "1", "--json", *former))
    assert status == 0
    assert (
        json.loads(out)["recipe"]["steps"][0].items()
        >= {
            "micro_batch_size": 2,
            "max_grad_norm": 0.5,
        }.items()
    )
    assert [line for line in err.splitlines() if "now called" in line] == [
        "Warning: --set at_once is now called --set micro_batch_size.",
        "Warning: --set clip is now called --set max_grad_norm.",
    ]


def start(folders, output, *options, launcher=()):
    """Start the command in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = arguments(folders, output, "--steps", "12", "--json", *options)
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "pruning", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    )


def note_of(process):
    """Wait for a command, and return the note in its report."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return json.loads(out)["report"]["notes"][0][0]


# Without a GPU the processes run on the CPU and communicate over gloo, whatever the option says.
TWO_PROCESSES = [
    *["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"],
    *["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"],
]


@pytest.mark.timeout(600)
def test_two_processes_match_one_and_a_kill_loses_nothing(folders, tmp_path, shell):
    one, two, killed = (tmp_path / name for name in ("one", "two", "killed"))
    checkpoint = tmp_path / ".killed.checkpoint"
    running = start(folders, killed, "--checkpoint-every", "0")
    while not checkpoint.exists():
        assert running.poll() is None, running.communicate()
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert not killed.exists()
    shared = note_of(start(folders, two, launcher=TWO_PROCESSES))
    resumed = note_of(start(folders, killed))
    assert shell(*arguments(folders, one, "--steps", "12"))[0] == 0
    weights = {path: AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (one, two, killed)}
    assert shared["hardware"].startswith("2 × ")
    for name, value in weights[one].items():
        # Gradients are summed in another order; AdamW makes at most a part of a step of what that changes.
        torch.testing.assert_close(weights[two][name], value, rtol=1e-2, atol=2e-4)
    assert_equal(weights[one], weights[killed])
    assert not checkpoint.exists()
    assert shared["improved"]
    assert resumed["improved"]
