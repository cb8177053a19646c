"""A pruned model as it stands in memory, in a folder: for other processes of the same program, not to be shared.

Unlike what `Pruned.save` writes, a snapshot needs its base to be read, and is not checked: its reader must trust
its writer.
"""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError

from pruning.lazy import safetensors_torch
from pruning.loading.load import LoadedModel
from pruning.pipeline import Pruned
from pruning.surgery import assemble

WEIGHTS, REST = "model.safetensors", "pruned.pickle"


def snapshot_bytes(pruned: Pruned) -> int:
    """Return how many bytes a snapshot of a model takes, about."""
    return sum(parameter.nbytes for parameter in pruned.model.parameters())


def write_snapshot(pruned: Pruned, folder: Path) -> None:
    """Write a model to an empty folder that only this program's user can read.

    Raises:
        OSError: The folder cannot be written.
    """
    named = pruned.model.named_parameters()
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in named}
    try:
        safetensors_torch.save_file(tensors, folder / WEIGHTS)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    rest: Any = replace(pruned, model=cast("Any", None))
    (folder / REST).write_bytes(pickle.dumps(rest))


def read_snapshot(folder: Path, base: LoadedModel) -> Pruned | None:
    """Return the model that `write_snapshot` wrote; None if it was removed meanwhile.

    Args:
        folder: The folder.
        base: The base that the model was made from.
    """
    try:
        rest: Pruned = pickle.loads((folder / REST).read_bytes())
        tensors = safetensors_torch.load_file(folder / WEIGHTS, device=str(base.model.device))
    except (OSError, SafetensorError, EOFError, pickle.UnpicklingError):
        return None
    return replace(rest, model=assemble(base.model, rest.shape.config, tensors, rest.layers))
