"""What was proven to be removable from every type of model that the installed transformers has.

`tests/data/families.json` holds, for each type, the units that were proven when it was written; here they are proven
again, so that a newer transformers or a change of the library cannot lose one without a word.
"""

import json
from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING

from pruning.architectures.config import known_types
from pruning.architectures.families import FAMILIES
from pruning.architectures.probe import default_config
from pruning.architectures.shape import Shape
from pruning.architectures.support import support_of
from pruning.cli.families import table
from pruning.errors import ModelError

EXPECTED = json.loads((Path(__file__).parents[2] / "data" / "families.json").read_text(encoding="utf-8"))

DOCUMENTED = Path(__file__).parents[3] / "docs" / "families.md"

PROVEN_AGAIN = ("neurons", "groups", "layers", "experts")
"""What is proven for every type; the tests of proofs and steps cover the other units."""

NAMED = [
    "gpt2",
    "opt",
    "gpt_neox",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "phi3",
    "smollm3",
    "granite",
    "olmo",
    "olmo2",
    "olmo3",
    "ministral3",
    "ernie4_5",
    "exaone",
    "exaone4",
    "glm",
    "glm4",
    "gemma",
    "cohere",
    "cohere2",
    "helium",
    "seed_oss",
    "stablelm",
    "starcoder2",
    "phi",
    "gptj",
    "gpt_neo",
    "gpt_bigcode",
    "bloom",
    "falcon",
    "mpt",
    "persimmon",
    "codegen",
    "nemotron",
    "arcee",
    "apertus",
    "nanochat",
    "hunyuan_v1_dense",
    "internlm3",
    "jais2",
    "cwm",
    "vaultgemma",
    "biogpt",
    "xglm",
    "openai-gpt",
    "modernbert-decoder",
]
"""The dense types that people use most."""

MIXTURES = [
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "olmoe",
    "granitemoe",
    "lfm2_moe",
    "gpt_oss",
    "deepseek_v2",
    "deepseek_v3",
    "ernie4_5_moe",
    "mellum",
]
"""The mixtures of experts that people use most."""

HYBRID = [
    "qwen3_5_text",
    "lfm2",
    "lfm3",
    "granitemoehybrid",
    "falcon_h1",
    "bamba",
    "olmo_hybrid",
    "recurrent_gemma",
    "gemma4_text",
    "gemma3n_text",
]

WITHOUT_A_DEFAULT = {"hunyuan_v1_dense", "hunyuan_v1_moe", "ministral", "nemotron"}
"""Types whose default config leaves sizes open, so that no model can be built from it."""


def test_every_type_of_the_installed_transformers_is_listed():
    assert set(known_types()) == set(EXPECTED)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", [name for name, units in EXPECTED.items() if units])
def test_what_is_listed_is_proven_and_read_at_its_full_size(name):
    """The small model shows every kind of layer, even one that comes late, and stands for longer lists.

    Both are tested together, because the family that is derived for the first is kept for the second.
    """
    units = [unit for unit in PROVEN_AGAIN if unit in EXPECTED[name]]
    assert support_of(name, units).units == tuple(units)
    if name in WITHOUT_A_DEFAULT:
        with pytest.raises(ModelError, match="a model that cannot be built"):
            Shape.of(default_config(name))
    else:
        assert Shape.of(default_config(name)).parameters > 0


@pytest.mark.parametrize("name", [name for name, units in EXPECTED.items() if not units][:12])
def test_a_type_that_nothing_can_be_removed_from_has_a_reason(name):
    support = support_of(name, ())
    assert support.units == ()
    assert support.reason


@pytest.mark.parametrize(
    ("units", "least"), [({"neurons"}, 100), ({"layers"}, 90), ({"groups", "heads"}, 60), ({"experts"}, 30)]
)
def test_so_many_types_can_lose_these_units(units, least):
    assert sum(bool(units & set(proven)) for proven in EXPECTED.values()) >= least


@pytest.mark.parametrize("name", NAMED)
def test_every_dense_type_can_lose_layers_and_tokens(name):
    assert {"layers", "vocabulary"} <= set(EXPECTED[name])


@pytest.mark.parametrize("name", HYBRID)
def test_every_hybrid_type_can_lose_tokens_and_neurons_or_layers(name):
    assert "vocabulary" in EXPECTED[name]
    assert {"neurons", "layers"} & set(EXPECTED[name])


def test_four_in_five_types_that_nobody_listed_can_lose_neurons_or_layers():
    listed = {*NAMED, *HYBRID, *MIXTURES, *FAMILIES}
    whole = [name for name in EXPECTED if name not in listed and not CONFIG_MAPPING[name].sub_configs]
    assert len(whole) >= 100
    can = [name for name in whole if {"neurons", "layers"} & set(EXPECTED[name])]
    assert len(can) >= 0.8 * len(whole)


def test_the_documentation_lists_what_is_proven():
    documented = DOCUMENTED.read_text(encoding="utf-8").splitlines()
    assert [line for line in documented if line.startswith("|")] == list(table(EXPECTED))
