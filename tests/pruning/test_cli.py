"""The shell: one JSON value on standard output; errors are one line on standard error."""

import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import pruning
from pruning import catalog
from pruning.cli import COMMANDS, RENAMED, main
from pruning.criteria import CRITERIA
from pruning.lessons import LESSONS
from pruning.steps import STEPS
from pruning.text.passages import passage
from tests.helpers.models import PROMPT, count, folder_of

ROOT = Path(__file__).parents[2]


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
        status, out, _ = shell(*arguments, "--json")
        assert status == 0
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
