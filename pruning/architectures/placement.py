"""Where accelerate placed the modules of a model, and the values of parameters that it left on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Union

from pruning.architectures.lookup import family_for
from pruning.errors import ModelError
from pruning.lazy import nn, torch, transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DISK = "disk"
"""Where accelerate leaves what no device has room for."""

Device = Union[int, str, "torch.device"]

DeviceMap = dict[str, Device]
"""For the names of modules, the device that they and all modules inside them are on."""


def parameter(model: PreTrainedModel, name: str) -> torch.Tensor:
    """Return the values of a parameter, not copied, even if accelerate left them on disk.

    Raises:
        ModelError: The values are on disk under the name of a tied parameter only.
    """
    return loaded_values(model, name, model.get_parameter(name))


def loaded_values(model: PreTrainedModel, name: str, values: torch.Tensor) -> torch.Tensor:
    """Return the values of a parameter that was already looked up; see `parameter`."""
    if not values.is_meta:
        return values.detach()
    try:
        return transformers.integrations.accelerate.load_offloaded_parameter(model, name)
    except KeyError:
        raise ModelError(
            f"The files hold {name} only under the name of a parameter that is tied to it, and so it cannot "
            "be read from disk. Load the whole model, save it with save_pretrained, and use that."
        ) from None


def device_map(model: nn.Module) -> DeviceMap:
    """Return where accelerate placed each module of a model; empty if all of it is on one device."""
    devices: DeviceMap = getattr(model, "hf_device_map", {})
    return dict(devices) if len(set(devices.values())) > 1 or DISK in devices.values() else {}


def device_map_of_kept(base: PreTrainedModel, layers: Sequence[int] | None) -> DeviceMap:
    """Return the device map of a model that keeps some layers of a base.

    Args:
        base: The base model.
        layers: The layers that are kept, ascending; None for all.

    Returns:
        Where the base's modules are, by their names in the new model; empty if on one device.
    """
    devices = device_map(base)
    if layers is None:
        return devices
    prefix = f"{family_for(base.config).layers}."
    new_numbers = {str(old): new for new, old in enumerate(layers)}
    renamed: DeviceMap = {}
    for module, device in devices.items():
        if module.startswith(prefix):
            layer, dot, rest = module.removeprefix(prefix).partition(".")
            if layer not in new_numbers:
                continue
            module = f"{prefix}{new_numbers[layer]}{dot}{rest}"
        renamed[module] = device
    return renamed


def device_of(name: str, devices: Mapping[str, Device]) -> Device | None:
    """Return the device that a parameter belongs on; None if accelerate placed nothing."""
    return next(
        (device for module, device in devices.items() if not module or f"{name}.".startswith(f"{module}.")),
        None,
    )
