"""What llama.cpp cannot compute is known from the config, so that no one waits for a file that is then refused."""

import pytest
import torch
from transformers import CONFIG_MAPPING

import pruning
from pruning.sharing.gguf import export_and_compare, gguf_types, limits
from pruning.sharing.gguf.converter_child.config_keys import leading_period
from pruning.sharing.gguf.expect import prompt_lengths
from pruning.sharing.gguf.limits import limit_of
from pruning.sharing.gguf.printed import last_line
from tests.helpers.models import _build, config, tokenizer

pytestmark = pytest.mark.usefixtures("converted_quickly")

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


MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LLAMA_4 = {"intermediate_size_mlp": 48, "num_local_experts": 4, "head_dim": 8}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
SECTIONS = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.25,
    "mrope_section": [1, 1, 0],
}
AFMOE = MIXTURE | {"num_shared_experts": 1, "head_dim": 8, "sliding_window": 16, "mup_enabled": True}
SOLAR = {"n_routed_experts": 4, "num_experts_per_tok": 4, "moe_intermediate_size": 16, "head_dim": 8}
LAGUNA = MIXTURE | {"shared_expert_intermediate_size": 16, "head_dim": 8, "sliding_window": 16}
KINDS = {"layer_types": ["conv", "full_attention", "conv", "full_attention"]}


def bases(full, sliding):
    """Return the parameters of rotary embeddings that have two bases."""
    kinds = {"full_attention": full, "sliding_attention": sliding}
    return {kind: {"rope_type": "default", "rope_theta": base} for kind, base in kinds.items()}


