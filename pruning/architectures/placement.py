"""Where accelerate placed the modules of a model, and the values of parameters that it left on disk."""

import torch
from torch import nn
from transformers.integrations.accelerate import load_offloaded_parameter

from pruning.errors import ModelError

DISK = "disk"
"""Where accelerate leaves what no device has room for."""


def parameter(model: nn.Module, name: str) -> torch.Tensor:
    """The values of a parameter, also where accelerate left them on disk. Not a copy."""
    return loaded_values(model, name, model.get_parameter(name))


def loaded_values(model: nn.Module, name: str, values: torch.Tensor) -> torch.Tensor:
    if not values.is_meta:
        return values.detach()
    try:
        return load_offloaded_parameter(model, name)
    except KeyError:
        raise ModelError(
            f"The files hold {name} only under the name of a parameter that is tied to it, and so it cannot "
            "be read from disk. Load the model whole, save it with save_pretrained, and use that."
        ) from None


def device_map(model: nn.Module) -> dict[str, int | str | torch.device]:
    """Where accelerate placed each module of a model; empty where all of it is on one device."""
    places = getattr(model, "hf_device_map", {})
    return dict(places) if len(set(places.values())) > 1 or DISK in places.values() else {}
