"""The bound on a server's copies of models: the least recently used go first, and nobody else's are touched."""

import os
import time
from pathlib import Path

import pytest
from huggingface_hub import constants as hub_constants
from huggingface_hub import scan_cache_dir

import pruning
from pruning import catalog
from pruning.loading import hub_cache
from pruning.loading.load import find
from pruning.loading.source import Access
from tests.helpers.models import folder_of

SERVER = Access(token=False, local=False)


def files():
    return {path.name: path.read_bytes() for path in folder_of("llama").iterdir()}


def cached():
    """The models that the cache holds, by id."""
    return {repo.repo_id for repo in scan_cache_dir(hub_constants.HF_HUB_CACHE).repos}


def age(source, seconds):
    """Let a snapshot look as if it was last used some seconds ago."""
    for file in source.folder.iterdir():
        os.utime(file, (time.time() - seconds, time.time() - seconds))


@pytest.fixture
def three(hub):
    """Three models, a, b and c, used in this order."""
    for number, name in enumerate("abc"):
        hub.add_model(f"ada/{name}", files() | {"special_tokens_map.json": b" " * number + b"{}"})
        age(pruning.load(f"ada/{name}", access=SERVER).source, 1_000 - 100 * number)
    return hub


def size_of_one():
    return sum(map(len, files().values()))


def test_the_least_recently_used_models_go_first(three):
    hub_cache.trim(int(1.5 * size_of_one()))
    assert cached() == {"ada/c"}


def test_a_model_that_was_used_again_is_kept(three):
    pruning.load("ada/a", access=SERVER)
    hub_cache.trim(int(1.5 * size_of_one()))
    assert cached() == {"ada/a"}


def test_a_model_in_use_is_never_removed(three):
    hub_cache.trim(0, keep={"ada/a"})
    assert cached() == {"ada/a"}


def test_a_cache_within_its_bound_is_left_alone(three):
    assert hub_cache.trim(10**9) == 0
    assert cached() == {"ada/a", "ada/b", "ada/c"}


def test_a_cache_that_does_not_exist_needs_nothing():
    assert hub_cache.trim(0) == 0


def test_downloads_that_were_never_finished_are_removed_once_they_are_old(three):
    blobs = Path(hub_constants.HF_HUB_CACHE) / "models--ada--a" / "blobs"
    old, new = blobs / "one.incomplete", blobs / "two.incomplete"
    for file in (old, new):
        file.write_bytes(b"x" * 1000)
    os.utime(old, (0, 0))
    assert hub_cache.trim(10**9) == 1000
    assert (old.exists(), new.exists()) == (False, True)


def test_a_server_makes_room_before_it_downloads(three, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE_BYTES", str(int(2.5 * size_of_one())))
    monkeypatch.setattr("pruning.loading.download.LARGE", 1)
    three.add_model("ada/d", files())
    pruning.load("ada/d", access=SERVER)
    assert cached() == {"ada/c", "ada/d"}


def test_many_models_that_are_only_looked_up_are_bounded_too(hub, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE_BYTES", "3000")
    monkeypatch.setattr("pruning.loading.download.LARGE", 1)
    for number in range(12):
        hub.add_model(f"ada/m{number}", files())
        find(f"ada/m{number}", access=SERVER)
    cache = scan_cache_dir(hub_constants.HF_HUB_CACHE)
    assert 0 < cache.size_on_disk <= 3000 + len(files()["config.json"])


def test_the_default_model_is_kept(hub, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE_BYTES", "0")
    monkeypatch.setattr("pruning.loading.download.LARGE", 1)
    default = catalog.MODELS[catalog.DEFAULT_MODEL].hub_id
    for name in (default, "ada/a", "ada/b"):
        hub.add_model(name, files())
        pruning.load(name, access=SERVER)
    assert cached() == {default, "ada/b"}


def test_the_cache_of_a_users_own_machine_is_theirs(three, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE_BYTES", "0")
    monkeypatch.setattr("pruning.loading.download.LARGE", 1)
    three.add_model("ada/d", files())
    pruning.load("ada/d", access=Access(False))
    assert cached() == {"ada/a", "ada/b", "ada/c", "ada/d"}


def test_a_bound_that_is_no_number_is_an_error(monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE_BYTES", "lots")
    with pytest.raises(pruning.ModelError, match="SECATEUR_CACHE_BYTES is 'lots'"):
        hub_cache.cache_limit()
