"""Why units cannot be removed from a model: what the table says, or what a proof found."""

from typing import TYPE_CHECKING

from pruning.architectures.anatomy import Anatomy
from pruning.architectures.families import known_reason
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
        anatomy.reasons[unit] = prove.proof_failure(full(anatomy.config), unit)
        if isinstance(anatomy.config, PlainConfig):
            anatomy.config.keep(anatomy.config)
    return anatomy.reasons[unit]
