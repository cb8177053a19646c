"""Conversions by a process that has imported the converter, for tests of what a file holds.

`test_export.py` tests the process that an export starts.
"""

import importlib

import pytest

from tests.helpers.converter import ForkingConverter


@pytest.fixture(scope="session")
def forking_converter():
    """The converter, imported once."""
    with ForkingConverter() as converter:
        yield converter


@pytest.fixture
def converted_quickly(forking_converter, monkeypatch):
    """Convert without importing the converter each time. A failed conversion runs again as usual, for its message."""
    export = importlib.import_module("pruning.sharing.gguf.export")
    convert = export.convert

    def convert_quickly(folder, output, type, notes, facts, progress):
        if forking_converter.convert(folder, output, type, facts) is not None:
            output.unlink(missing_ok=True)
            convert(folder, output, type, notes, facts, progress)

    monkeypatch.setattr(export, "convert", convert_quickly)
