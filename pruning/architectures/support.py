"""List every causal language model of the installed transformers, with the units that can be removed from it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pruning.architectures.config import known_types
from pruning.architectures.families import UNITS
from pruning.architectures.lookup import family_for
from pruning.architectures.probe import default_config
from pruning.architectures.prove import proof_failure
from pruning.errors import ModelError


@dataclass(frozen=True)
class Support:
    """What can be removed from models of one type.

    Attributes:
        name: The model type.
        units: The kinds of unit that were proven, in the order of `UNITS`.
        reason: Why the other kinds cannot be removed; empty if all can.
    """

    name: str
    units: tuple[str, ...]
    reason: str


def supported(names: Sequence[str] | None = None, units: Sequence[str] = tuple(UNITS)) -> Iterator[Support]:
    """Prove each kind of unit for model types, with the options that transformers gives them by default.

    Args:
        names: The model types; None for all that the installed transformers has.
        units: The kinds of unit to prove.

    Yields:
        What can be removed, one type after the other.
    """
    for name in known_types() if names is None else names:
        yield support_of(name, units)


def support_of(name: str, units: Sequence[str] = tuple(UNITS)) -> Support:
    """Return what can be removed from models of one type; see `supported`."""
    try:
        config = default_config(name)
        family_for(config)
    except ModelError as error:
        return Support(name, (), str(error))
    reasons = {unit: proof_failure(config, unit) for unit in units}
    proven = tuple(unit for unit, reason in reasons.items() if reason is None)
    by_reason: dict[str, list[str]] = {}
    for unit, reason in reasons.items():
        if reason is not None:
            by_reason.setdefault(reason, []).append(unit)
    return Support(
        name, proven, "; ".join(f"{', '.join(each)}: {reason}" for reason, each in by_reason.items())
    )
