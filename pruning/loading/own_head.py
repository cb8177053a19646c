"""A head of its own beside a config that ties it to the embeddings, as merged fine-tunes have."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pruning.architectures.anatomy import anatomy_of
from pruning.lazy import safetensors, torch
from pruning.loading.files import Tensors, reading_weights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def untie_own_head(
    config: PreTrainedConfig, tensors: Tensors, files: Iterable[Path], stored: Mapping[str, str] | None = None
) -> PreTrainedConfig:
    """Return the config that says what the files hold.

    transformers keeps a head that a file holds if it differs from the embeddings, whatever the config says, and
    so must everything that is made from the config.

    Args:
        config: The model's config.
        tensors: What its files hold.
        files: The files.
        stored: The names of the tensors in the files, if they have others there.

    Returns:
        The config itself, or a copy that does not tie the head.
    """
    if not getattr(config, "tie_word_embeddings", False):
        return config
    untied = copy.deepcopy(config)
    untied.tie_word_embeddings = False
    anatomy = anatomy_of(untied)
    heads = [name for name in anatomy.names if name not in anatomy_of(config).names and name in tensors]
    embeddings = [
        name
        for name in tensors
        if any(known == name or known.endswith(f".{name}") for known in anatomy.family.embeddings)
        and any(tensors[name][1] == tensors[head][1] for head in heads)
    ]
    if not heads or not embeddings:
        return config
    head, embedding = ((stored or {}).get(name, name) for name in (heads[0], embeddings[0]))
    if _are_equal(head, embedding, list(files)):
        return config
    return untied


def has_own_head(model: PreTrainedModel) -> bool:
    """Return whether a loaded model's config ties its head, which has values of its own."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if not getattr(model.config, "tie_word_embeddings", False) or head is None:
        return False
    first, second = head.get_parameter("weight"), embeddings.get_parameter("weight")
    if first is second or first.shape != second.shape or first.is_meta or second.is_meta:
        return False
    return first.data_ptr() != second.data_ptr() and not torch.equal(first, second.to(first.device))


def _are_equal(first: str, second: str, files: list[Path]) -> bool:
    values = []
    for name in (first, second):
        for file in files:
            with reading_weights(file), safetensors.safe_open(file, framework="pt") as tensors:
                if name in tensors.keys():  # noqa: SIM118 - not a dict
                    values.append(tensors.get_tensor(name))
                    break
    return torch.equal(*values)
