"""Folders of small models to load, and what loading them says."""

import json
import re

import pytest
import torch

import pruning
from tests.helpers.models import folder_of


def files_of(folder, **changes):
    """The files of a model folder by name; a change of None drops a file, a dict is written as JSON."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name, content in changes.items():
        name = name.replace("__", ".")
        files[name] = json.dumps(content).encode() if isinstance(content, dict) else content
    return {name: content for name, content in files.items() if content is not None}


def tiny_llama(**changes):
    """The files of the small Llama, as `files_of` returns them."""
    return files_of(folder_of("llama"), **changes)


def config(**changes):
    """The config of the small Llama, with changes."""
    return json.loads((folder_of("llama") / "config.json").read_text()) | changes


def written(folder, files):
    """The path of a new folder with these files."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return str(folder)


def asked_for(hub, ending):
    """The paths with this ending that were downloaded from a Hub."""
    return [path for method, path, _ in hub.requests if method == "GET" and path.endswith(ending)]


def refusal(name, **options):
    """Why a model is refused; the test fails if it is not."""
    with pytest.raises(pruning.ModelError) as error:
        pruning.load(name, **options)
    return str(error.value)


def outcome(name, **options):
    """The beginning of the refusal, or that there was none."""
    try:
        pruning.load(name, **options)
    except pruning.ModelError as error:
        return re.split("[,:]", str(error))[0]
    return "loaded"


def same(first, second):
    """Whether two loaded models have the same weights."""
    others = second.model.state_dict()
    return all(torch.equal(others[name], tensor) for name, tensor in first.model.state_dict().items())
