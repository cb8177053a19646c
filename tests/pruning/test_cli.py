"""The shell: one JSON object on standard output, one line of error on standard error."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import pruning
from pruning import catalog
from pruning.cli import main
from pruning.criteria import CRITERIA
from pruning.text.passages import passage
from tests.helpers.models import PROMPT, count, folder_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shell(monkeypatch, capsys):
    """`shell("preview", …)` gives the exit status, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["pruning", *map(str, arguments)])
        status = main()
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def as_json(shell):
    """The one JSON value that a successful command prints."""

    def run(*arguments):
        status, out, _ = shell(*arguments, "--json")
        assert status == 0
        return json.loads(out)

    return run


@pytest.fixture
def refused(shell):
    """The one line of a command that fails."""

    def run(*arguments):
        status, out, err = shell(*arguments)
        assert (status, out) == (2, "")
        *before, last = err.splitlines()
        assert last.startswith("Error: ")
        assert "Traceback" not in err
        assert not any(line.startswith("Error") for line in before)
        return last

    return run


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """A small pruned model, made once by the shell."""
    folder = tmp_path_factory.mktemp("shell") / "pruned"
    text = folder.parent / "text.txt"
    text.write_text(passage("story", "calibration")[:3000], encoding="utf-8")
    options = f"--neurons 30% --seed 3 --calibration {text} --tokens 600 --output {folder} --json"
    process = subprocess.run(
        [sys.executable, "-m", "pruning", "prune", folder_of("llama"), *options.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return folder, process


def test_prune_prints_one_object_and_writes_a_model(pruned):
    folder, process = pruned
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    assert set(result) >= {"parameters", "config", "recipe", "report", "output"}
    assert result["output"] == str(folder)
    assert result["parameters"]["after"] < result["parameters"]["before"]
    assert result["recipe"]["seed"] == 3
    assert result["recipe"]["steps"][0]["fraction"] == 0.3
    assert result["recipe"]["calibration"]["text"] == "own"
    assert result["report"]["quality_after"]["overall"]["value"] > 1
    assert "Reading the weights" in process.stderr
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert count(model) == result["parameters"]["after"]
    assert model.config.intermediate_size == result["config"]["intermediate_size"] == 34


def test_pruned_model_evaluates_and_generates(pruned, as_json, tmp_path):
    folder, _ = pruned
    short = tmp_path / "short.txt"
    short.write_text(passage("code", "heldout")[:2000], encoding="utf-8")
    result = as_json("evaluate", folder, "--text", short, "--tokens", "100")
    assert result["perplexity"] > 1
    assert result["tokens"] == 100
    result = as_json("evaluate", folder, "--tokens", "100")
    assert len(result["genres"]) == 5
    greedy = as_json("generate", folder, PROMPT, "--max-new-tokens", "6")
    loaded = pruning.load(str(folder))
    settings = pruning.Sampling(6)
    assert greedy["text"] == pruning.complete(loaded.model, loaded.tokenizer, PROMPT, settings)
    drawn = [
        as_json("generate", folder, PROMPT, "--temperature", 1, "--seed", seed)["text"] for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_recipe_file_makes_the_same_model(pruned, shell, refused, tmp_path, monkeypatch):
    # A saved recipe names the folder of its base, not where on this machine it is.
    monkeypatch.chdir(folder_of("llama").parent)
    folder, _ = pruned
    text = folder.parent / "text.txt"
    recipe = folder / "recipe.yaml"
    again = tmp_path / "again"
    assert "Give the same text again" in refused("prune", "--recipe", recipe, "--output", again)
    status, out, _ = shell(
        "prune", "--recipe", recipe, "--calibration", text, "--output", again, "--no-evaluate"
    )
    assert status == 0
    assert f"saved to {again}" in out
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert (again / "recipe.yaml").read_text() == recipe.read_text()
    wrong = tmp_path / "wrong.txt"
    wrong.write_text("Another text. " * 500)
    assert "not the text that the recipe was calibrated on" in refused(
        "prune", "--recipe", recipe, "--calibration", wrong, "--output", tmp_path / "never"
    )
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "state") == ["again", "wrong.txt"]


def test_recipe_in_json_without_calibration(shell, tmp_path):
    recipe = pruning.Recipe(base=str(folder_of("gpt2")), steps=[pruning.Neurons(width=20, criterion="ppm")])
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(recipe.to_dict()))
    status, out, _ = shell("prune", "--recipe", file, "--output", tmp_path / "out", "--no-evaluate")
    assert status == 0
    assert "parameters" in out
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.n_inner == 20


def test_a_model_that_is_streamed_is_the_same(shell, as_json, tmp_path):
    cuts = (
        folder_of("llama"),
        "--layers",
        "1",
        "--layer-method",
        "last",
        "--neurons",
        "30%",
        "--criterion",
        "ppm",
    )
    held = as_json("prune", *cuts, "--output", tmp_path / "held", "--no-evaluate")
    streamed = as_json("prune", *cuts, "--output", tmp_path / "streamed", "--stream")
    assert held["parameters"] == streamed["parameters"]
    assert (tmp_path / "held/model.safetensors").read_bytes() == (
        tmp_path / "streamed/model.safetensors"
    ).read_bytes()
    status, _, err = shell(
        "prune", folder_of("llama"), "--neurons", "30%", "--output", tmp_path / "no", "--stream"
    )
    assert status == 2
    assert "Error" in err


def test_search_writes_the_recipe_that_it_chose(as_json, tmp_path):
    file = tmp_path / "recipe.yaml"
    options = ("--tokens", "512", "--budget", "10%", "--output", file)
    found = as_json("search", folder_of("llama"), *options)
    assert (
        found["parameters"]
        <= 0.9 * as_json("preview", folder_of("llama"), "--layers", "1")["parameters"]["before"]
    )
    made = as_json("prune", "--recipe", file, "--output", tmp_path / "made", "--no-evaluate")
    assert made["parameters"]["after"] == found["parameters"]


def test_lessons_are_listed(as_json):
    rows = as_json("lessons")
    assert len(rows) == 12
    assert all(row["name"] and row["title"] for row in rows)


def test_preview_needs_only_a_config(as_json, shell, tmp_path):
    shutil.copy(folder_of("phi3") / "config.json", tmp_path)
    result = as_json("preview", tmp_path, "--neurons", "25%", "--criterion", "ppm")
    assert set(result) == {"parameters", "config", "recipe"}
    parameters = result["parameters"]
    for side in ("before", "after"):
        assert parameters[side] == sum(part[side] for part in parameters["components"].values())
    assert result["config"]["intermediate_size"] == 36
    assert result["recipe"]["steps"][0]["criterion"] == "ppm"
    assert as_json("preview", tmp_path, "--neurons", "0.25")["parameters"] == parameters
    assert as_json("preview", tmp_path, "--width", "36")["parameters"] == parameters
    multiple = as_json("preview", tmp_path, "--neurons", "25%", "--multiple-of", "8")
    assert multiple["config"]["intermediate_size"] == 40
    status, out, err = shell("preview", tmp_path, "--neurons", "25%")
    assert (status, err) == (0, "")
    assert f"{parameters['after']:,}" in out


def test_what_is_on_offer_is_listed(as_json, shell):
    assert [row["name"] for row in as_json("models")] == list(catalog.MODELS)
    methods = as_json("methods")
    assert [row["name"] for row in methods] == list(CRITERIA)
    assert all(row["formula"] and row["source"] for row in methods)
    for command in ("models", "methods"):
        status, out, err = shell(command)
        assert (status, err) == (0, "")
        assert len(out.splitlines()) == len(as_json(command))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["preview", "MODEL"], "Nothing to cut"),
        (["preview", "MODEL", "--criterion", "l1"], "Nothing to cut"),
        (["preview", "MODEL", "--neurons", "0"], "greater than 0"),
        (["preview", "MODEL", "--neurons", "100%"], "less than 1"),
        (["preview", "MODEL", "--neurons", "-20%"], "greater than 0"),
        (["preview", "MODEL", "--neurons", "150%"], "less than 1"),
        (["preview", "MODEL", "--neurons", "20"], "such as 20%"),
        (["preview", "MODEL", "--neurons", "nan"], "finite"),
        (["preview", "MODEL", "--neurons", "many"], "such as 20%"),
        (["preview", "MODEL", "--neurons", ""], "such as 20%"),
        (["preview", "MODEL", "--neurons", "20%", "--width", "9"], "either fraction or width"),
        (["preview", "MODEL", "--width", "99"], "removes none"),
        (["preview", "MODEL", "--width", "0"], "width"),
        (["preview", "MODEL", "--neurons", "20%", "--criterion", "taylor"], "no criterion 'taylor'"),
        (["preview", "MODEL", "--neurons", "20%", "--criterion", "independent"], "has no gate"),
        (["preview", "no such model", "--neurons", "20%"], "no such model"),
        (["prune", "MODEL", "--neurons", "20%"], "--output"),
        (["prune", "MODEL", "--output", "OUT"], "Nothing to cut"),
        (["prune", "--output", "OUT"], "Name a model"),
        (["prune", "--recipe", "nowhere.yaml", "--output", "OUT"], "nowhere.yaml cannot be read"),
        (["prune", "MODEL", "--recipe", "RECIPE", "--output", "OUT"], "not both"),
        (["prune", "--recipe", "RECIPE", "--neurons", "20%", "--output", "OUT"], "not both"),
        (["prune", "--recipe", "RECIPE", "--criterion", "l1", "--output", "OUT"], "not both"),
        (["prune", "--recipe", "RECIPE", "--output", "OUT"], "steps.0.fraction"),
        (["prune", "MODEL", "--neurons", "20%", "--calibration", "bible", "--output", "OUT"], "'bible'"),
        (["prune", "MODEL", "--neurons", "20%", "--calibration", "own", "--output", "OUT"], "'own'"),
        (["prune", "MODEL", "--neurons", "20%", "--calibration", "SHORT", "--output", "OUT"], "longer text"),
        (["prune", "MODEL", "--neurons", "20%", "--calibration", "BINARY", "--output", "OUT"], "not UTF-8"),
        (["prune", "MODEL", "--neurons", "20%", "--tokens", "9", "--output", "OUT"], "tokens"),
        (["prune", "MODEL", "--neurons", "20%", "--seed", "-1", "--output", "OUT"], "seed"),
        (["prune", "MODEL", "--neurons", "20%", "--output", "MODEL"], "not empty"),
        (["prune", "MODEL", "--neurons", "20%", "--output", "SHORT"], "not empty"),
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
        (["publish", "EMPTY", "me/model"], ""),
        (["paint"], "paint"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, message, refused, tmp_path):
    work = tmp_path / "work"
    places = {name: work / name.lower() for name in ("OUT", "SHORT", "BINARY", "RECIPE", "EMPTY", "DAMAGED")}
    (work / "empty").mkdir(parents=True)
    places["SHORT"].write_text("Too short.")
    places["BINARY"].write_bytes(b"\xff\xfe\x00" * 2000)
    places["RECIPE"].write_text(f"base: {folder_of('gpt2')}\nsteps:\n- step: neurons\n  fraction: 1.5\n")
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


def test_help_without_a_command(shell):
    status, out, err = shell()
    assert (status, err) == (2, "")
    assert "prune" in out
    status, out, err = shell("--help")
    assert (status, err) == (0, "")


def test_bug_is_not_hidden(shell, monkeypatch):
    monkeypatch.setattr("pruning.pipeline.preview", lambda recipe: 1 / 0)
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
