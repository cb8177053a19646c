"""The scripts under docs/examples run, and leave the base as it was."""

import hashlib
import runpy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import pruning
from tests.helpers.chat import named
from tests.helpers.models import tiny

SCRIPTS = sorted((Path(__file__).parents[1] / "docs" / "examples").glob("*.py"))
NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


NEEDS_A_KNOWN_TOKENIZER = {"export_to_gguf"}
"""llama.cpp knows no tokenizer of a small model: these run with the real one's."""


@pytest.fixture
def small_model(tmp_path, monkeypatch):
    """`small_model(tokenizer)` writes a small Llama to the folder that has the base's name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pruning.catalog.find", lambda name: None)
    monkeypatch.setattr("pruning.shape_search.scores.QUESTIONS", 2)  # A small model answers at length.

    def write(words):
        tiny("llama", vocab_size=len(words), hidden_size=64).save_pretrained(tmp_path / NAME)
        words.save_pretrained(tmp_path / NAME)
        return tmp_path / NAME

    return write


def digest(folder):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.mark.parametrize(
    "script",
    [script for script in SCRIPTS if script.stem not in NEEDS_A_KNOWN_TOKENIZER],
    ids=lambda script: script.stem,
)
def test_script_runs_and_leaves_the_base_as_it_was(script, small_model):
    check(script, small_model(named("chatml")))


@pytest.mark.real
@pytest.mark.parametrize("name", sorted(NEEDS_A_KNOWN_TOKENIZER))
def test_script_runs_with_the_real_tokenizer(name, smollm2, small_model):
    (script,) = (each for each in SCRIPTS if each.stem == name)
    check(script, small_model(smollm2.tokenizer))


def check(script, base):
    """Run a script, and compare the folder of the base before and after."""
    before = digest(base)
    values = runpy.run_path(str(script))
    assert digest(base) == before
    pruned = values["pruned"]
    assert isinstance(pruned, pruning.Pruned)
    assert pruned.report.after.parameters < pruned.report.before.parameters
    saved = AutoModelForCausalLM.from_pretrained(base, local_files_only=True).state_dict()
    given = (
        values["base"].model if "base" in values else values.get("model") if "tokenizer" in values else None
    )
    if given is not None:
        assert all(torch.equal(value, saved[name]) for name, value in given.state_dict().items())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_scripts_are_short(script):
    assert len(script.read_text(encoding="utf-8").splitlines()) < 40
