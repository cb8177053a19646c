"""Where a model's weights go: the device and the precision, within the memory that this process may use."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

from pruning.architectures.families import LAYER
from pruning.architectures.placement import DISK
from pruning.architectures.shape import Shape
from pruning.errors import ModelError
from pruning.lazy import accelerate, torch
from pruning.loading.repo_files import format_bytes
from pruning.memory import available_memory

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SPARE_BYTES = 200_000_000
"""What reading a model takes beside its weights."""

DTYPES = ("float32", "bfloat16", "float16")
"""The precisions in which a model can be saved."""

AnyDtype = Union[str, "torch.dtype"]


def read_dtype(dtype: AnyDtype) -> torch.dtype:
    """Return the precision that a name such as `bfloat16` means.

    Raises:
        ModelError: A model cannot be saved in it.
    """
    known = {name: getattr(torch, name) for name in DTYPES}
    found = dtype if isinstance(dtype, torch.dtype) else known.get(str(dtype))
    if found is None or found not in known.values():
        raise ModelError(f"The dtype is {str(dtype)[:40]!r}. Choose one of {', '.join(DTYPES)}.")
    return found


def read_device(device: str | torch.device) -> torch.device:
    """Return a device that is here: `cpu`, `cuda`, or one of several such as `cuda:1`.

    Raises:
        ModelError: There is no such device on this machine.
    """
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ModelError(f"The device is {str(device)[:40]!r}. Choose cpu or cuda.") from None
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found.type == "cpu" or (found.type == "cuda" and (found.index or 0) < here):
        return found
    raise ModelError(f"The device {found} is not on this machine. Choose {'cpu or cuda' if here else 'cpu'}.")


@dataclass(frozen=True)
class Placement:
    """What accelerate gets.

    Attributes:
        device_map: The device, a map with one, or "auto".
        dtype: The precision to compute in.
        max_memory: For "auto", the bytes that each device may hold.
    """

    device_map: dict[str, str] | str
    dtype: torch.dtype
    max_memory: dict[int | str, int] | None = None


def choose_placement(
    name: str,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    on_disk: bool,
    may_offload: bool,
    device: torch.device | None = None,
) -> Placement:
    """Choose where a model goes, and refuse one that does not fit, before any weight is read.

    Args:
        name: The model, for the message.
        config: Its config.
        dtype: The precision of most weights in its files.
        on_disk: Whether to leave all weights on disk.
        may_offload: Whether layers that do not fit may be left on disk, which is slow.
        device: The device that the caller wants; None for what fits. On a CPU, float32 is computed in, because that is
            the fastest there.

    Raises:
        ModelError: It does not fit. The message names the memory that it needs, and what is free.
    """
    if on_disk:
        return Placement({"": DISK}, dtype)
    shape, free = Shape.of(config), available_memory()
    if device is not None and device.type != "cpu":
        return Placement({"": str(device)}, dtype)
    if device is not None or os.environ.get("SPACES_ZERO_GPU") or not torch.cuda.is_available():
        needed = shape.parameters * torch.float32.itemsize
        if needed + SPARE_BYTES * (needed > SPARE_BYTES) < free:
            return Placement("cpu", torch.float32)
    else:
        room = accelerate.utils.get_max_memory()
        # The other half is for what it computes.
        if shape.parameters * dtype.itemsize < room[0] / 2:
            return Placement("cuda", dtype)
    needed = _resident(shape) * dtype.itemsize if may_offload else shape.parameters * torch.float32.itemsize
    if needed >= free:
        least = "at least " if may_offload else ""
        raise ModelError(
            f"{name} needs {least}{format_bytes(needed)} of memory, and {format_bytes(free)} are free. Close other "
            "programs, choose a smaller model, or use --stream, which never holds the whole model."
        )
    devices = {device: room for device, room in accelerate.utils.get_max_memory().items() if device != "cpu"}
    return Placement("auto", dtype, {**devices, "cpu": free})


def _resident(shape: Shape) -> int:
    """Return how many parameters are in memory at once if the layers are read from disk one by one."""
    one_layer = shape.resized(LAYER, 1)
    return one_layer.parameters
