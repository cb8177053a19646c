"""How to rank neurons: one file per criterion, each with a function of the same name.

To add one, write its file and name it here.
"""

from pruning.criteria import (
    activation,
    activation_prior,
    gate_up_unpaired,
    l1,
    l2,
    minitron,
    peak_to_peak,
    random,
    variance,
    wanda,
)
from pruning.criteria.base import MLP, OWN, Criterion, criterion
from pruning.errors import RecipeError

_FILES = (
    activation_prior,
    activation,
    wanda,
    minitron,
    peak_to_peak,
    variance,
    l1,
    l2,
    random,
    gate_up_unpaired,
)

CRITERIA: dict[str, Criterion] = {
    name: getattr(file, name) for file in _FILES for name in [file.__name__.rpartition(".")[2]]
}
"""Every criterion by name, in the order in which they are offered."""

DEFAULT_CRITERION = "activation_prior"

PUBLISHED_NAMES = {
    criterion.name: criterion.published_name for criterion in CRITERIA.values() if criterion.published_name
}
"""For each renamed criterion the name that release 0.1.0 published."""


def criterion_named(name: str) -> Criterion:
    """Return the criterion of a name, of its name in release 0.1.0, or one that the user defined in this process.

    Raises:
        RecipeError: If there is no such criterion; the message lists those there are.
    """
    if name in CRITERIA:
        return CRITERIA[name]
    for known in CRITERIA.values():
        if name and name == known.published_name:
            return known
    if name in OWN:
        return OWN[name]
    plain, _, digest = name.partition("@")
    if digest and plain in OWN:
        raise RecipeError(
            f"The recipe was made with another version of the criterion {plain}: its digest is {digest[:12]}, that of "
            f"yours is {OWN[plain].digest}."
        )
    own = f" {plain} is a user's own criterion: define it first, or give its file with --criterion FILE.py:{plain}."
    raise RecipeError(
        f"There is no criterion {name!r}. Choose one of: {', '.join(CRITERIA)}.{own if digest else ''}"
    )


def own_criterion(given: object) -> Criterion | None:
    """Return the criterion that was given itself, or by the name of one that the user defined; None for any other."""
    if isinstance(given, Criterion):
        return given
    return OWN.get(given) if isinstance(given, str) else None


__all__ = [
    "CRITERIA",
    "DEFAULT_CRITERION",
    "MLP",
    "PUBLISHED_NAMES",
    "Criterion",
    "criterion",
    "criterion_named",
    "own_criterion",
]
