"""Why units cannot be removed from a model: what the table says, or what a proof found."""

from typing import TYPE_CHECKING

from pruning.architectures.anatomy import Anatomy
from pruning.architectures.families import UNITS, kind_of, known_reason, parts_of
from pruning.architectures.plain import PlainConfig, full
from pruning.lazy import LazyModule

if TYPE_CHECKING:
    from pruning.architectures import prove
else:
    prove = LazyModule("pruning.architectures.prove")


def reason_against(anatomy: Anatomy, unit: str) -> str | None:
    """Return why units of a kind cannot be removed from a model; None if they can.

    A line of the table of families is proven by this project's tests, a derived entry when it is first needed. Cuts
    of layers are proven for both, because options decide whether a layer's number counts.

    Args:
        anatomy: The model.
        unit: One of `UNITS`.
    """
    if not anatomy.family.derived and unit != "layers":
        return known_reason(anatomy.family, unit)
    if unit not in anatomy.reasons:
        failure = prove.proof_failure(full(anatomy.config), unit)
        anatomy.reasons[unit] = failure or _size_mismatch(anatomy, UNITS[unit])
        if isinstance(anatomy.config, PlainConfig):
            anatomy.config.keep(anatomy.config)
    return anatomy.reasons[unit]


def _size_mismatch(anatomy: Anatomy, kind: str) -> str | None:
    """Return which tensor does not have one entry, or the same number of entries, for each unit of a kind.

    The tiny model of the proof cannot show it: its sizes agree. Gemma 3n's per-layer embeddings have fewer tokens than
    its vocabulary.
    """
    for spec in anatomy.tensors:
        for label, length in zip(spec.labels, spec.shape, strict=True):
            if kind not in map(kind_of, filter(None, parts_of(label))):
                continue
            if sum(units * width for _, units, width in anatomy.segments(label, length)) != length:
                return f"{spec.name} has {length:,} entries for {anatomy.units[kind]:,} {kind}s"
    return None
