"""How to rank: one file per idea. To add one, write its file and name it in `_ALL`."""

from pruning.criteria import (
    activation,
    activation_prior,
    gate_up_unpaired,
    magnitude,
    minitron,
    peak_to_peak,
    random,
    variance,
    wanda,
)
from pruning.criteria.base import MLP, Criterion
from pruning.errors import RecipeError

_ALL = (
    activation_prior.CRITERION,
    activation.CRITERION,
    wanda.CRITERION,
    minitron.CRITERION,
    peak_to_peak.CRITERION,
    variance.CRITERION,
    magnitude.L1,
    magnitude.L2,
    random.CRITERION,
    gate_up_unpaired.CRITERION,
)

CRITERIA = {criterion.name: criterion for criterion in _ALL}
DEFAULT_CRITERION = activation_prior.CRITERION.name


def criterion_named(name: str) -> Criterion:
    """The criterion of a name; raises `RecipeError` with the names there are."""
    if name in CRITERIA:
        return CRITERIA[name]
    raise RecipeError(f"There is no criterion {name!r}. Choose one of: {', '.join(CRITERIA)}.")


__all__ = ["CRITERIA", "DEFAULT_CRITERION", "MLP", "Criterion", "criterion_named"]