UNOPENED = {
    "Phi that norms its queries": ("phi", {}, {"qk_layernorm": True}, "qk_layernorm: False"),
    "Falcon one after the other": ("falcon", {}, {"parallel_attn": False}, "parallel_attn: True"),
    "Falcon by distance": ("falcon", {}, {"alibi": True}, "alibi: False"),
    "Falcon with biases": ("falcon", {}, {"bias": True}, "bias: False"),
    "Qwen 2 with a dense layer": ("qwen2_moe", MIXTURE, {"mlp_only_layers": [1]}, "none in layers 1 "),
    "Qwen 3 with a dense layer": (
        "qwen3_moe",
        MIXTURE | {"norm_topk_prob": True},
        {"mlp_only_layers": [0, 2]},
        "none in layers 0, 2 ",
    ),
    "Qwen 3 with every second layer dense": (
        "qwen3_moe",
        MIXTURE | {"norm_topk_prob": True},
        {"decoder_sparse_step": 2},
        "none in layers 0, 2 ",
    ),
    "Qwen 3 whose experts' shares do not add up to one": (
        "qwen3_moe",
        MIXTURE | {"norm_topk_prob": True},
        {"norm_topk_prob": False},
        "norm_topk_prob: True",
    ),
    "LFM2 of attention alone": ("lfm2", KINDS, {"layer_types": ["full_attention"] * 4}, "of the kind conv "),
    "LFM2 of convolutions alone": (
        "lfm2",
        KINDS,
        {"layer_types": ["conv"] * 4},
        "of the kind full_attention ",
    ),
    "LFM2 with biases": ("lfm2", KINDS, {"conv_bias": True}, "conv_bias: False"),
    "MiniCPM 3 with logits of another scale": (
        "minicpm3",
        {},
        {"dim_model_base": 16},
        "dim_model_base: 256",
    ),
    "EXAONE 4 with a window": (
        "exaone4",
        {"sliding_window": None, "layer_types": ["full_attention"] * 4},
        {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"] * 2},
        "no sliding window",
    ),
    "Cohere 2 with another pattern": (
        "cohere2",
        {"sliding_window": 16, "layer_types": [*3 * ["sliding_attention"], "full_attention"]},
        {"layer_types": ["sliding_attention", "full_attention"] * 2},
        "every 4th layer",
    ),
    "Qwen 3.5 with another pattern": (
        "qwen3_5_text",
        {"layer_types": ["linear_attention", "full_attention"] * 2},
        {"layer_types": ["linear_attention", "full_attention", "full_attention", "linear_attention"]},
        "(layer_types)",
    ),
    "AFMoE with embeddings that are not scaled": (
        "afmoe",
        AFMOE,
        {"mup_enabled": False},
        "mup_enabled: True",
    ),
    "AFMoE with another pattern": (
        "afmoe",
        AFMOE,
        {"layer_types": ["sliding_attention", "full_attention"] * 2},
        "every 4th layer",
    ),
    "AFMoE without a window": ("afmoe", AFMOE, {"layer_types": ["full_attention"] * 4}, "every 4th layer"),
    "Laguna with capped routers": (
        "laguna",
        LAGUNA,
        {"moe_router_logit_softcapping": 30.0},
        "moe_router_logit_softcapping: 0.0",
    ),
    "Laguna with a window in the first layer": (
        "laguna",
        LAGUNA,
        {"layer_types": ["sliding_attention", "full_attention"] * 2},
        "gives the first layer",
    ),
    "gpt-oss with another pattern": (
        "gpt_oss",
        {"sliding_window": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        {"layer_types": [*2 * ["sliding_attention"], *2 * ["full_attention"]]},
        "every 2nd layer",
    ),
    "dots.llm1 with grouped queries": (
        "dots1",
        {"num_key_value_heads": 4, "sliding_window": None},
        {"num_key_value_heads": 2},
        "4 heads share 2 in this one",
    ),
    "OLMoE with grouped queries": (
        "olmoe",
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 2},
        "4 heads share 2 in this one",
    ),
    "Mellum with two bases": (
        "mellum",
        {"layer_types": [*3 * ["sliding_attention"], "full_attention"], "rope_parameters": bases(5e5, 5e5)},
        {"rope_parameters": bases(5e5, 1e4)},
        "says 500000, and 10000 for layers with a sliding window",
    ),
    "Mellum whose experts' shares do not add up to one": (
        "mellum",
        {},
        {"norm_topk_prob": False},
        "norm_topk_prob: True",
    ),
    "DeepSeek 3.2 with small heads of indexers": (
        "deepseek_v32",
        {"index_head_dim": 64},
        {"index_head_dim": 16},
        "at least 64, and the config of this one says 16",
    ),
    "Gemma 3n of another rank": (
        "gemma3n_text",
        {"num_hidden_layers": 25, "num_kv_shared_layers": 5},
        {"laurel_rank": 8},
        "laurel_rank: 64",
    ),
    "Gemma 3n with fewer keys": (
        "gemma3n_text",
        {"num_hidden_layers": 25, "num_kv_shared_layers": 5},
        {"num_kv_shared_layers": 6},
        "and 19 of this one do",
    ),
    "YaRN that is not rounded": (
        "gpt_oss",
        {"rope_parameters": YARN | {"truncate": True}},
        {"rope_parameters": YARN | {"truncate": False}},
        "(rope_parameters, truncate: False)",
    ),
    "Llama 4 with three layers": ("llama4_text", LLAMA_4, {"num_hidden_layers": 3}, "at least 4 layers"),
    "Llama 4 that turns other layers": (
        "llama4_text",
        LLAMA_4,
        {"no_rope_layers": [1, 1, 0, 1]},
        "no_rope_layers",
    ),
    "Llama 4 with small chunks": ("llama4_text", LLAMA_4, {"attention_chunk_size": 16}, "says 16 "),
    "Llama 4 with experts elsewhere": (
        "llama4_text",
        LLAMA_4 | {"interleave_moe_layer_step": 2},
        {"moe_layers": [0, 2]},
        r"experts in layers 1, 3 of this model (interleave_moe_layer_step: 2), and they are in 0, 2",
    ),
}


@pytest.mark.parametrize("name", UNOPENED)
def test_what_llama_cpp_would_not_open_is_named_with_its_value(name):
    family, sizes, values, reason = UNOPENED[name]
    assert limit_of(CONFIG_MAPPING[family](**SIZES | sizes)) == ""
    limit = limit_of(CONFIG_MAPPING[family](**SIZES | sizes | values))
    assert reason in limit
    assert next(iter(values)) in limit or "layers" in limit
    assert limit.endswith(("transformers instead.", "with transformers.", "Remove fewer.", "other layers."))


def test_layers_of_llama_4_are_checked_before_a_file_is_written(tmp_path):
    base = tmp_path / "base"
    _build(CONFIG_MAPPING["llama4_text"](**SIZES | LLAMA_4)).save_pretrained(base)
    tokenizer().save_pretrained(base)
    recipe = pruning.Recipe(base=str(base), steps=[pruning.Layers(layers=(1,))])
    cut = pruning.run(recipe, evaluate=False).save(tmp_path / "cut")
    said = []
    with pytest.raises(pruning.ModelError, match="with at least 4 layers, and this one has 3"):
        export_and_compare(cut, tmp_path / "cut.gguf", progress=said.append)
    assert said == []


def save_kind(folder, family, values):
    """Save a small model of any type, of whose weights none is zero or one, with a tokenizer."""
    model = _build(CONFIG_MAPPING[family](**SIZES | values))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.1
        parameter.copy_(parameter + noise if parameter.ndim == 1 else noise)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("lfm2", r"ended without an answer \(ggml-backend\.cpp:\d+: GGML_ASSERT\(buffer\) failed\)"),
        ("phi", r"llama.cpp's converter cannot read .*: it has no place for the tensor .*_layernorm\.bias\."),
    ],
)
def test_what_is_not_known_yet_is_told_by_the_last_line_of_the_program(family, reason, tmp_path, monkeypatch):
    monkeypatch.delitem(limits.ARCHITECTURES, family)
    folder = save_kind(tmp_path / "model", family, {"qk_layernorm": True})
    with pytest.raises(pruning.ModelError, match=reason) as error:
        export_and_compare(folder, tmp_path / "a.gguf")
    assert "\n" not in str(error.value)
    assert "/" not in str(error.value)


