"""Commands that read only a config start without PyTorch and transformers, and print what they print with them."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from pruning.architectures import known
from pruning.architectures.families import KEY_VALUE, QUERY
from pruning.architectures.plain import PlainConfig
from pruning.architectures.probe import default_config, probe_config
from pruning.architectures.shape import Shape
from pruning.cli import main
from pruning.loading import load as loading
from tests.helpers.models import FAMILIES, config

ROOT = Path(__file__).parents[2]

DERIVED = ("smollm3", "olmo2", "mixtral", "lfm2", "gpt_neo", "falcon")

COMMANDS = (
    "info",
    "preview --neurons 25%",
    "preview --intermediate-size 40 --multiple-of 2",
    "preview --heads 1",
    "preview --heads 50%",
    "preview --query-heads 1",
    "preview --channels 25%",
    "preview --hidden-size 24",
    "preview --vocabulary 25%",
    "preview --experts 1",
    "preview --weights 50%",
    "preview --neurons 25% --heads 1 --channels 25%",
    "preview --neurons 100%",
    "preview --heads 7",
)


@pytest.fixture
def shell(monkeypatch, capsys):
    """`shell("preview", …)` returns the exit status, standard output and standard error."""

    def run(command, *arguments):
        monkeypatch.setattr(sys, "argv", ["secateur", command, *map(str, arguments)])
        return main(), *capsys.readouterr()

    return run


@pytest.fixture
def with_transformers(monkeypatch):
    """Make the commands read configs as every other command reads them."""

    def start():
        find = loading.find

        def find_full(*arguments, plain=False, **options):
            del plain
            return find(*arguments, **options)

        for place in ("pruning.previews", "pruning.cli.info", "pruning.loading.load"):
            monkeypatch.setattr(f"{place}.find", find_full)

    return start


def config_of(name):
    if name in FAMILIES:
        return config(name)
    return probe_config(default_config(name))


def save_config(folder, name):
    config_of(name).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", [*FAMILIES, *DERIVED])
def test_a_plain_config_gives_the_output_of_a_full_one(name, tmp_path, shell, with_transformers):
    folder = save_config(tmp_path / "model", name)
    run = partial(run_all, folder, shell)
    found_out, read = run(), run()
    with_transformers()
    expected = run()
    assert found_out == expected
    assert read == expected
    assert sum(status == 0 for status, *_ in expected.values()) >= 3


def run_all(folder, shell):
    return {
        command: shell(command.split()[0], folder, *command.split()[1:], "--json") for command in COMMANDS
    }


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "smollm3"])
def test_a_proof_is_kept_with_the_config(name, tmp_path, shell, with_transformers, monkeypatch):
    folder = save_config(tmp_path / "model", name)
    command = ("preview", folder, "--layers", "1", "--layer-method", "last", "--json")
    first = shell(*command)
    with monkeypatch.context() as patch:
        patch.setattr("pruning.architectures.prove.proof_failure", lambda *_: 1 / 0)
        assert shell(*command) == first
    with_transformers()
    assert shell(*command) == first
    assert first[0] == 0


def run_python(code):
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return process.stdout, process.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("info",),
        ("preview", "--neurons", "25%"),
        ("preview", "--layers", "1", "--layer-method", "last", "--heads", "50%", "--channels", "25%"),
    ],
    ids=" ".join,
)
def test_a_known_config_is_read_without_torch(arguments, tmp_path, shell):
    command, *options = arguments
    words = [command, str(save_config(tmp_path / "model", "llama")), *options, "--json"]
    status, out, _ = shell(*words)
    assert status == 0
    again, loaded = run_python(
        f"import sys; sys.argv = ['secateur', *{words}]\n"
        "from pruning.cli import main\n"
        "assert main() == 0\n"
        "print(*sorted({'torch', 'transformers', 'accelerate'} & set(sys.modules)), file=sys.stderr)"
    )
    assert json.loads(again) == json.loads(out)
    assert loaded == "\n"


@pytest.mark.parametrize(
    "module", ["pruning.recipe", "pruning.cli.criteria", "pruning.cli.info", "pruning.cli.preview"]
)
def test_a_module_for_configs_is_imported_without_torch(module):
    """The error names the place that uses torch while it is imported."""
    run_python(
        "import sys\n"
        "class Refused:\n"
        "    def find_spec(self, name, *_):\n"
        "        assert name not in ('torch', 'transformers', 'accelerate'), name\n"
        "sys.meta_path.insert(0, Refused())\n"
        f"import {module}"
    )


def test_what_is_known_belongs_to_one_version_and_is_found_again_if_damaged(tmp_path, monkeypatch):
    folder = save_config(tmp_path / "model", "llama")

    def find():
        plain = loading.find(folder, plain=True).config
        assert isinstance(plain, PlainConfig)
        return Shape.of(plain).parameters, sorted((known.cache_folder() / "configs").glob("*.json"))

    parameters, (file,) = find()
    for damaged in ("", "{}", "[]", file.read_text(encoding="utf-8")[:-9]):
        file.write_text(damaged, encoding="utf-8")
        assert find() == (parameters, [file])
        assert json.loads(file.read_text(encoding="utf-8"))["tensors"]
    monkeypatch.setattr(known, "version", lambda package: f"another {package}")
    assert len(find()[1]) == 2
    monkeypatch.setattr(known, "_code_digest", lambda: "other code")
    assert len(find()[1]) == 3


def test_what_is_known_need_not_be_writable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "file" / "cache"))
    folder = save_config(tmp_path / "model", "llama")
    assert Shape.of(loading.find(folder, plain=True).config).parameters > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_sizes_of_listed_families_need_no_config_of_transformers(name, tmp_path):
    plain = loading.find(save_config(tmp_path / "model", name), plain=True).config
    fixed = set(plain.family.unprunable)
    fixed |= {KEY_VALUE} if QUERY in fixed else set()
    assert set(plain.family.sizes) - fixed <= plain.free_sizes
