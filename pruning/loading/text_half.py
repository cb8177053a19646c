"""The text half of a multimodal checkpoint: which of its tensors are the language model's, and under which names."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from pruning.architectures.anatomy import anatomy_of
from pruning.architectures.multimodal import is_multimodal, left_out
from pruning.errors import ModelError
from pruning.loading.files import Tensors
from pruning.loading.source import Source

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def with_text_half(source: Source, values: Mapping[str, Any]) -> Source:
    """Return a source that says what was left out, if the values of its config are those of a multimodal model."""
    if not is_multimodal(values):
        return source
    return replace(source, multimodal=True, notes=(*source.notes, left_out(values)))


@dataclass(frozen=True)
class Renaming:
    """How the tensors of a text half are named in the files that also hold the rest of the model.

    Attributes:
        prefixes: What the names of its tensors begin with in the files, and in the text model.
        head: The names of the tensors of the output embeddings in the files, and in the text model.
    """

    prefixes: Mapping[str, str] = field(default_factory=dict)
    head: Mapping[str, str] = field(default_factory=dict)

    def name(self, name: str) -> str | None:
        """Return the name of a tensor in the text model, or None if it belongs to another part."""
        if name in self.head:
            return self.head[name]
        return next(
            (new + name.removeprefix(old) for old, new in self.prefixes.items() if name.startswith(old)), None
        )

    def names(self, tensors: Iterable[str]) -> dict[str, str]:
        """Return the name in the files of each tensor of the text half, by its name there.

        Raises:
            ModelError: Two tensors of the files would have the same name.
        """
        found: dict[str, str] = {}
        for name in tensors:
            new = self.name(name)
            if new is not None and found.setdefault(new, name) != name:
                raise ModelError(
                    f"The files hold two tensors that could be {new[:100]} of the text half: {found[new][:100]} and "
                    f"{name[:100]}. Save the model again."
                )
        return found

    @property
    def key_mapping(self) -> dict[str, str]:
        """The renaming as `from_pretrained` takes it: patterns, and what takes their place."""
        exact = {f"^{re.escape(old)}$": new for old, new in self.head.items() if old != new}
        return exact | {f"^{re.escape(old)}": new for old, new in self.prefixes.items() if old != new}


def tie_headless(config: PreTrainedConfig, tensors: Iterable[str]) -> PreTrainedConfig:
    """Return a config that ties the head to the embeddings if the files hold no head, whatever the config says.

    In a multimodal config two places say whether the head is tied, and they may contradict each other.

    Args:
        config: The config of the text half.
        tensors: The names of the tensors of its files.
    """
    if getattr(config, "tie_word_embeddings", True):
        return config
    tied = copy.deepcopy(config)
    tied.tie_word_embeddings = True
    head = set(anatomy_of(config).names) - set(anatomy_of(tied).names)
    return tied if head and not head & set(tensors) else config


def find_renaming(name: str, config: PreTrainedConfig, tensors: Tensors) -> Renaming:
    """Find where the tensors of a text half are among those of the whole model.

    The language model is the part in which most of the expected names are found with the expected shapes. A vision
    tower may have names like those of its layers, but not its embeddings.

    Args:
        name: The model, for the message.
        config: The config of the text half.
        tensors: The headers of the files.

    Raises:
        ModelError: The files hold no such part.
    """
    untied = copy.deepcopy(config)
    untied.tie_word_embeddings = False
    anatomy = anatomy_of(untied)
    expected = {spec.name: spec.shape for spec in (*anatomy.tensors, *anatomy.buffers)}
    base = anatomy.family.layers.partition(".")[0] + "."
    shapes = {key: shape for key, (_, shape) in tensors.items()}
    counts: Counter[str] = Counter()
    for key, shape in shapes.items():
        for start in _starts(key):
            if expected.get(base + key[start:]) == shape:
                counts[key[:start]] += 1
    if not counts:
        raise ModelError(
            f"The files of {name} hold no language model that fits its config: no tensor is named like "
            f"{next(iter(expected))}. Choose another model."
        )
    (prefix, _), *_ = counts.most_common(1)
    head = {}
    for wanted, shape in expected.items():
        if not wanted.startswith(base):
            found = [key for key in shapes if f".{key}".endswith(f".{wanted}") and shapes[key] == shape]
            if found:
                # Another part may have a head of its own: the nearest to the language model is its own.
                nearest = max(found, key=lambda key: _shared(key, prefix))
                head[nearest] = wanted
    return Renaming({prefix: base} if prefix else {"": ""}, head)


def _shared(key: str, prefix: str) -> int:
    """Return how many parts two dotted names have in common at their beginnings."""
    pairs = zip(key.split("."), prefix.split("."), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _starts(key: str) -> list[int]:
    """Return where each part of a dotted name begins."""
    return [0, *(match.end() for match in re.finditer(r"\.", key))]
