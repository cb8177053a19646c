"""The tests run on what a Space installs: Gradio of the front matter's version, and what follows from it."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FRONT_MATTER = yaml.safe_load((ROOT / "README.md").read_text(encoding="utf-8").split("---\n")[1])
PLATFORM = f"gradio[mcp,oauth]=={FRONT_MATTER['sdk_version']}"
"""What a Space with the SDK gradio installs, besides the requirements."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def violations(line):
    """Return what the installed packages violate of a requirement and of all that follows from it."""
    found, seen, left = [], set(), [(Requirement(line), "a Space")]
    while left:
        requirement, origin = left.pop()
        name = canonicalize_name(requirement.name)
        key = (name, str(requirement.specifier), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} is not installed, which {origin} needs")
            continue
        if not requirement.specifier.contains(distribution.version, prereleases=True):
            found.append(f"{name} is {distribution.version}; {origin} needs {requirement.specifier}")
        for text in distribution.requires or ():
            inner = Requirement(text)
            extras = requirement.extras or {""}
            if inner.marker is None or any(
                inner.marker.evaluate({"extra": extra}) for extra in extras | {""}
            ):
                left.append((inner, name))
    return found


def test_the_requirements_pin_what_a_space_installs():
    assert PLATFORM in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()


def test_the_tests_run_on_what_a_space_installs():
    assert violations(PLATFORM) == []


def test_a_version_that_a_space_does_not_install_is_noticed():
    installed = importlib.metadata.version("gradio")
    assert violations("gradio<0.1") == [f"gradio is {installed}; a Space needs <0.1"]
    assert violations("no-such-package") == ["no-such-package is not installed, which a Space needs"]


@pytest.mark.parametrize("name", ["PyYAML"])
def test_the_lowest_version_allowed_is_the_one_that_was_tested(name):
    (requirement,) = (line for line in PROJECT["dependencies"] if line.startswith(name))
    lowest = re.search(r">=([\d.]+)", requirement)[1]
    assert Requirement(requirement).specifier.contains(importlib.metadata.version(name))
    assert lowest == "6.0.4"


def test_zerogpu_is_not_asked_for():
    for file in ("pyproject.toml", "requirements.txt", "requirements-dev.txt"):
        lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
        assert not any(re.match(r'\s*"?spaces\b(?!\.)', line) for line in lines)