def test_sizes_that_llama_cpp_derives_from_others_are_named(tmp_path):
    folder = save_kind(tmp_path / "model", "cohere", {"head_dim": 16})
    with pytest.raises(pruning.ModelError, match=r"blk\.0\.attn_q\.weight: 32 × 32 in place of 32 × 64"):
        export_and_compare(folder, tmp_path / "a.gguf")


def test_a_last_line_has_no_path_and_no_end():
    line = last_line(
        "first\nOSError: '/home/me/model/a.safetensors' is 1/2 read, and/or wrong\n\nWriting: 3%\r"
    )
    assert line == "OSError: 'a.safetensors' is 1/2 read, and/or wrong"
    assert last_line("") == ""
    assert len(last_line("word " * 1000)) < 210


@pytest.mark.parametrize(
    ("values", "reason"),
    [({"hidden_act": "relu2"}, "says relu2"), ({"tie_word_embeddings": False}, "this one has two")],
)
def test_what_differs_in_bitnet_is_named(values, reason):
    sizes = SIZES | {"hidden_act": "silu", "tie_word_embeddings": True}
    assert limit_of(CONFIG_MAPPING["bitnet"](**sizes)) == ""
    assert reason in limit_of(CONFIG_MAPPING["bitnet"](**sizes | values))


def test_experts_that_the_converter_reads_in_4_bits_alone_are_named():
    assert "in 4 bits alone (MXFP4)" in limit_of(CONFIG_MAPPING["deepseek_v4"]())


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


