"""Networks that go away, caches that are damaged, and disks that are full."""

import os
import re
import shutil

import pytest

import pruning
from pruning import catalog
from pruning.loading import offline
from pruning.loading.source import Access
from tests.helpers.model_files import asked_for, files_of, outcome, refusal, same, tiny_llama
from tests.helpers.models import folder_of, loaded
from tests.helpers.pauses import skip_pauses


@pytest.mark.parametrize("fault", ["closed", "dropped", 429, 500, 503])
def test_an_unreachable_hub(hub, fault, monkeypatch):
    hub.add_model("ada/tiny", tiny_llama())
    if fault == "closed":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    else:
        hub.fail(".", status=fault if fault != "dropped" else 0, drop=fault == "dropped")
    message = refusal("ada/tiny", token=False)
    assert "cannot be reached, and ada/tiny is not on this machine" in message
    assert "smollm2-135m, which works without a network" in message


@pytest.mark.parametrize(
    "request_that_fails", ["/resolve/.*/config.json", "/tokenizer.json", "/model.safetensors"]
)
def test_a_hub_that_goes_away_leaves_nothing_half_loaded(hub, request_that_fails, monkeypatch):
    skip_pauses(monkeypatch)
    hub.add_model("ada/tiny", tiny_llama())
    hub.fail(request_that_fails, 503, times=20)
    assert "cannot be reached" in refusal("ada/tiny", token=False)
    hub.faults.clear()
    assert pruning.load("ada/tiny", token=False)


@pytest.fixture
def impatient(monkeypatch):
    """The client's pauses between attempts take no time."""
    skip_pauses(monkeypatch)


def requests_of_a_load(hub):
    pruning.load("ada/tiny", token=False)
    return [path for _, path, _ in hub.requests]


@pytest.mark.parametrize("fault", [{"drop": True}, {"truncated": True}, {"status": 503}, {"stall": 20}])
def test_a_network_that_goes_away_at_any_request(hub, impatient, monkeypatch, tmp_path, fault):
    hub.add_model("ada/tiny", tiny_llama())
    requests = requests_of_a_load(hub)
    assert len(requests) > 8
    step = 1 if "drop" in fault else 4
    for turn in range(1, len(requests), step):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / f"cache{turn}"))
        hub.fail(".", after=turn, times=10**6, **fault)
        with monkeypatch.context() as hasty:
            hasty.setattr("pruning.loading.client.READ_TIMEOUT", 0.1)
            # The last requests are for nothing that is needed.
            assert outcome("ada/tiny", token=False) in ("loaded", "The Hugging Face Hub cannot be reached")
        hub.faults.clear()
        assert same(pruning.load("ada/tiny", token=False), loaded("llama"))


def test_a_download_that_was_cut_is_tried_again(hub, impatient):
    hub.add_model("ada/tiny", tiny_llama())
    hub.fail("GET .*/model.safetensors", truncated=True, after=1)
    assert same(pruning.load("ada/tiny", token=False), loaded("llama"))
    assert not hub.faults[0].times


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("left", [0, 0.5])
def test_a_cache_that_was_cut_short_is_mended(hub, name, left, monkeypatch):
    for hub_id, short, family in [
        ("ada/tiny", "ada/tiny", "llama"),
        ("distilbert/distilgpt2", "distilgpt2", "gpt2"),
    ]:
        hub.add_model(hub_id, files_of(folder_of(family)))
        file = (pruning.load(short, token=False).source.folder / name).resolve()
        os.truncate(file, int(left * file.stat().st_size))
        with monkeypatch.context() as offline:
            offline.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
            assert "cannot be reached" in refusal(short, token=False)
        assert same(pruning.load(short, token=False), loaded(family))
        hub.requests.clear()
        assert same(pruning.load(short, token=False), loaded(family))
        assert not asked_for(hub, name)


@pytest.fixture
def offline_weights(monkeypatch):
    """Pretend that the default model's package is installed and holds a small model."""
    tiny, converted = loaded("llama"), []

    def convert(entry, folder):
        converted.append(entry.name)
        offline._keep_converted(tiny.model, tiny.tokenizer, folder)

    monkeypatch.setattr("pruning.loading.offline.is_installed", lambda entry: True)
    monkeypatch.setattr("pruning.loading.offline._convert", convert)
    return converted


