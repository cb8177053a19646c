"""What the converter gets wrong by itself comes out right; a light sample of `python -m benchmarks gguf_matrix`."""

import json

import pytest
from gguf import GGUFReader
from transformers import AutoTokenizer

import pruning
from pruning.sharing.gguf import export_and_compare
from tests.helpers.models import _build, config, save_tiny
from tests.helpers.sentencepiece import sentencepiece_folder

pytestmark = pytest.mark.usefixtures("converted_quickly")

QUICK = {"criterion": "l2", "repair": False}
WIDE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 32}

CASES = {
    "Phi-3 with fewer key/value groups": (
        "phi3",
        WIDE,
        pruning.Heads(groups=1, criterion="weights", repair=False),
    ),
    "Qwen 2 with fewer query heads": (
        "qwen2",
        WIDE,
        pruning.Heads(queries=1, criterion="weights", repair=False),
    ),
    "Phi-3 with fewer channels": ("phi3", WIDE, pruning.Channels(hidden_size=32, repair=False)),
    "GPT-2 with fewer neurons": ("gpt2", {}, pruning.Neurons(intermediate_size=32, **QUICK)),
    "GPT-NeoX with a part of its tokens": ("gpt_neox", {"rotary_pct": 0.5}, pruning.Vocabulary(fraction=0.1)),
    "Gemma 3 without two layers": (
        "gemma3_text",
        {"num_hidden_layers": 8},
        pruning.Layers(layers=(1, 2)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_cut_model_computes_the_same_in_llama_cpp(name, tmp_path):
    family, sizes, step = CASES[name]
    base = save_tiny(tmp_path / "base", family, **sizes)
    calibration = pruning.Calibration(text="general", tokens=512)
    recipe = pruning.Recipe(base=str(base), calibration=calibration, steps=[step])
    folder = pruning.run(recipe, evaluate=False).save(tmp_path / "cut")
    exported = export_and_compare(folder, tmp_path / "cut.gguf")
    assert all(each.largest < 0.05 for each in exported.differences)
    window = {"gemma3_text": 16}.get(family)
    assert [each.tokens for each in exported.differences] == sorted({28, 480, (window or 416) + 64})


@pytest.mark.parametrize("with_model_file", [True, False])
def test_a_sentencepiece_tokenizer_keeps_its_order_of_merges(with_model_file, tmp_path):
    folder = sentencepiece_folder(tmp_path / "model", with_model_file=with_model_file)
    exported = export_and_compare(folder, tmp_path / "model.gguf")  # It compares the tokens of texts.
    fields = GGUFReader(exported.file).fields
    assert fields["tokenizer.ggml.model"].contents() == "llama"
    assert len(set(fields["tokenizer.ggml.scores"].contents())) > 400
    # Where llama.cpp writes other spaces, the export says so.
    assert [remark for remark in exported.remarks if "special token" in remark]
    assert set(exported.remarks) <= set(exported.notes)


def test_a_tokenizer_that_normalizes_text_is_refused_with_the_cause(tmp_path):
    folder = sentencepiece_folder(tmp_path / "model", with_model_file=False)
    rules = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(rules | {"normalizer": {"type": "Lowercase"}}))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(pruning.ModelError, match=r"normalizes the text first, and llama\.cpp does not"):
        export_and_compare(folder, tmp_path / "model.gguf")


@pytest.mark.parametrize("kind", ["byte-level", "SentencePiece"])
def test_a_token_that_the_model_has_no_row_for_is_left_out_and_said(kind, tmp_path):
    folder = tmp_path / "model"
    if kind == "byte-level":
        save_tiny(folder, "gemma3_text")
    else:
        sentencepiece_folder(folder, with_model_file=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    assert len(tokenizer) == rows
    tokenizer.add_tokens(["<image_soft_token>"], special_tokens=True)  # As Gemma 3's text models have it.
    tokenizer.save_pretrained(folder)
    exported = export_and_compare(folder, tmp_path / "model.gguf")
    tokens = GGUFReader(exported.file).fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == rows
    assert "<image_soft_token>" not in tokens
    assert any("has no row for <image_soft_token>" in remark for remark in exported.notes)


LIMITS = {
    "mistral": ({"sliding_window": 16}, "no sliding window for models of type mistral"),
    "qwen2": (
        {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1},
        "texts of more than 8 tokens",
    ),
    "phi3": ({"sliding_window": 32}, "no sliding window for models of type phi3"),
    "qwen3": ({"attention_bias": True}, "no bias after attention"),
    "gemma2": ({"query_pre_attn_scalar": 11}, "query_pre_attn_scalar"),
    "llama": ({"hidden_act": "relu"}, "computes silu in models of type llama"),
    "gemma3_text": (
        {
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
        "do not follow such a pattern",
    ),
}


@pytest.mark.parametrize("family", LIMITS)
def test_what_llama_cpp_cannot_express_is_refused_with_its_cause(family, tmp_path):
    values, reason = LIMITS[family]
    folder = tmp_path / "model"
    _build(config(family, **values)).save_pretrained(folder)
    with pytest.raises(pruning.ModelError, match=reason):
        export_and_compare(folder, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


def test_a_chat_template_and_the_special_tokens_are_in_the_file(tmp_path):
    folder = save_tiny(tmp_path / "model", "llama")
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}{{ message.content }}{% endfor %}"
    )
    exported = export_and_compare(folder, tmp_path / "model.gguf")
    fields = GGUFReader(exported.file).fields
    assert "message.content" in fields["tokenizer.chat_template"].contents()
    ids = json.loads((folder / "config.json").read_text())
    assert fields["tokenizer.ggml.bos_token_id"].contents() == ids["bos_token_id"]
    assert fields["tokenizer.ggml.eos_token_id"].contents() == ids["eos_token_id"]
    assert fields["tokenizer.ggml.add_bos_token"].contents() is True
    assert exported.run["llama.cpp"] == "llama-cli -m model.gguf"
