"""The walls of the house: who may import what, and where families are told apart."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = sorted((ROOT / "pruning").rglob("*.py"))
AT_THE_HUB = {"loading", "sharing", "card.py"}


def imports(file):
    """The packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found


def compares_model_types(node):
    """`config.model_type == …`, `… in (…)`, or a match on it."""
    subjects = []
    if isinstance(node, ast.Compare):
        subjects = [node.left, *node.comparators]
    elif isinstance(node, ast.Match):
        subjects = [node.subject]
    return any(
        isinstance(part, ast.Attribute | ast.Name) and _name(part) == "model_type" for part in subjects
    )


def _name(node):
    return node.attr if isinstance(node, ast.Attribute) else node.id


def test_library_knows_no_page():
    assert [file.name for file in LIBRARY if imports(file) & {"gradio", "spaces", "app", "page"}] == []


def test_few_speak_to_the_hub():
    speakers = [file for file in LIBRARY if "huggingface_hub" in imports(file)]
    assert [file.name for file in speakers if not {file.parent.name, file.name} & AT_THE_HUB] == []
    web = {"requests", "httpx", "urllib", "aiohttp", "socket"}
    assert [file.name for file in LIBRARY if imports(file) & web] == []


def test_families_are_told_apart_in_one_place():
    elsewhere = [
        file.name
        for file in LIBRARY
        if file.name != "families.py"
        and any(map(compares_model_types, ast.walk(ast.parse(file.read_text(encoding="utf-8")))))
    ]
    assert elsewhere == []


@pytest.mark.parametrize(
    "file", [ROOT / "app.py", *sorted((ROOT / "page").rglob("*.py"))], ids=lambda file: file.name
)
def test_page_does_no_arithmetic_on_models(file):
    assert imports(file) & {"torch", "transformers", "safetensors", "numpy"} == set()


def test_criteria_and_steps_keep_apart():
    for file in LIBRARY:
        text = file.read_text(encoding="utf-8")
        if file.parent.name == "criteria":
            assert "pruning.architectures.anatomy" not in text
            assert "pruning.steps" not in text
