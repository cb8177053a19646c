"""Configs with values of every wrong kind: each one is refused with a sentence, or describes a model."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pruning
from pruning.architectures import anatomy
from pruning.loading.checks import MAX_LAYERS, check_config
from pruning.loading.load import find
from tests.helpers.models import FAMILIES, folder_of


def values_of(family="llama"):
    return json.loads((folder_of(family) / "config.json").read_text())


def outcome(values):
    """The refusal, or None; any other exception is a fault."""
    try:
        check_config(json.loads(json.dumps(values)), "ada/model")
    except pruning.ModelError as error:
        message = str(error)
        assert 10 < len(message) < 700
        assert "\n" not in message
        return message
    return None


WRONG = ["x", "", "9", -1, 0, 2**62, 10**300, -1.5, float("nan"), float("inf"), True, None, [], [1], [[]] * 3, {},
         {"a": 1}, {"rope_type": "x"}, {"rope_type": "yarn", "factor": "x"}]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_wrong_value_for_any_key_is_a_sentence(family):
    values = values_of(family)
    for number, key in enumerate(
        sorted({*values, "rope_scaling", "rope_parameters", "num_labels", "id2label"})
    ):
        # Every key meets every kind of value in some family, and each family every ninth.
        for wrong in WRONG[(number + FAMILIES.index(family)) % 9 :: 9]:
            outcome(values | {key: wrong})


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)


@given(
    st.sampled_from(FAMILIES),
    st.dictionaries(st.sampled_from(sorted({*values_of(), "rope_scaling"})), JSON, max_size=3),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_json_in_a_config_is_a_sentence_or_a_model(family, changes):
    outcome(values_of(family) | changes)


ABSURD = {
    "layers": {"num_hidden_layers": MAX_LAYERS + 1},
    "layers under another name": {"n_layer": 10**9},
    "a vocabulary": {"vocab_size": 10**10},
    "a width": {"hidden_size": 10**8},
    "neurons": {"intermediate_size": 10**9},
    "heads": {"num_attention_heads": 10**8},
    "classes": {"num_labels": 10**9},
    "a number with many digits": {"anything": 10**400},
    "many values": {"id2label": {str(number): "x" for number in range(30_000)}},
    "a nested list": {"rope_scaling": {"short_factor": [1.0] * 50_000}},
    "a long text": {"chat_template": "x" * 300_000},
}


@pytest.mark.parametrize("case", ABSURD)
def test_an_absurd_config_is_refused_before_any_of_it_is_built(case, monkeypatch):
    monkeypatch.setattr(anatomy, "build_on_meta", lambda *_, **__: pytest.fail("it was built"))
    message = outcome(values_of() | ABSURD[case])
    assert "config" in message


def test_a_config_with_512_layers_is_accepted_and_one_more_is_not():
    assert outcome(values_of("gpt2") | {"n_layer": MAX_LAYERS}) is None
    assert "513" in outcome(values_of("gpt2") | {"n_layer": MAX_LAYERS + 1})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xef\xbb\xbf{}", "cannot be read"),
        (b'{"model_type": "llama"', "cannot be read"),
        (b"", "cannot be read"),
        (b"\xff\xfe{}", "cannot be read"),
        (b'{"a": ' * 300_000, "nested too deeply|has 1.8 MB"),
        (b'{"vocab_size": ' + b"9" * 5_000 + b"}", "cannot be read"),
        (b'{"model_type": "llama", "model_type": "t5"}', "'t5' cannot be pruned here"),
        (b'{"model_type": ["llama"]}', "cannot be pruned here"),
        (b'{"model_type": {}}', "cannot be pruned here"),
        (b"null", "is not a JSON object"),
    ],
)
def test_a_config_that_is_not_usable_json_is_a_sentence(tmp_path, content, reason):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(pruning.ModelError) as error:
        find(str(tmp_path))
    assert any(part in str(error.value) for part in reason.split("|")), error.value
