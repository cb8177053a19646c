"""A model that does not fit in memory is refused with both numbers, before any weight is read."""

import re

import pytest
import torch

import pruning
from pruning.architectures.shape import Shape
from pruning.loading.placement import choose_placement
from pruning.loading.source import Access
from tests.helpers.models import config, folder_of

LARGE = config("llama", hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, vocab_size=32_000)


def placed(free, monkeypatch, **options):
    monkeypatch.setattr("pruning.loading.placement.available_memory", lambda: int(free))
    given = {"on_disk": False, "may_offload": False} | options
    return choose_placement("ada/large", LARGE, torch.bfloat16, **given)


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def test_a_model_that_fits_is_computed_in_float32(monkeypatch):
    needed = 4 * Shape.of(LARGE).parameters
    placement = placed(needed + 10**9, monkeypatch)
    assert (placement.device_map, placement.dtype) == ("cpu", torch.float32)


def test_a_server_refuses_a_model_that_does_not_fit(monkeypatch):
    needed = 4 * Shape.of(LARGE).parameters
    with pytest.raises(pruning.ModelError) as error:
        placed(needed - 1, monkeypatch)
    assert re.search(r"ada/large needs \d\.\d GB of memory, and \d\.\d GB are free", str(error.value))


def test_on_a_users_own_machine_layers_may_stay_on_disk_within_the_memory_of_the_container(monkeypatch):
    placement = placed(10**9, monkeypatch, may_offload=True)
    assert placement.device_map == "auto"
    assert placement.max_memory == {"cpu": 10**9}


def test_not_even_a_users_own_machine_takes_a_model_whose_embeddings_do_not_fit(monkeypatch):
    with pytest.raises(pruning.ModelError, match=r"needs at least .* MB of memory, and 10\.0 MB are free"):
        placed(10**7, monkeypatch, may_offload=True)


def test_a_model_on_disk_needs_no_memory(monkeypatch):
    assert placed(0, monkeypatch, on_disk=True).device_map == {"": "disk"}


def test_weights_that_do_not_fit_are_not_read(monkeypatch):
    monkeypatch.setattr("pruning.loading.placement.available_memory", lambda: 1000)
    monkeypatch.setattr(
        "transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("read")
    )
    with pytest.raises(pruning.ModelError, match=r"of memory, and 0\.0 MB are free"):
        pruning.load(str(folder_of("llama")))


def test_weights_of_a_model_on_the_hub_that_do_not_fit_are_not_downloaded(hub, monkeypatch):
    hub.add_model("ada/tiny", {path.name: path.read_bytes() for path in folder_of("llama").iterdir()})
    monkeypatch.setattr("pruning.loading.placement.available_memory", lambda: 1000)
    with pytest.raises(pruning.ModelError, match=r"of memory, and 0\.0 MB are free"):
        pruning.load("ada/tiny", access=Access(False, local=False))
    assert not [path for _, path, _ in hub.requests if path.endswith(".safetensors")]
