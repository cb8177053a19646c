"""The weights that a lesson rounds are those that an exported file holds."""

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize

from pruning.sharing.gguf import export
from pruning.sharing.gguf.quantize import round_weights
from tests.helpers.models import folder_of, loaded

pytestmark = pytest.mark.usefixtures("converted_quickly")

SIZES = {"intermediate_size": 64, "hidden_size": 64}
NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",
    "blk.1.ffn_gate.weight": "model.layers.1.mlp.gate_proj.weight",
    "output_norm.weight": "model.norm.weight",
}
"""Tensors that the file and transformers order in the same way."""


@pytest.mark.parametrize("type", ["f16", "q8_0", "q5_0", "q4_0"])
def test_rounded_weights_are_those_of_an_exported_file(type, tmp_path):
    file = export(folder_of("llama", **SIZES), tmp_path / "model.gguf", type)
    rounded = round_weights(loaded("llama", **SIZES).model, type)
    held = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    for name, ours in NAMES.items():
        values = np.array(dequantize(held[name].data, held[name].tensor_type), dtype=np.float32)
        torch.testing.assert_close(rounded.get_parameter(ours).detach(), torch.from_numpy(values))


def test_matrices_that_are_kept_the_other_way_round_are_rounded_along_their_inputs(tmp_path):
    sizes = {"n_embd": 64, "n_inner": 96}
    file = export(folder_of("gpt2", **sizes), tmp_path / "model.gguf", "q4_0")
    rounded = round_weights(loaded("gpt2", **sizes).model, "q4_0")
    held = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    for name, ours in (("blk.0.ffn_up.weight", "mlp.c_fc"), ("blk.0.ffn_down.weight", "mlp.c_proj")):
        values = np.array(dequantize(held[name].data, held[name].tensor_type), dtype=np.float32)
        weight = rounded.get_parameter(f"transformer.h.0.{ours}.weight").detach()
        torch.testing.assert_close(weight.T, torch.from_numpy(values))
    positions = rounded.get_parameter("transformer.wpe.weight")
    assert torch.equal(positions, loaded("gpt2", **sizes).model.get_parameter("transformer.wpe.weight"))
    assert held["position_embd.weight"].tensor_type.name == "F32"


def test_rounding_leaves_the_model_as_it_is():
    model, name = loaded("llama", **SIZES).model, NAMES["blk.0.ffn_down.weight"]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    rounded = round_weights(model, "q4_0")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not torch.equal(rounded.get_parameter(name), before[name])
