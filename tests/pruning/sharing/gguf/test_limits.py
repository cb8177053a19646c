"""What llama.cpp cannot compute is known from the config, so that no one waits for a file that is then refused."""

import pytest
from transformers import CONFIG_MAPPING

import pruning
from pruning.sharing.gguf import export_and_compare
from pruning.sharing.gguf.compare import prompt_lengths
from pruning.sharing.gguf.limits import limit_of
from tests.helpers.models import _build, config, tokenizer

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "vocab_size": len(tokenizer()),
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}

REFUSED = {
    "scores divided by the number of a layer": (
        "gpt2",
        {"scale_attn_by_inverse_layer_idx": True},
        "scale_attn_by_inverse_layer_idx: False",
    ),
    "scores that are not scaled": ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights: True"),
    "GPT-NeoX without biases": ("gpt_neox", {"attention_bias": False}, "attention_bias: True"),
    "Gemma 2 without a cap": ("gemma2", {"final_logit_softcapping": None}, "always caps scores"),
    "Gemma 3 with capped scores": ("gemma3_text", {"attn_logit_softcapping": 5.0}, "says 5.0"),
    "Gemma 3 that reads both ways": (
        "gemma3_text",
        {"use_bidirectional_attention": True},
        "use_bidirectional_attention: False",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_option_that_llama_cpp_does_not_have_is_named(name):
    family, values, reason = REFUSED[name]
    assert reason in limit_of(config(family, **values))
    assert limit_of(config(family)) == ""


def test_a_window_of_starcoder_2_is_named():
    assert "no sliding window" in limit_of(CONFIG_MAPPING["starcoder2"](**SIZES, sliding_window=16))
    assert limit_of(CONFIG_MAPPING["starcoder2"](**SIZES, sliding_window=None)) == ""


def test_layers_without_rotation_are_named_once_a_cut_moves_them(tmp_path):
    base, cut = tmp_path / "base", tmp_path / "cut"
    whole = CONFIG_MAPPING["smollm3"](**SIZES | {"num_hidden_layers": 8})
    assert limit_of(whole) == ""
    _build(whole).save_pretrained(base)
    tokenizer().save_pretrained(base)
    for layers, is_limited in (((4, 5, 6, 7), False), ((1,), True)):
        recipe = pruning.Recipe(base=str(base), steps=[pruning.Layers(layers=layers)])
        pruned = pruning.run(recipe, evaluate=False)
        assert ("no_rope_layers" in limit_of(pruned.model.config)) == is_limited
    pruned.save(cut)
    with pytest.raises(pruning.ModelError, match="leaves out the rotary embedding in layer 4"):
        export_and_compare(cut, tmp_path / "cut.gguf")


def test_a_text_is_longer_than_a_chunk_of_attention():
    chunked = CONFIG_MAPPING["llama4_text"](max_position_embeddings=4096, attention_chunk_size=1024)
    assert prompt_lengths(chunked) == [28, 480, 1088]


MOVED = {
    "cohere2": {"sliding_window": 16},  # Its share of rotated channels is not in its config any more.
    "ministral3": {},  # The converter's class for it hands all work to another one.
}


@pytest.mark.parametrize("family", MOVED)
def test_a_family_whose_converter_fails_by_itself_is_exported(family, tmp_path):
    folder = tmp_path / "model"
    _build(CONFIG_MAPPING[family](**SIZES, **MOVED[family])).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    exported = export_and_compare(folder, tmp_path / "a.gguf")
    assert exported.differences[-1].tokens >= 480
    assert all(each.largest < 0.05 for each in exported.differences)


def test_a_window_that_is_too_long_to_compare_is_said(tmp_path):
    folder = tmp_path / "model"
    values = SIZES | {"sliding_window": 9000, "max_position_embeddings": 16384, "layer_types": None}
    _build(CONFIG_MAPPING["cohere2"](**values)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    exported = export_and_compare(folder, tmp_path / "a.gguf")
    assert [each.tokens for each in exported.differences] == [28, 480]
    assert "Texts longer than the window of 9,000 tokens are not compared with llama.cpp." in exported.notes
