"""What people type: it works, or one line names what does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import pruning
from pruning.cli import COMMANDS
from pruning.cli.suggestions import COMMANDS as MEANT
from pruning.cli.suggestions import NOTES, OPTIONS
from pruning.text.passages import passage
from tests.helpers.models import folder_of

CRITERION = """
import pruning

@pruning.criterion(source="A test")
def mine(down):
    return down.norm(dim=0)
"""


def test_the_version(shell):
    assert shell("--version") == (0, f"secateur {pruning.__version__}\n", "")


def test_the_version_and_the_help_need_no_torch():
    code = (
        "import sys, pruning.cli; sys.argv = ['secateur', {!r}]; pruning.cli.main(); "
        "print(*{{'torch', 'transformers'}} & set(sys.modules), file=sys.stderr)"
    )
    for argument in ("--version", "--help", "models"):
        process = subprocess.run(
            [sys.executable, "-c", code.format(argument)],
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
        )
        assert process.stderr == "\n"


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        (["--neurons", "0.25"], "intermediate_size", 36),
        (["--layers", "30%"], "num_hidden_layers", 2),
        (["--layers", "0.1"], "num_hidden_layers", 2),
        (["--layers", "1"], "num_hidden_layers", 2),
        (["--heads", "50%"], "num_key_value_heads", 1),
        (["--heads", "20%"], "num_attention_heads", 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_shares(options, key, value, as_json):
    assert as_json("preview", folder_of("llama"), *options)["config"][key] == value


def test_info(as_json, shell):
    facts = as_json("info", folder_of("llama"))
    assert facts["type"] == "llama"
    assert facts["units"]["neurons per layer"] == 48
    assert "neurons per layer  48" in shell("info", folder_of("llama"))[1]


def test_dry_run_writes_nothing(shell, tmp_path):
    status, out, _ = shell(
        "prune", folder_of("llama"), "--neurons", "50%", "-o", tmp_path / "out", "--dry-run"
    )
    assert status == 0
    assert "→" in out
    assert list(tmp_path.iterdir()) == []
    assert shell("prune", folder_of("llama"), "--neurons", "50%", "--dry-run")[0] == 0
    assert "--output" in shell("prune", folder_of("llama"), "--neurons", "50%")[2]


def test_overwrite_replaces_a_model_that_secateur_saved_and_nothing_else(shell, tmp_path):
    out = tmp_path / "out"
    command = ["prune", folder_of("llama"), "--criterion", "l2", "--no-evaluate", "-o", out]
    assert shell(*command, "--neurons", "50%")[0] == 0
    assert "--overwrite" in shell(*command, "--neurons", "25%")[2]
    assert shell(*command, "--neurons", "25%", "--overwrite")[0] == 0
    assert pruning.load(out).model.config.intermediate_size == 36
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    status, _, err = shell(*command[:-1], other, "--neurons", "25%", "--overwrite")
    assert (status, (other / "thesis.txt").read_text()) == (2, "years of work")
    assert "not a model that Secateur saved" in err


def test_a_recipe_is_for_the_model_that_is_named_and_its_own_criterion_comes_from_a_file(shell, tmp_path):
    file = tmp_path / "own.py"
    file.write_text(CRITERION)
    saved = ["--no-evaluate", "-o"]
    command = ["prune", folder_of("llama"), "--neurons", "50%", "--criterion", f"{file}:mine"]
    assert shell(*command, *saved, tmp_path / "first")[0] == 0
    from_elsewhere = ["prune", folder_of("llama"), "--recipe", tmp_path / "first"]
    status, _, err = shell(*from_elsewhere, "--criterion", f"{file}:mine", *saved, tmp_path / "again")
    assert status == 0, err
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "again")]
    assert weights[0] == weights[1]
    assert shell("verify", tmp_path / "first", "--criterion", f"{file}:mine")[0] == 0
    status, _, err = shell(*command[:-1], f"{file}:other", *saved, tmp_path / "third")
    assert status == 2
    assert "defines no criterion other" in err


def test_a_chat_file_calibrates_again(shell, tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text(
        "\n".join(json.dumps({"text": part}) for part in passage("story", "calibration")[:9000].split("\n\n"))
    )
    options = ["--calibration", file, "--tokens", "600", "--no-evaluate", "-o"]
    assert shell("prune", folder_of("llama"), "--neurons", "50%", *options, tmp_path / "first")[0] == 0
    recipe = pruning.Recipe.load(tmp_path / "first" / "recipe.yaml")
    assert recipe.calibration.address == "texts.jsonl"
    again = ["prune", folder_of("llama"), "--recipe", tmp_path / "first", "--no-evaluate"]
    assert "--calibration texts.jsonl" in shell(*again, "-o", tmp_path / "again")[2]
    assert shell(*again, "--calibration", file, "-o", tmp_path / "again")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["prune", "x", "--ratio", "0.2"], "--neurons"),
        (["prune", "x", "--sparsity", "50%"], "--weights"),
        (["prune", "x", "--sparsity-type", "2:4"], "--weights-pattern"),
        (["evaluate", "x", "--metrics", "skills"], "--skills"),
        (["generate", "x", "--prompt", "Hello"], "The prompt is the second argument"),
        (["search", "x", "--ratio", "0.2"], "--budget"),
        (["prune", "x", "--output-dir", "y"], "--output"),
        (["prune", "x", "--dataset", "y"], "--calibration"),
        (["prune", "x", "--cuda"], "--device"),
        (["verify", "x", "--device", "cuda"], "generate and search take --device"),
        (["prune", "x", "--torch-dtype", "bfloat16"], "Use --dtype"),
        (["evaluate", "x", "--dtype", "bfloat16"], "prune takes --dtype"),
        (["prune", "x", "--model", "y"], "first argument"),
        (["prune", "x", "--nuerons", "20%"], "--neurons"),
        (["prune", "x", "--output_dir", "y"], "--output"),
        (["prune", "x", "--zebra"], "secateur prune --help"),
        (["evaluate", "x", "--baseline", "y"], "--against"),
        (["generate", "x", "y", "--temp", "1"], "--temperature"),
        (["compress", "x"], "Use prune"),
        (["chat", "x"], "Use generate"),
        (["upload", "x"], "Use publish"),
        (["zebra"], "secateur --help"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_one_line_names_what_is_meant(arguments, named, shell):
    status, out, err = shell(*arguments)
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert named in err


def test_a_budget_in_parameters_has_two_names(shell, tmp_path):
    assert "--budget" in shell("search", folder_of("llama"))[2]
    assert "The budget" in shell("search", folder_of("llama"), "--parameters", "900B")[2]


def test_what_is_suggested_exists():
    assert set(MEANT.values()) <= COMMANDS.keys()
    assert not MEANT.keys() & COMMANDS.keys()
    assert not OPTIONS.keys() & NOTES.keys()