@pytest.mark.parametrize(
    ("steps", "is_limited"),
    [
        ([pruning.Layers(layers=(4, 5, 6, 7))], False),
        ([pruning.Layers(layers=(1,))], True),
        ([pruning.Layers(count=4, method="first")], False),
        ([pruning.Layers(count=1, method="first")], True),
        ([pruning.Layers(layers=(0, 1)), pruning.Layers(layers=(0, 1))], False),
        ([pruning.Layers(layers=(0, 1)), pruning.Layers(layers=(0,))], True),
    ],
)
def test_a_preview_knows_a_limit_that_depends_on_named_layers(tmp_path, steps, is_limited):
    whole = CONFIG_MAPPING["smollm3"](**SIZES | {"num_hidden_layers": 8})
    _build(whole).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    recipe = pruning.Recipe(base=str(tmp_path), steps=steps)
    before = pruning.preview(recipe).after
    after = pruning.run(recipe, evaluate=False).shape
    assert before.config.no_rope_layers == after.config.no_rope_layers
    for shape in (before, after):
        assert all(("no_rope_layers" in reason) == is_limited for reason in gguf_types(shape).values())


def test_a_limit_that_depends_on_layers_which_data_chooses_is_known_right_after_the_cut(tmp_path):
    whole = CONFIG_MAPPING["smollm3"](**SIZES | {"num_hidden_layers": 8})
    _build(whole).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    calibration = pruning.Calibration(text="general", tokens=256)
    step = pruning.Layers(count=1, method="influence")
    pruned = pruning.run(
        pruning.Recipe(base=str(tmp_path), steps=[step], calibration=calibration), evaluate=False
    )
    assert pruned.layers != tuple(range(7))
    assert "no_rope_layers" in gguf_types(pruned.shape)["f16"]


def test_a_text_is_longer_than_a_chunk_of_attention():
    chunked = CONFIG_MAPPING["llama4_text"](max_position_embeddings=4096, attention_chunk_size=1024)
    assert prompt_lengths(chunked) == [28, 480, 1088]


LATENT = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 4,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
HYBRID = {
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 4,
    "shared_intermediate_size": 16,
    "hidden_size": 64,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
}

MOVED = {
    "cohere2": {"sliding_window": 16},  # Its share of rotated channels is not in its config any more.
    "ministral3": {},  # The converter's class for it hands all work to another one.
    "stablelm": {"qk_layernorm": True},  # The converter drops these norms.
    "falcon": {
        "ffn_hidden_size": 80
    },  # transformers writes all heads as groups; the converter takes 4 times 32.
    "phi": {"num_key_value_heads": 4, "intermediate_size": 80},  # The converter takes 4 times the channels.
    "gpt_bigcode": {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_inner": 80},
    # The config does not say how the router scores experts.
    "deepseek_v3": LATENT | {"first_k_dense_replace": 1},
    # Every second layer has full attention, not each fourth, and none predicts further tokens.
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"] * 2, "head_dim": 16}
    | {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    }
    | {"rope_parameters": SECTIONS},
    # Heads of another size in layers that read the whole text, and inputs of its own for each layer.
    "gemma4_text": {"head_dim": 16, "global_head_dim": 16, "hidden_size_per_layer_input": 8}
    | {"vocab_size_per_layer_input": len(tokenizer()), "num_kv_shared_layers": 0, "sliding_window": 16},
    # Half of each head is rotated.
    "bamba": {"attn_layer_indices": [1, 3], "attention_bias": True, "mamba_n_heads": 4, "mamba_d_state": 8},
    "qwen2_moe": MIXTURE,
    "qwen3_moe": MIXTURE | {"norm_topk_prob": True},
    "lfm2": KINDS,
    "llama4_text": LLAMA_4,
    # Its routers' shares always add up to one, and its config does not say so.
    "afmoe": AFMOE,
    # Its heads rotate as a whole, and the converter takes half of each.
    "solar_open": SOLAR,
    # Every third layer reads the whole text, beginning with the first.
    "laguna": LAGUNA | {"layer_types": ["full_attention", *2 * ["sliding_attention"], "full_attention"]},
    # One matrix for queries, keys and values, under other names than those of its class.
    "sarvam_moe": {
        "n_routed_experts": 4,
        "head_dim": 16,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 16,
    },
    # The converter reads lists with a number for each layer.
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 4, "head_dim": 8},
    "minimax_m2": {"num_local_experts": 4, "num_experts_per_tok": 4, "head_dim": 16}
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    # Its tokenizer splits marks together with letters.
    "qwen3_5_moe_text": {"layer_types": ["linear_attention", "full_attention"] * 2, "head_dim": 16}
    | {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8}
    | {"linear_value_head_dim": 8, "shared_expert_intermediate_size": 16, "num_experts": 4}
    | {"num_experts_per_tok": 4, "moe_intermediate_size": 16, "rope_parameters": SECTIONS},
    # The size of its heads is not in its config.
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8},
    # The converter rounds its weights, and its norms have other names.
    "bitnet": {"hidden_act": "silu", "tie_word_embeddings": True},
    # transformers saves its dense layer under the name of experts, and other keys than are published.
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"] * 2, "num_key_value_heads": 4}
    | {"kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
    | {
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 16,
    },
    # The keys of its layers with a window are not in its config, which has another form.
    "mimo_v2_flash": {"head_dim": 24, "v_head_dim": 16, "sliding_window": 16, "n_routed_experts": 4}
    | {"num_experts_per_tok": 4, "moe_intermediate_size": 16},
    # The converter divides the neurons of dense layers by the groups for those of shared experts.
    "ernie4_5_moe": {
        "moe_num_experts": 4,
        "moe_k": 4,
        "moe_intermediate_size": 16,
        "moe_num_shared_experts": 2,
    },
    "granitemoehybrid": HYBRID,  # transformers has renamed the kinds of layers.
    "glm4_moe_lite": LATENT,  # The config lists the layers without experts instead of counting them.
    # The config leaves out how the router scores experts, and llama.cpp expects a rank that the model has not.
    "sarvam_mla": LATENT | {"q_lora_rank": None, "first_k_dense_replace": 1},
    "mellum": MIXTURE,  # The config says how wide a window is, and no layer has one.
}


