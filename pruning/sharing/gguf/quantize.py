"""Read GGUF files, and rewrite one of 16-bit weights in a type with fewer bits."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pruning.errors import ModelError
from pruning.lazy import torch, transformers
from pruning.progress import Progress, Reporter
from pruning.sharing.gguf.k_quants import pack_rows
from pruning.sharing.gguf.types import GGUF_TYPES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HALVES = ("F16", "BF16")
_WRITTEN_BY_THE_WRITER = ("general.architecture", "general.file_type")


def gguf_package(part: str = "") -> Any:
    """Return the package `gguf`, or a module of it, which the library does without until a file is read or written."""
    try:
        return importlib.import_module(f"gguf.{part}" if part else "gguf")
    except ImportError:
        raise ModelError("The package gguf is not installed. Install 'secateur[gguf]'.") from None


def open_gguf(file: Path) -> Any:
    """Return a `gguf.GGUFReader`. Raises `ModelError` if the file cannot be read."""
    reader = gguf_package().GGUFReader
    try:
        return reader(file)
    except Exception as error:  # A damaged file fails in many ways.
        raise ModelError(f"{file.name} cannot be read as a GGUF file ({type(error).__name__}).") from None


def quantize(source: Path, output: Path, type: str, progress: Reporter) -> None:
    """Write the matrices of a file in another type; what is in 32 bits, such as norms, remains as it is.

    Matrices whose rows do not divide into blocks get the type's fallback if it has one.

    Args:
        source: A GGUF file whose matrices have 16 bits.
        output: The file to write.
        type: A key of `GGUF_TYPES` that has blocks.
        progress: Is called with each tensor.
    """
    gguf, quants = gguf_package(), gguf_package("quants")
    reader = open_gguf(source)
    writer = gguf.GGUFWriter(output, str(metadata(reader)["general.architecture"]))
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in _WRITTEN_BY_THE_WRITER:
            continue
        sub_type = field.types[-1] if field.types[0].name == "ARRAY" else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub_type)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{type.upper()}"])
    for tensor in reader.tensors:
        # A byte array's shape counts bytes.
        shape, dtype, kind, size = (
            tensor.data.shape,
            tensor.data.dtype,
            tensor.tensor_type,
            int(tensor.n_bytes),
        )
        if (wanted := _wanted_type(tensor, type)) is not None:
            rows = tuple(int(length) for length in reversed(tensor.shape))
            shape, dtype, kind = quants.quant_shape_to_byte_shape(rows, wanted), np.dtype(np.uint8), wanted
            size = int(np.prod(shape))
        writer.add_tensor_info(tensor.name, shape, dtype, size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for number, tensor in enumerate(reader.tensors):
        progress(Progress(f"Rounding to {type}, tensors", number, len(reader.tensors)))
        data = tensor.data
        if (wanted := _wanted_type(tensor, type)) is not None:
            data = _pack(quants.dequantize(data, tensor.tensor_type), wanted)
        writer.write_tensor_data(np.ascontiguousarray(data))
    writer.close()


def round_weights(model: PreTrainedModel, type: str) -> PreTrainedModel:
    """Return a copy of a model whose matrices have the values that a GGUF file of a type holds.

    Blocks lie along the inputs of a matrix. One whose rows do not divide into blocks gets the type's fallback, as in a
    file. Positions that were learned have 32 bits in every file.

    Args:
        model: A model whose weights are vectors and matrices.
        type: A key of `GGUF_TYPES`.

    Raises:
        ModelError: A package that packs or reads the type is not installed.
    """
    quants = gguf_package("quants")
    rounded = copy.deepcopy(model)
    tokens = rounded.get_input_embeddings()
    for name, weight in rounded.named_parameters():
        module = rounded.get_submodule(name.rpartition(".")[0])
        is_transposed, is_embedding = (
            isinstance(module, transformers.pytorch_utils.Conv1D),
            isinstance(module, torch.nn.Embedding),
        )
        if weight.ndim != 2 or (is_embedding and module is not tokens):
            continue
        rows = weight.detach().T if is_transposed else weight.detach()
        if (kind := _type_of_rows(rows.shape[1], type)) is not None:
            # The file is made from one of 16 bits.
            halves = rows.half().float().cpu().contiguous().numpy()
            values = torch.from_numpy(quants.dequantize(_pack(halves, kind), kind)).to(weight)
            weight.data = values.T.contiguous() if is_transposed else values
    return rounded


def _wanted_type(tensor: Any, type: str) -> Any:
    """Return the type that a tensor of 16 bits gets, and None for one that remains as it is."""
    return _type_of_rows(int(tensor.shape[0]), type) if tensor.tensor_type.name in _HALVES else None


def _type_of_rows(length: int, type: str) -> Any:
    """Return the tensor type of rows that have a length: the type's own, its fallback, or None if none fits."""
    gguf, kind = gguf_package(), GGUF_TYPES[type]
    for name in filter(None, (kind.tensor_type, kind.fallback)):
        found = gguf.GGMLQuantizationType[name.upper()]
        block, _ = gguf.GGML_QUANT_SIZES[found]
        if length % block == 0:
            return found
    return None


def _pack(values: np.ndarray[Any, Any], kind: Any) -> np.ndarray[Any, Any]:
    """Return rows of values in a tensor type."""
    quants = gguf_package("quants")
    if not kind.name.endswith("_K"):
        return quants.quantize(values, kind)
    *_, row_bytes = quants.quant_shape_to_byte_shape(values.shape, kind)
    return pack_rows(values, kind, row_bytes)


def metadata(reader: Any) -> dict[str, Any]:
    """Return the metadata of a file by key, without the long lists of its vocabulary."""
    return {
        key: field.contents()
        for key, field in reader.fields.items()
        if not (key.startswith("tokenizer.ggml.") and field.types and field.types[0].name == "ARRAY")
    }


def byte_shares(reader: Any) -> dict[str, float]:
    """Return the share of the matrices' bytes that each type has in a file, the largest first.

    Norms and biases, which are vectors, always have 32 bits.
    """
    sizes: dict[str, int] = {}
    for tensor in reader.tensors:
        if len(tensor.shape) > 1:
            name = tensor.tensor_type.name.lower()
            sizes[name] = sizes.get(name, 0) + int(tensor.n_bytes)
    total = sum(sizes.values())
    return {name: size / total for name, size in sorted(sizes.items(), key=lambda item: -item[1])}
