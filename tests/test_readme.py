"""What the README shows exists and runs: commands, Python, files, families, steps and settings."""

import re
import shlex
from fnmatch import fnmatch
from pathlib import Path

import pytest

from pruning.architectures.families import FAMILIES
from pruning.cli import COMMANDS, load
from pruning.steps import STEPS
from tests.helpers.models import folder_of

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^( *)```(\w*)\n(.*?)^ *```$", README, re.MULTILINE | re.DOTALL)


def block(starting_with):
    """The code block that begins with a text, without its indentation."""
    (found,) = [
        re.sub(rf"^{indent}", "", code, flags=re.MULTILINE)
        for indent, _, code in BLOCKS
        if code.lstrip().startswith(starting_with)
    ]
    return found


SHELL = block("secateur ").splitlines()


def tree():
    """The paths and patterns that the architecture tree names, each with its description."""
    entries, folders = {}, []
    for line in block("app.py").splitlines():
        names, description = re.fullmatch(r" *(\S+(?: \S+)*) {2,}(.+)", line).groups()
        del folders[(len(line) - len(line.lstrip())) // 4 :]
        for name in names.split(" "):
            entries["".join(folders) + name] = description
        if names.endswith("/"):
            folders.append(names)
    return entries


def files(folder):
    """The files of a folder that contain anything, relative to the repository."""
    return [
        path.relative_to(ROOT)
        for path in sorted((ROOT / folder).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    ]


@pytest.mark.parametrize("line", SHELL)
def test_shell_command_parses(line):
    program, name, *arguments = shlex.split(line)
    assert program == "secateur"
    load(name).make_context(name, arguments)


def test_every_command_is_shown():
    assert {line.split()[1] for line in SHELL} == set(COMMANDS)


def test_shell_command_with_a_wrong_option_would_not_parse():
    with pytest.raises(Exception, match="--nerons"):
        load("preview").make_context("preview", ["smollm2-135m", "--nerons", "20%"])


def test_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = block("import pruning")
    assert code.count('"smollm2-135m"') == 1
    exec(code.replace('"smollm2-135m"', repr(str(folder_of("llama")))), {})
    assert "'before'" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_tree_describes_every_file():
    entries = tree()
    all_files = [Path("app.py"), *files("pruning"), *files("page")]
    assert [str(file) for file in all_files if not _is_covered(file, entries) and not _is_empty(file)] == []


def test_tree_describes_nothing_else():
    entries = tree()
    assert [entry for entry in entries if not any(ROOT.glob(entry.removesuffix("/")))] == []
    assert [entry for entry, description in entries.items() if len(description.split()) < 2] == []


def _is_covered(file, entries):
    """Whether an entry names a file, or is a pattern such as `*.md` or `passages/*` that matches it."""
    path = file.as_posix()
    return any(fnmatch(path, entry) and path.count("/") == entry.count("/") for entry in entries)


def _is_empty(file):
    """Whether a file only makes a folder a package."""
    return file.name == "__init__.py" and (ROOT / file).read_text(encoding="utf-8").count("\n") <= 1


def test_families_and_steps_are_named():
    sentence = re.search(r"^Model families: (.*?)\.\s", README, re.MULTILINE | re.DOTALL)[1]
    assert set(re.split(r",\s+", sentence)) == {family.title for family in FAMILIES.values()}
    assert set(
        re.findall(r"^\| `(\w+)` \|.*\|.*\|$", README.split("## Three figures")[0], re.MULTILINE)
    ) == set(STEPS)


def test_settings_are_those_of_the_code():
    code = "".join(
        (ROOT / file).read_text(encoding="utf-8")
        for file in (*files("pruning"), *files("page"))
        if file.suffix == ".py"
    )
    documented = set(re.findall(r"^\| `(SECATEUR_\w+)`", README, re.MULTILINE))
    old = {"SECATEUR_LINE"}
    assert documented == set(re.findall(r"\bSECATEUR_[A-Z_]+\b", code)) - old


def test_links_lead_to_files():
    for document in (
        README,
        *((ROOT / name).read_text(encoding="utf-8") for name in ("CONTRIBUTING.md", "SECURITY.md")),
    ):
        for target in re.findall(r"\]\(([^)#:]+)\)", document):
            assert (ROOT / target).exists(), target
