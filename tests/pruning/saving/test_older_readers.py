"""What is saved says the same to the transformers of today and to an older one, which many programs still have."""

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

import pruning
from pruning.architectures.families import COMPARED_VERSION, FAMILIES
from pruning.saving.older_readers import least_version, write_for_older_readers
from tests.helpers.models import save_tiny
from tests.helpers.older_transformers import OLDER, read_by_older

LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
BASES = {
    "llama": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    "llama, scaled": ("llama", {"rope_parameters": LLAMA_3}),
    "qwen3": ("qwen3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
} | {
    name: (name, {}) for name, family in FAMILIES.items() if family.read_by and name not in ("llama", "qwen3")
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Each base with fewer neurons: the pruned model, and the folder that it was saved to."""
    home = tmp_path_factory.mktemp("older")
    steps = pruning.Neurons(fraction=0.25, criterion="l2", repair=False)
    folders = {}
    for name, (family, settings) in BASES.items():
        base = save_tiny(home / f"base {name}", family, **settings)
        pruned = pruning.prune(str(base), steps=steps)
        folders[name] = pruned, pruned.save(home / name)
    return folders


def test_an_older_transformers_computes_the_same(saved, need):
    need(OLDER.is_dir(), "transformers 4.57 is not installed (make .venv/installed-dev)")
    text = "The old man walked"
    read = read_by_older([folder for _, folder in saved.values()], text)
    for (pruned, _), (version, tokens, last) in zip(saved.values(), read, strict=True):
        assert version == COMPARED_VERSION
        assert tokens == pruned.tokenizer(text).input_ids
        with torch.inference_mode():
            expected = pruned.model(torch.arange(2, 50)[None]).logits[0, -1]
        torch.testing.assert_close(torch.tensor(last), expected, atol=1e-5, rtol=0)


def test_the_card_names_the_oldest_version_that_was_compared(saved, tmp_path):
    for pruned, folder in saved.values():
        assert least_version(pruned.model.config) == COMPARED_VERSION
        assert f"plain `transformers`, {COMPARED_VERSION} or later" in (folder / "README.md").read_text()
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
    base = save_tiny(tmp_path / "yarn", "llama", rope_parameters=yarn)
    steps = pruning.Neurons(fraction=0.25, criterion="l2", repair=False)
    folder = pruning.prune(str(base), steps=steps).save(tmp_path / "pruned")
    assert f"plain `transformers`, {transformers.__version__} or later" in (folder / "README.md").read_text()


def test_todays_transformers_reads_the_same_config(saved):
    for pruned, folder in saved.values():
        config = AutoConfig.from_pretrained(folder)
        assert config.to_dict().get("rope_parameters") == pruned.model.config.to_dict().get("rope_parameters")
        assert AutoModelForCausalLM.from_pretrained(folder).config.to_dict() == config.to_dict()


def test_what_todays_transformers_would_read_otherwise_is_not_written(saved, tmp_path, monkeypatch):
    folder = save_tiny(tmp_path / "model", "llama")
    before = (folder / "config.json").read_bytes()
    monkeypatch.setattr(
        "pruning.saving.older_readers._with_older_rope", lambda config: config | {"hidden_size": 4}
    )
    write_for_older_readers(folder)
    assert (folder / "config.json").read_bytes() == before
