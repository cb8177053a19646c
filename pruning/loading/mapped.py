"""Weights as float32 files in the cache, converted once, so that every process maps the same pages.

A bfloat16 file that is read in float32 costs each process its own copy of the model. A float32 file is mapped: its
pages belong to the system, which shares them between processes and drops them when memory is needed.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from pruning.errors import ModelError
from pruning.files import cache_folder, discard, new_folder, touch
from pruning.lazy import safetensors, torch
from pruning.loading.files import FLOATS, Tensors, read_headers
from pruning.loading.hub_cache import cache_limit
from pruning.loading.repo_files import SINGLE_WEIGHTS_FILE, format_bytes
from pruning.loading.source import Source
from pruning.progress import Progress, Reporter, silent

CHUNK = 2**24
"""How many numbers are converted at a time."""

_SIZES = {"F32": 4, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}

_COPIED = ("config.json", "generation_config.json")


def mapped_folder(source: Source) -> Path | None:
    """Return the folder for a model's float32 weights, or None if they may not be kept for others."""
    if source.revision is None or not (source.public or source.hub_id is None):
        return None
    name = source.hub_id or source.folder.name
    return cache_folder() / "mapped" / re.sub(r"[^\w.-]+", "--", f"{name}-{source.revision}")[-200:]


def float32_copy(
    source: Source, files: Sequence[Path], dtype: torch.dtype, progress: Reporter = silent
) -> Path | None:
    """Return a folder with a model's weights in float32, written if it is not in the cache.

    Its values are those of the files, rounded to the precision of most of them, as `load` rounds them.

    Args:
        source: The model.
        files: Its safetensors files.
        dtype: The precision of most weights in them.
        progress: Is called before the conversion. It may raise `Cancelled`.

    Returns:
        The folder, or None if the model must not be kept for others, or holds tensors of a rare kind.

    Raises:
        ModelError: There is no room on the disk, or a file is damaged.
    """
    folder = mapped_folder(source)
    tensors = read_headers(files)
    if folder is None or not all(kind in FLOATS or kind in _SIZES for kind, _ in tensors.values()):
        return None
    header, size = _header(tensors)
    weights = folder / SINGLE_WEIGHTS_FILE
    if weights.is_file() and weights.stat().st_size == size:
        touch(weights)
        return folder
    progress(Progress("Converting the weights to float32, once"))
    try:
        discard(folder)
        trim(folder.parent, cache_limit() - size)
        _check_disk(source.name, folder.parent, size)
        with new_folder(folder) as temporary:
            _write(temporary / SINGLE_WEIGHTS_FILE, header, files, dtype, progress)
            for name in _COPIED:
                if (source.folder / name).is_file():
                    shutil.copyfile(source.folder / name, temporary / name)
    except FileExistsError:
        pass  # Another process was faster.
    except safetensors.SafetensorError:
        raise ModelError(f"The weights of {source.name} are damaged. Download the model again.") from None
    except OSError as error:
        raise ModelError(
            f"The weights of {source.name} could not be converted to float32: {error.strerror}. Make room on "
            "the disk, or choose a smaller model."
        ) from error
    return folder


def trim(parent: Path, max_bytes: int) -> None:
    """Remove the least recently used copies until the rest fits. Processes that have mapped one keep it."""
    copies = [(folder, folder / SINGLE_WEIGHTS_FILE) for folder in parent.glob("[!.]*")]
    stats = [(weights.stat(), folder) for folder, weights in copies if weights.is_file()]
    total = sum(stat.st_size for stat, _ in stats)
    for stat, folder in sorted(stats, key=lambda found: found[0].st_mtime):
        if total <= max_bytes:
            break
        discard(folder)
        total -= stat.st_size


def _check_disk(name: str, parent: Path, size: int) -> None:
    parent.mkdir(parents=True, exist_ok=True)
    if size > (free := shutil.disk_usage(parent).free):
        raise ModelError(
            f"The weights of {name} need {format_bytes(size)} of disk space in float32, and "
            f"{format_bytes(free)} are free. Make room, or choose a smaller model."
        )


def _header(tensors: Tensors) -> tuple[bytes, int]:
    """Return the header of the file, and the size of the whole file. Each tensor begins at a multiple of its width."""
    entries: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    offset = 0
    kinds = {name: ("F32" if kind in FLOATS else kind, shape) for name, (kind, shape) in tensors.items()}
    for name, (kind, shape) in sorted(kinds.items(), key=lambda item: (-_SIZES[item[1][0]], item[0])):
        end = offset + math.prod(shape) * _SIZES[kind]
        entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, len(header) + offset


def _write(
    target: Path, header: bytes, files: Sequence[Path], dtype: torch.dtype, progress: Reporter
) -> None:
    """Write a safetensors file, part by part, so that memory holds little of it."""
    entries = json.loads(header[8:])
    del entries["__metadata__"]
    with target.open("wb") as stream:
        stream.write(header)
        done = 0
        for file in files:
            with safetensors.safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a dict
                    progress(Progress("Converting the weights to float32, once", done, len(entries)))
                    start, end = entries[name]["data_offsets"]
                    stream.seek(len(header) + start)
                    for part in _parts(tensors, name):
                        stream.write(_bytes_of(part, dtype))
                    assert stream.tell() == len(header) + end, name
                    done += 1
        stream.flush()
        os.fsync(stream.fileno())


def _parts(tensors: safetensors.safe_open, name: str) -> Iterator[torch.Tensor]:
    """Yield a tensor in parts along its first axis."""
    part = tensors.get_slice(name)
    shape = part.get_shape()
    if not shape:
        yield tensors.get_tensor(name)
        return
    rows = max(1, CHUNK // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], rows):
        yield part[start : min(start + rows, shape[0])]


def _bytes_of(part: torch.Tensor, dtype: torch.dtype) -> memoryview:
    if part.is_floating_point():
        part = part.float().to(dtype).float()
    return part.contiguous().reshape(-1).view(torch.uint8).numpy().data
