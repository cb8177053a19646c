"""What a training needs to know of its device."""

import platform
from typing import Any

import torch


def multiplies_in_bfloat16(device: torch.device) -> bool:
    """Return whether the device multiplies matrices in bfloat16 itself, which makes them faster."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = _cpu_capabilities()
    return device.type == "cpu" and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def hardware_name(device: torch.device) -> str:
    """Return the name of the device, for reports."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = _cpu_capabilities().get("cpu_name") or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


def _cpu_capabilities() -> dict[str, Any]:
    """Read the features of the CPU. Versions of torch that cannot tell give none."""
    return getattr(torch.cpu, "get_capabilities", dict)()
