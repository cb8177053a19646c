"""Pack rows of weights as K-quants, with llama.cpp's own function: the package `gguf` only reads them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from pruning.errors import ModelError
from pruning.lazy import torch

PART = 2**20
"""About how many weights a thread packs at a time."""

_NOT_INSTALLED = (
    "K-quants are packed by the library of llama.cpp, which is not installed: install 'secateur[gguf]'."
)
_OTHER_VERSION = (
    "The installed xllamacpp cannot pack K-quants: install the version that 'secateur[gguf]' asks for."
)


@lru_cache(1)
def packing_function() -> Callable[..., int]:
    """Return llama.cpp's function that packs rows. Raises `ModelError` if it is not installed."""
    spec = find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        raise ModelError(_NOT_INSTALLED)
    folder = Path(spec.origin).parent
    try:
        file = next(file for suffix in ("so", "pyd") for file in sorted(folder.glob(f"*.{suffix}")))
        function = ctypes.CDLL(str(file)).ggml_quantize_chunk
    except (StopIteration, OSError, AttributeError):
        raise ModelError(_OTHER_VERSION) from None
    count, pointer = ctypes.c_int64, ctypes.c_void_p
    # The type, the values, their place, the first value, the rows, their length, and how much each column matters.
    function.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
    function.restype = ctypes.c_size_t
    return function


def pack_rows(values: np.ndarray[Any, Any], kind: Any, row_bytes: int) -> np.ndarray[Any, Any]:
    """Return an array whose rows are packed.

    Args:
        values: Values in 32 bits; each row is a number of whole blocks.
        kind: The `gguf.GGMLQuantizationType`.
        row_bytes: The bytes that a packed row takes.

    Raises:
        ModelError: llama.cpp is not installed, or packs this type otherwise than expected.
    """
    function, length = packing_function(), values.shape[-1]
    rows = np.ascontiguousarray(values.reshape(-1, length), dtype=np.float32)
    packed = np.empty((len(rows), row_bytes), dtype=np.uint8)
    step = max(1, PART // length)

    def pack_from(first: int) -> int:
        count = min(step, len(rows) - first)
        # It takes the number of the first value and finds the place of the packed rows itself.
        return function(kind.value, rows.ctypes.data, packed.ctypes.data, first * length, count, length, None)

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        written = sum(threads.map(pack_from, range(0, len(rows), step)))
    if written != packed.nbytes:
        raise ModelError(_OTHER_VERSION)
    return packed.reshape(*values.shape[:-1], row_bytes)
