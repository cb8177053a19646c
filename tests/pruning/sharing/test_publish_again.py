"""Publishing again changes only what Secateur wrote, and what nobody changed since."""

import json
import shutil

import pytest

import pruning
from tests.helpers.models import loaded
from tests.helpers.pauses import skip_pauses
from tests.helpers.saved import content, cut

OWNERS = {
    "LICENSE.txt": b"Mine.",
    "eval/results.json": b'{"score": 1}',
    "notes/todo.txt": b"Sleep.",
    "extra.safetensors": b"12345678",
    "added_tokens.json": b"{}",
    "deep/model.safetensors": b"12345678",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return cut(loaded("llama")).save(tmp_path_factory.mktemp("saved") / "cut")


@pytest.fixture(scope="module")
def smaller(tmp_path_factory):
    return cut(loaded("llama"), fraction=0.5).save(tmp_path_factory.mktemp("saved") / "smaller")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "sharded"
    return cut(loaded("llama")).save(folder, max_shard_size=30_000)


@pytest.fixture
def published(hub, monkeypatch, saved):
    monkeypatch.setenv("HF_TOKEN", "ada-token")
    skip_pauses(monkeypatch)
    pruning.publish(saved, "ada/cut")
    return hub.repos["ada/cut"]


def refused(folder, **options):
    with pytest.raises(pruning.SavingError) as error:
        pruning.publish(folder, "ada/cut", **options)
    return str(error.value)


def test_what_the_owner_added_stays_as_it_is(published, smaller):
    published.commit(published.files | OWNERS)
    pruning.publish(smaller, "ada/cut")
    assert published.files.items() >= content(smaller).items()
    assert published.files.items() >= OWNERS.items()
    pruning.publish(smaller, "ada/cut", overwrite=True)
    assert published.files.items() >= OWNERS.items()


def test_what_the_owner_deleted_comes_back_only_with_the_new_model(published, smaller):
    files = dict(published.files)
    del files["README.md"]
    published.commit(files)
    pruning.publish(smaller, "ada/cut")
    assert published.files.items() >= content(smaller).items()


def test_an_edited_card_is_not_replaced_without_notice(published, smaller):
    edited = published.files["README.md"] + b"\nWhat I learned.\n"
    published.commit(published.files | {"README.md": edited})
    before = published.sha
    message = refused(smaller)
    assert "README.md in ada/cut may have been edited" in message
    assert "`--overwrite`" in message
    assert published.sha == before
    pruning.publish(smaller, "ada/cut", overwrite=True)
    assert published.files["README.md"] == (smaller / "README.md").read_bytes()


def test_another_file_that_the_owner_changed_is_not_replaced_either(published, smaller):
    published.commit(published.files | {"generation_config.json": b'{"temperature": 0.5}'})
    assert "generation_config.json in ada/cut would be replaced" in refused(smaller)
    assert published.files["generation_config.json"] == b'{"temperature": 0.5}'


def test_old_shards_leave_and_an_owners_shard_stays(published, sharded, smaller):
    pruning.publish(sharded, "ada/cut")
    assert "model.safetensors" not in published.files
    shards = {name for name in published.files if name.startswith("model-")}
    assert len(shards) > 1
    changed = min(shards)
    published.commit(published.files | OWNERS | {changed: b"12345678"})
    pruning.publish(smaller, "ada/cut")
    assert {name for name in published.files if name.startswith("model-")} == {changed}
    assert "model.safetensors.index.json" not in published.files
    assert published.files.items() >= OWNERS.items()


def test_a_file_that_would_be_loaded_instead_of_the_new_weights_is_named(published, sharded):
    published.commit(published.files | {"model.safetensors": b"12345678"})
    assert "would be loaded instead" in refused(sharded, overwrite=True)


@pytest.mark.parametrize("content_of_list", [b"{", b"[]", b'{"files": {"LICENSE.txt": 3}}', b"[" * 100_000])
def test_a_damaged_list_counts_nothing_as_ours(published, smaller, content_of_list):
    published.commit(published.files | OWNERS | {"secateur.json": content_of_list})
    assert "did not write what is there" in refused(smaller)
    pruning.publish(smaller, "ada/cut", overwrite=True)
    assert published.files.items() >= OWNERS.items()
    assert json.loads(published.files["secateur.json"])["files"].keys() == content(smaller).keys()


def test_a_list_that_names_an_owners_file_needs_its_content_too(published, smaller):
    listed = json.loads(published.files["secateur.json"])
    listed["files"] |= {name: ["0" * 64] for name in OWNERS}
    published.commit(published.files | OWNERS | {"secateur.json": json.dumps(listed).encode()})
    pruning.publish(smaller, "ada/cut")
    assert published.files.items() >= OWNERS.items()


def test_a_model_of_an_older_release_is_replaced_and_its_card_is_asked_about(published, smaller):
    files = {name: data for name, data in published.files.items() if name != "secateur.json"}
    old_shards = {"model-00001-of-00002.safetensors": b"12345678", "model.safetensors.index.json": b"{}"}
    published.commit(files | OWNERS | old_shards)
    assert "README.md in ada/cut may have been edited" in refused(smaller)
    pruning.publish(smaller, "ada/cut", overwrite=True)
    assert not published.files.keys() & old_shards.keys()
    kept = {name: data for name, data in OWNERS.items() if name != "added_tokens.json"}
    assert published.files.items() >= (kept | content(smaller)).items()


def test_a_repository_that_secateur_never_wrote_loses_nothing(published, hub, smaller):
    foreign = OWNERS | {"README.md": b"Mine.", "config.json": b"{}"}
    repo = hub.add_model("ada/mine", foreign, private=True)
    with pytest.raises(pruning.SavingError, match="ada/mine is taken"):
        pruning.publish(smaller, "ada/mine")
    assert repo.files == foreign
    pruning.publish(smaller, "ada/mine", overwrite=True)
    assert repo.files.items() >= (OWNERS | content(smaller)).items()


@pytest.mark.parametrize(("chosen", "private"), [(None, True), (True, True), (False, False)])
def test_a_repository_is_private_unless_public_was_asked_for(published, hub, saved, chosen, private):
    pruning.publish(saved, "ada/new", private=chosen)
    assert hub.repos["ada/new"].private is private


def test_hidden_files_of_a_folder_are_not_published(published, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "cut")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("secret")
    (folder / "secateur.json").write_text("{}")
    pruning.publish(folder, "ada/cut")
    assert published.files.keys() >= content(saved).keys()
    assert not any(name.startswith(".git/") for name in published.files)
