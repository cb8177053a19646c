"""K-quants: packed by llama.cpp, offered where most of the bytes fit, and within their own bounds."""

import sys

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize
from transformers import CONFIG_MAPPING

import pruning
from pruning.architectures.shape import Shape
from pruning.cli import main
from pruning.progress import silent
from pruning.sharing.gguf import GGUF_TYPES, export, export_and_compare, gguf_types, k_quants
from pruning.sharing.gguf.compare import compare
from pruning.sharing.gguf.expect import expect
from pruning.sharing.gguf.quantize import quantize, round_weights
from pruning.sharing.verify import verify
from tests.helpers.models import config, folder_of, loaded

pytestmark = pytest.mark.usefixtures("converted_quickly")

SIZES = {
    "qwen3": {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "attention_bias": False},
    "gpt2": {"n_embd": 256, "n_inner": 512},
}
ERRORS = {"q4_k_s": 0.09, "q5_k_s": 0.045, "q6_k": 0.022}
"""How far rounded weights may lie from the weights, by the root of the mean square, over that of the weights."""

K_QUANTS = [name for name, kind in GGUF_TYPES.items() if kind.is_k_quant]


def shape(model_type="qwen3", **sizes):
    return Shape.of(config(model_type, **(SIZES[model_type] | sizes)))


def wide(**sizes):
    return folder_of("qwen3", **(SIZES["qwen3"] | sizes))


def weights(tensor):
    return np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)


def test_every_k_quant_has_a_bound_between_those_of_the_types_around_it():
    assert set(K_QUANTS) == set(ERRORS)
    order = ("q8_0", "q6_k", "q5_k_s", "q5_0", "q4_k_s", "q4_0")
    for bound in ("largest", "mean"):
        bounds = [getattr(GGUF_TYPES[name], bound) for name in order]
        assert bounds == sorted(set(bounds))


@pytest.mark.parametrize("family", SIZES)
@pytest.mark.parametrize("type", K_QUANTS)
def test_a_k_quant_is_opened_by_llama_cpp_and_agrees_within_its_bound(family, type, tmp_path):
    folder, kind = folder_of(family, **SIZES[family]), GGUF_TYPES[type]
    exported = export_and_compare(folder, tmp_path / "model.gguf", type)
    assert all(each.is_within(kind) for each in exported.differences)
    reader = GGUFReader(exported.file)
    matrices = {each.name: each.tensor_type.name for each in reader.tensors if len(each.shape) == 2}
    matrices.pop("position_embd.weight", None)
    assert set(matrices.values()) == {kind.tensor_type.upper()}
    assert ("in f32" in exported.fallback) == (family == "gpt2")  # Its position embeddings.


@pytest.mark.parametrize("type", K_QUANTS)
def test_a_file_says_its_type_and_is_verified_within_its_bound(type, tmp_path):
    file = export(wide(), tmp_path / "model.gguf", type)
    checks = {check.name: check.holds for check in verify(str(file)).checks}
    assert checks["opened"] is checks["log-probabilities"] is True


@pytest.mark.parametrize("type", K_QUANTS)
def test_packed_weights_are_near_the_weights_and_those_that_are_measured(type, tmp_path):
    model = loaded("qwen3", **SIZES["qwen3"]).model
    rounded = round_weights(model, type)
    held = {tensor.name: tensor for tensor in GGUFReader(export(wide(), tmp_path / "a.gguf", type)).tensors}
    names = {"token_embd": "model.embed_tokens", "blk.1.ffn_down": "model.layers.1.mlp.down_proj"}
    for name, ours in names.items():
        values = weights(held[f"{name}.weight"])
        before, after = (each.get_parameter(f"{ours}.weight").numpy() for each in (model, rounded))
        assert 0 < np.square(values - before).mean() ** 0.5 < ERRORS[type] * before.std()
        np.testing.assert_array_equal(after, values)


@pytest.mark.parametrize("type", K_QUANTS)
def test_rows_that_do_not_fit_fall_back_and_the_export_says_their_share(type, tmp_path):
    folder = wide(intermediate_size=480)
    exported = export_and_compare(folder, tmp_path / "model.gguf", type)
    other = {"q4_k_s": "q5_0", "q5_k_s": "q5_1", "q6_k": "q8_0"}[type]
    tensors = [tensor for tensor in GGUFReader(exported.file).tensors if len(tensor.shape) == 2]
    fallen = {tensor.name for tensor in tensors if tensor.tensor_type.name.lower() == other}
    assert fallen == {"blk.0.ffn_down.weight", "blk.1.ffn_down.weight"}
    share = sum(int(each.n_bytes) for each in tensors if each.name in fallen)
    share /= sum(int(each.n_bytes) for each in tensors)
    assert 0.1 < share < 0.3
    assert exported.notes[0] == f"Of the matrices' bytes, {share:.1%} in {other}."
    rounded = round_weights(loaded("qwen3", **(SIZES["qwen3"] | {"intermediate_size": 480})).model, type)
    down = next(tensor for tensor in tensors if tensor.name == "blk.0.ffn_down.weight")
    np.testing.assert_array_equal(
        rounded.get_parameter("model.layers.0.mlp.down_proj.weight").numpy(), weights(down)
    )


