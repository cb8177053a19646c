"""The shell: each command prints one JSON value on standard output if it is asked to."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import pruning
from pruning import catalog
from pruning.criteria import CRITERIA
from pruning.lessons import LESSONS
from pruning.text.passages import passage
from tests.helpers.models import PROMPT, count, folder_of

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """Prune a small model once, in a process of its own."""
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
    assert result["recipe"]["calibration"]["text"] == "custom"
    model = pruning.load(str(folder))
    assert result["report"]["after"]["quality"] == pruning.evaluate(model).to_dict()
    assert "Reading the weights" in process.stderr
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert count(model) == result["parameters"]["after"]
    assert model.config.intermediate_size == result["config"]["intermediate_size"] == 34


def test_pruned_model_evaluates_and_generates(pruned, as_json, tmp_path):
    folder, _ = pruned
    short = tmp_path / "short.txt"
    short.write_text(passage("code", "heldout")[:2000], encoding="utf-8")
    loaded = pruning.load(str(folder))
    result = as_json("evaluate", folder, "--text", short, "--tokens", "100")
    expected = pruning.perplexity(loaded.model, loaded.tokenizer, short.read_text(), tokens=100)
    assert (result["perplexity"], result["bits_per_byte"]) == (expected.value, expected.bits_per_byte)
    assert (result["tokens"], result["text"], result["genres"]) == (100, "short.txt", {})
    result = as_json("evaluate", folder, "--tokens", "100")
    quality = pruning.evaluate(loaded, tokens=100)
    assert result["genres"] == {genre: one.value for genre, one in quality.genres.items()}
    greedy = as_json("generate", folder, PROMPT, "--max-new-tokens", "6")
    settings = pruning.Sampling(6)
    assert greedy["text"] == pruning.generate(loaded, PROMPT, settings)
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
    recipe = pruning.Recipe(
        base=str(folder_of("gpt2")), steps=[pruning.Neurons(intermediate_size=20, criterion="peak_to_peak")]
    )
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(recipe.to_dict()))
    status, out, _ = shell("prune", "--recipe", file, "--output", tmp_path / "out", "--no-evaluate")
    assert status == 0
    shape = pruning.preview(recipe)
    first, *_, last = out.splitlines()
    assert first.split()[:4] == [
        "parameters",
        f"{shape.before.parameters:,}",
        "→",
        f"{shape.after.parameters:,}",
    ]
    assert last == f"saved to {tmp_path / 'out'}"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.n_inner == 20


def test_a_model_that_is_streamed_is_the_same(refused, as_json, tmp_path):
    cuts = (
        folder_of("llama"),
        "--layers",
        "1",
        "--layer-method",
        "last",
        "--neurons",
        "30%",
        "--criterion",
        "peak_to_peak",
    )
    held = as_json("prune", *cuts, "--output", tmp_path / "held", "--no-evaluate")
    streamed = as_json("prune", *cuts, "--output", tmp_path / "streamed", "--stream")
    assert held["parameters"] == streamed["parameters"]
    assert (tmp_path / "held/model.safetensors").read_bytes() == (
        tmp_path / "streamed/model.safetensors"
    ).read_bytes()
    options = ("--neurons", "30%", "--output", tmp_path / "no", "--stream")
    assert "The step neurons has to run the model" in refused("prune", folder_of("llama"), *options)
    assert "cannot be evaluated" in refused(
        "prune", *cuts, "--output", tmp_path / "no", "--stream", "--evaluate"
    )


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
    assert [(row["name"], row["number"], row["title"], row["introduction"]) for row in rows] == [
        (lesson.key, lesson.number, lesson.title, lesson.introduction) for lesson in LESSONS
    ]


def test_preview_needs_only_a_config(as_json, shell, tmp_path):
    shutil.copy(folder_of("phi3") / "config.json", tmp_path)
    result = as_json("preview", tmp_path, "--neurons", "25%", "--criterion", "peak_to_peak")
    assert set(result) == {"parameters", "sizes", "config", "recipe"}
    assert result["sizes"] == {"neurons": {"before": 48, "after": 36, "removed": 0.25}}
    parameters = result["parameters"]
    for side in ("before", "after"):
        assert parameters[side] == sum(part[side] for part in parameters["components"].values())
    assert result["config"]["intermediate_size"] == 36
    assert result["recipe"]["steps"][0]["criterion"] == "peak_to_peak"
    assert as_json("preview", tmp_path, "--neurons", "0.25")["parameters"] == parameters
    assert as_json("preview", tmp_path, "--intermediate-size", "36")["parameters"] == parameters
    multiple = as_json("preview", tmp_path, "--neurons", "25%", "--multiple-of", "8")
    assert multiple["config"]["intermediate_size"] == 40
    status, out, err = shell("preview", tmp_path, "--neurons", "25%")
    assert (status, err) == (0, "")
    assert f"{parameters['after']:,}" in out


def test_models_and_criteria_are_listed(as_json, shell):
    models = as_json("models")
    assert [(row["name"], row["license"]) for row in models] == [
        (name, model.license) for name, model in catalog.MODELS.items()
    ]
    criteria = as_json("criteria")
    assert [(row["name"], row["formula"], row["source"]) for row in criteria] == [
        (name, criterion.formula, criterion.source) for name, criterion in CRITERIA.items()
    ]
    for command in ("models", "criteria"):
        status, out, err = shell(command)
        assert (status, err) == (0, "")
        assert len(out.splitlines()) == len(as_json(command))
