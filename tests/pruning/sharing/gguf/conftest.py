"""Real conversions, each made once for the tests that export the same folder."""

import importlib
import json
import shutil

import pytest


@pytest.fixture(scope="module")
def conversions(tmp_path_factory):
    """The files that were converted, by what they were made from, and the folder that holds them."""
    return {}, tmp_path_factory.mktemp("converted")


@pytest.fixture
def converted_once(conversions, monkeypatch):
    """Convert a folder that no test writes to once, and copy the file when it is exported again.

    Each conversion starts a process that imports torch and transformers, which takes seconds.
    """
    export = importlib.import_module("pruning.sharing.gguf.export")
    convert, (made, place) = export.convert, conversions

    def convert_once(folder, output, type, notes, facts, progress):
        key = folder, type, json.dumps(facts, sort_keys=True)
        if key not in made:
            convert(folder, output, type, notes, facts, progress)
            made[key] = shutil.copy(output, place / f"{len(made)}.gguf")
        else:
            shutil.copy(made[key], output)

    monkeypatch.setattr(export, "convert", convert_once)