@pytest.mark.parametrize("damage", ["cut", "no tokenizer", "no weights", "no config", "a file"])
def test_converted_weights_that_are_damaged_or_of_an_older_version_are_made_again(offline_weights, damage):
    assert pruning.load(catalog.DEFAULT_MODEL)
    folder = offline.converted_folder(catalog.MODELS[catalog.DEFAULT_MODEL])
    lost = {"no tokenizer": "tokenizer.json", "no weights": "model.safetensors", "no config": "config.json"}
    if damage == "cut":
        os.truncate(folder / "model.safetensors", 1000)
    elif damage == "a file":
        shutil.rmtree(folder)
        folder.write_text("")
    else:
        (folder / lost[damage]).unlink()
    for _ in range(2):
        assert same(pruning.load(catalog.DEFAULT_MODEL), loaded("llama"))
    assert len(offline_weights) == 2
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_disk_that_fills_up_while_weights_are_converted(offline_weights, files_of_at_most):
    with files_of_at_most(5000):
        assert "The converted weights could not be written" in refusal(catalog.DEFAULT_MODEL)
    folder = offline.converted_folder(catalog.MODELS[catalog.DEFAULT_MODEL])
    assert not list(folder.parent.iterdir())
    assert pruning.load(catalog.DEFAULT_MODEL)


def test_a_disk_that_fills_up_during_a_download(hub, files_of_at_most):
    hub.add_model("ada/tiny", tiny_llama())
    with files_of_at_most(50_000):
        message = refusal("ada/tiny", token=False)
    assert "could not be written" in message
    assert "Make room" in message
    assert same(pruning.load("ada/tiny", token=False), loaded("llama"))


def test_an_expired_token(hub):
    hub.add_model("ada/tiny", tiny_llama())
    hub.expire("ada-token")
    for token in ("ada-token", "tökén"):
        message = refusal("ada/tiny", token=token)
        assert "Sign in again" in message
        assert token not in message


def test_no_error_shows_a_token(hub, monkeypatch):
    hub.add_model("ada/secret", tiny_llama(), private=True)
    hub.add_user("hf_sesame", "eve")
    seen = [refusal("ada/secret", token="hf_sesame"), refusal("ada/tiny", token="hf_sesame\n")]
    hub.fail(".", drop=True)
    seen.append(refusal("ada/secret", token="hf_sesame"))
    hub.repos["ada/secret"].private = False
    loaded = pruning.load("ada/secret", token="hf_sesame")
    assert "sesame" not in "".join([*seen, repr(loaded), repr(loaded.source)])


def test_a_cache_that_cannot_be_written(hub, monkeypatch, tmp_path):
    hub.add_model("ada/tiny", tiny_llama())
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    assert "could not be written" in refusal("ada/tiny", token=False)


def test_a_full_disk(hub, monkeypatch):
    hub.add_model("ada/tiny", tiny_llama())
    full = shutil.disk_usage("/")._replace(free=10)
    monkeypatch.setattr("shutil.disk_usage", lambda path: full)
    for access in (Access(False), Access(False, local=False)):
        message = refusal("ada/tiny", access=access)
        assert re.search(r"needs 0.0 MB of disk space, and 0.0 MB are free. Make room", message)
        assert not asked_for(hub, ".json") + asked_for(hub, ".safetensors")


def test_a_disk_too_full_for_the_weights_gets_no_file_of_text(hub, monkeypatch):
    hub.add_model("ada/tiny", tiny_llama())
    full = shutil.disk_usage("/")._replace(free=100_000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: full)
    assert "needs 0.2 MB of disk space, and 0.1 MB are free. Make room" in refusal("ada/tiny", token=False)
    assert not asked_for(hub, "tokenizer.json") + asked_for(hub, ".safetensors")


def test_a_server_does_not_reveal_where_its_files_are(hub, monkeypatch, tmp_path):
    hub.add_model("ada/tiny", tiny_llama())
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    assert str(tmp_path) in refusal("ada/tiny", access=Access(False))
    assert str(tmp_path) not in refusal("ada/tiny", access=Access(False, local=False))