def test_a_damaged_file_is_not_within_the_bound(tmp_path):
    base = loaded("qwen3", **SIZES["qwen3"])
    whole, packed = export(wide(), tmp_path / "whole.gguf", "f16"), tmp_path / "packed.gguf"
    quantize(whole, packed, "q4_k_s", silent)
    data = bytearray(packed.read_bytes())
    data[-150_000:-2000] = bytes(148_000)
    packed.write_bytes(data)
    with pytest.raises(
        pruning.ModelError, match=r"q4_k_s, .* and 2\.2 and 14 are allowed\. Choose a type with more bits"
    ):
        compare(
            packed,
            expect(base.model, base.tokenizer, "model", GGUF_TYPES["q4_k_s"], silent),
            GGUF_TYPES["q4_k_s"],
            silent,
        )


@pytest.mark.parametrize("type", K_QUANTS)
def test_a_model_with_rows_of_64_is_refused_with_the_reason(type, tmp_path):
    folder = folder_of("llama", hidden_size=64, intermediate_size=64)
    reason = r"Rows of 64 \(channels\) .* not multiples of 256; 0% of the matrices' bytes .* work are 256\."
    with pytest.raises(pruning.RecipeError, match=reason) as error:
        export(folder, tmp_path / "model.gguf", type)
    assert "Or choose one of: f16, bf16, q8_0, q5_0, q4_0." in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_k_quants_are_offered_where_half_of_the_bytes_are_in_rows_that_fit():
    gpt2 = Shape.of(CONFIG_MAPPING["gpt2"](n_embd=768, n_head=12))
    assert not any(gguf_types(gpt2).values())
    assert not gguf_types(shape(intermediate_size=480))["q4_k_s"]
    # Neurons fit, but they are read by one of the three matrices of an MLP.
    obstacle = gguf_types(shape(hidden_size=320, intermediate_size=8192))["q6_k"]
    assert "Rows of 320 (channels) are not multiples of 256; 3" in obstacle
    assert "at least 50% have to be. The nearest that work are 256 or 512." in obstacle


def test_rows_that_no_fallback_fits_are_refused():
    obstacle = gguf_types(shape(intermediate_size=500))["q5_k_s"]
    assert obstacle.startswith("It needs rows in multiples of 32; this shape has rows of 500 (neurons).")


def test_the_rows_that_experts_read_their_neurons_by_count():
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 64, "vocab_size": 320}
    few = CONFIG_MAPPING["qwen3_moe"](
        hidden_size=320, moe_intermediate_size=128, num_experts=4, norm_topk_prob=True, **sizes
    )
    assert "128 (neurons)" in gguf_types(Shape.of(few))["q4_k_s"]


def test_the_shell_refuses_in_one_line(tmp_path, monkeypatch, capsys):
    folder = folder_of("llama", hidden_size=64, intermediate_size=64)
    arguments = ["export", folder, "--type", "q4_k_s", "--output", tmp_path / "model.gguf"]
    monkeypatch.setattr(sys, "argv", ["pruning", *map(str, arguments)])
    assert main() == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert "cannot be exported as q4_k_s. Rows of 64 (channels)" in line
    assert line.endswith("Or choose one of: f16, bf16, q8_0, q5_0, q4_0.")


@pytest.fixture
def _unopened():
    k_quants.packing_function.cache_clear()
    yield
    k_quants.packing_function.cache_clear()


@pytest.mark.usefixtures("_unopened")
def test_without_llama_cpp_k_quants_are_refused_in_one_sentence(monkeypatch, tmp_path):
    model = loaded("qwen3", **SIZES["qwen3"]).model
    monkeypatch.setattr(k_quants, "find_spec", lambda name: None)
    with pytest.raises(
        pruning.ModelError, match=r"^K-quants are packed by .* not installed: install '.*'\.$"
    ):
        round_weights(model, "q4_k_s")
    assert not GGUF_TYPES["q4_0"].is_k_quant
    round_weights(model, "q4_0")


@pytest.mark.usefixtures("_unopened")
def test_another_version_of_llama_cpp_is_refused_before_any_work(monkeypatch, tmp_path):
    class Empty:
        def __init__(self, file):
            pass

    monkeypatch.setattr(k_quants.ctypes, "CDLL", Empty)
    stages = []
    with pytest.raises(pruning.ModelError, match="cannot pack K-quants: install the version"):
        export(wide(), tmp_path / "model.gguf", "q6_k", progress=stages.append)
    assert stages == []


def test_matrices_of_experts_are_packed_by_rows():
    values = np.random.default_rng(0).standard_normal((3, 5, 512)).astype(np.float32)
    kind = GGMLQuantizationType.Q6_K
    packed = k_quants.pack_rows(values, kind, 2 * 210)
    assert packed.shape == (3, 5, 420)
    assert np.abs(dequantize(packed, kind) - values).max() < 0.1


def test_parts_that_threads_pack_are_those_of_the_whole(monkeypatch):
    values = np.random.default_rng(1).standard_normal((37, 256)).astype(np.float32)
    kind = GGMLQuantizationType.Q4_K
    whole = k_quants.pack_rows(values, kind, 144)
    monkeypatch.setattr(k_quants, "PART", 4 * 256)
    np.testing.assert_array_equal(k_quants.pack_rows(values, kind, 144), whole)


@pytest.mark.parametrize("model_type", ["qwen3_5_text", "bamba", "granitemoehybrid", "mamba"])
def test_the_rows_of_a_hybrid_count_though_its_first_layer_has_no_attention(model_type):
    obstacles = gguf_types(Shape.of(CONFIG_MAPPING[model_type]()))
    assert set(obstacles) == set(GGUF_TYPES)
    assert obstacles["q8_0"] == ""
