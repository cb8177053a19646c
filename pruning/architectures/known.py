"""What is known of a config, kept in the user's cache: the tensors of its model, and what can be removed from it.

It was found with transformers, and is read without: the second look at a model takes no time. What is kept belongs to
one version of transformers and to this very code.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.architectures.anatomy import Anatomy, anatomy_of
from pruning.architectures.families import CHANNEL, EXPERT, KEY_VALUE, LAYER, NEURON, QUERY, TOKEN
from pruning.architectures.plain import PlainConfig, family_to_values, with_tuples
from pruning.architectures.resize import resize
from pruning.errors import ModelError
from pruning.files import cache_folder, replacing, touch, trim_folder

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

MOST_ON_DISK = 20_000_000
"""Bytes that are kept, of some tens of thousands for each config."""

TRIED = ((NEURON,), (QUERY, KEY_VALUE), (CHANNEL,), (TOKEN,), (LAYER,), (EXPERT,))
"""The units whose numbers are changed together to see what else changes in a config."""


def plain_config(values: Mapping[str, Any], build: Callable[[], "PreTrainedConfig"]) -> PlainConfig:
    """Return what is known of a config, and find it out if it is not.

    Args:
        values: The content of a `config.json`.
        build: Builds and checks the config, and is called if nothing is known of it.

    Raises:
        ModelError: It describes no model that can be used.
    """
    file = _file_of(values)
    try:
        plain = _read(file)
        touch(file)
        return plain
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass  # Not there, or damaged.
    config = build()
    plain = _from_record(json.loads(json.dumps(_record(config, anatomy_of(config)), default=str)), file)
    plain.keep(plain)
    return plain


def _file_of(values: Mapping[str, Any]) -> Path:
    text = json.dumps([values, version("transformers"), version("torch"), _code_digest()], sort_keys=True)
    return cache_folder() / "configs" / f"{hashlib.sha256(text.encode()).hexdigest()}.json"


@cache
def _code_digest() -> str:
    """Return a digest of the code that derives and proves: what it found before it changed is not used."""
    folder = Path(__file__).parent
    files = [*sorted(folder.glob("*.py")), folder.parent / "surgery.py"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _read(file: Path) -> PlainConfig:
    return _from_record(json.loads(file.read_text(encoding="utf-8")), file)


def _from_record(record: Mapping[str, Any], file: Path) -> PlainConfig:
    def keep(config: PlainConfig) -> None:
        with suppress(OSError), replacing(file) as temporary:
            content = {**record, "reasons": config.reasons}
            temporary.write_text(json.dumps(content), encoding="utf-8")
            trim_folder(file.parent, MOST_ON_DISK)

    return PlainConfig(
        values=record["values"],
        attributes=record["attributes"],
        derived=record["derived"],
        tensors=with_tuples(record["tensors"]),
        buffers=with_tuples(record["buffers"]),
        free_sizes=frozenset(record["free_sizes"]),
        reasons=dict(record["reasons"]),
        keep=keep,
    )


def _record(config: "PreTrainedConfig", anatomy: Anatomy) -> dict[str, Any]:
    """Return what is kept of a config."""
    values = config.to_dict()
    plain = PlainConfig(
        values,
        _attributes(config),
        family_to_values(anatomy.family) if anatomy.family.derived else None,
        tuple((spec.name, spec.shape) for spec in anatomy.tensors),
        tuple((spec.name, spec.shape) for spec in anatomy.buffers),
        frozenset().union(*TRIED),
    )
    free = [kind for kinds in TRIED if _are_free(kinds, config, plain, anatomy) for kind in kinds]
    return {
        "values": values,
        "attributes": plain.attributes,
        "derived": plain.derived,
        "tensors": plain.tensors,
        "buffers": plain.buffers,
        "free_sizes": free,
        "reasons": {},
    }


def _attributes(config: "PreTrainedConfig") -> dict[str, Any]:
    """Return the plain values that a config has under other names than those of its `to_dict`."""
    names = {*config.attribute_map, *(name for name in dir(type(config)) if not name.startswith("_"))}
    found: dict[str, Any] = {}
    for name in sorted(names - config.to_dict().keys()):
        with suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Old names that a later transformers removes.
            value = getattr(config, name)
            if isinstance(value, bool | int | float | str | None):
                found[name] = value
    return found


def _are_free(
    kinds: tuple[str, ...], config: "PreTrainedConfig", plain: PlainConfig, anatomy: Anatomy
) -> bool:
    """Return whether a config with fewer units of some kinds is what its plain values say, to the letter."""
    units = {kind: anatomy.units.get(kind, 0) for kind in kinds if kind in anatomy.family.sizes}
    if len(units) < len(kinds) or min(units.values()) < 2:
        return False
    if kinds == (LAYER,):
        fewer = {LAYER: units[LAYER] - 1}
    elif kinds == (CHANNEL,):
        heads = anatomy.units.get(QUERY, 1)
        fewer = {CHANNEL: (units[CHANNEL] // heads - 1) * heads}
    elif kinds == (QUERY, KEY_VALUE):
        fewer = {QUERY: units[QUERY] // units[KEY_VALUE], KEY_VALUE: 1}
    else:
        fewer = {kind: count - 1 for kind, count in units.items()}
    try:
        ours = resize(plain, fewer)  # type: ignore[arg-type]
        theirs = resize(config, fewer)
    except (ModelError, KeyError, TypeError, ZeroDivisionError):
        return False
    return isinstance(ours, PlainConfig) and json.dumps(ours.to_dict(), default=str) == json.dumps(
        theirs.to_dict(), default=str
    )