@pytest.mark.parametrize("family", MOVED)
def test_a_family_whose_converter_fails_by_itself_is_exported(family, tmp_path):
    folder = tmp_path / "model"
    save_kind(folder, family, MOVED[family])
    exported = export_and_compare(folder, tmp_path / "a.gguf")
    assert exported.differences[-1].tokens >= 480
    assert all(each.largest < 0.05 for each in exported.differences)


def test_yarn_with_a_factor_of_attention_in_the_config_is_exported(tmp_path):
    folder = tmp_path / "model"
    save_kind(folder, "llama", {"rope_parameters": YARN | {"attention_factor": 1.5}})
    exported = export_and_compare(folder, tmp_path / "a.gguf")
    assert all(each.largest < 0.05 for each in exported.differences)


@pytest.mark.parametrize("family", ["laguna", "mellum"])
def test_a_window_that_no_layer_has_is_left_out(family, tmp_path):
    folder = tmp_path / "model"
    save_kind(folder, family, MIXTURE | {"head_dim": 8, "sliding_window": 16})
    exported = export_and_compare(folder, tmp_path / "a.gguf")
    assert all(each.largest < 0.05 for each in exported.differences)


@pytest.mark.parametrize(
    ("full", "period"),
    [
        ((0,), 5),
        ((0, 2, 4), 2),
        ((0, 4), 4),
        ((0, 3), 3),
        ((0, 1, 2, 3, 4), 1),
        ((0, 2), None),
        ((1, 3), None),
    ],
)
def test_layers_that_read_the_whole_text_are_counted_from_the_first(full, period):
    kinds = ["full_attention" if layer in full else "sliding_attention" for layer in range(5)]
    assert leading_period(kinds) == period


def test_a_window_that_is_too_long_to_compare_is_said(tmp_path):
    folder = tmp_path / "model"
    values = SIZES | {"sliding_window": 9000, "max_position_embeddings": 16384, "layer_types": None}
    _build(CONFIG_MAPPING["cohere2"](**values)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    exported = export_and_compare(folder, tmp_path / "a.gguf")
    assert [each.tokens for each in exported.differences] == [28, 480]
    assert "Texts longer than the window of 9,000 tokens are not compared with llama.cpp." in exported.notes
