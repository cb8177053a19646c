"""What a visitor may ask of this machine: the estimate of a recipe or a request, compared before it is queued."""

import shutil
import tempfile
from collections.abc import Callable, Mapping

from page.server.session import JOB_SECONDS
from pruning.architectures.shape import Shape
from pruning.cost.allowance import Allowance, changes_to_fit, check, largest, machine_speed, model_to_fit
from pruning.cost.cost import Cost
from pruning.errors import RecipeError
from pruning.estimate import estimate
from pruning.memory import available_memory
from pruning.recipe import Recipe
from pruning.steps import Distillation

MAX_STEPS = 20
"""The most steps of a visitor's recipe."""

ELSEWHERE = "Or run Secateur on your own machine."

SPEED_MARGIN = 4
"""How much faster than measured the machine may turn out to be: it may have been busy, and what is refused wrongly
cannot be done at all, while what is let in wrongly is stopped when its time is over."""

DISK_SHARE = 0.5
"""The share of the free disk that one job may fill."""


def allowance(seconds: float = JOB_SECONDS) -> Allowance:
    """Return what one job may take on this machine now.

    Args:
        seconds: How long it may work.
    """
    disk = shutil.disk_usage(tempfile.gettempdir()).free
    return Allowance(seconds, SPEED_MARGIN * machine_speed(), available_memory(), int(DISK_SHARE * disk))


def check_budget(
    recipe: Recipe,
    shape: Shape,
    *,
    seconds: float = JOB_SECONDS,
    teachers: Mapping[str, Shape] | None = None,
    base_is_mapped: bool = False,
    evaluate: bool = True,
    allowed: Allowance | None = None,
) -> Cost:
    """Refuse a visitor's recipe that takes more than this machine can give, and say what would fit.

    What is refused could not have ended: operations are counted at more than the speed of large matrix products.
    What passes may still take longer than it may, and is then stopped.

    Args:
        recipe: The recipe; it was checked against the shape.
        shape: The shape of its base.
        seconds: How long the job may work.
        teachers: The shapes of the teachers that it names, which the caller has looked up.
        base_is_mapped: Whether the base is in memory already, or in a file of float32.
        evaluate: Whether both models are measured afterwards.
        allowed: What may be used; by default what this machine has.

    Returns:
        The estimate.

    Raises:
        RecipeError: It is too much; the message has the number, the limit and what would fit.
    """
    if len(recipe.steps) > MAX_STEPS:
        raise RecipeError(
            f"The recipe has {len(recipe.steps)} steps; at most {MAX_STEPS} are carried out here. "
            f"Leave some out. {ELSEWHERE}"
        )
    known = teachers or {}
    for number, step in enumerate(recipe.steps):
        if isinstance(step, Distillation) and step.teacher is not None and step.teacher not in known:
            raise RecipeError(
                f"Another teacher than the base cannot be used here: {step.teacher}. "
                f"Leave it out. {ELSEWHERE}",
                ("steps", number, "teacher"),
            )
    allowed = allowed or allowance(seconds)

    def cost_of(changed: Recipe, base: Shape = shape) -> Cost:
        return estimate(
            changed,
            base,
            free=allowed.memory,
            teachers=known,
            base_is_mapped=base_is_mapped,
            evaluate=evaluate,
        )

    cost = cost_of(recipe)
    if allowed.excess(cost) > 1:
        if changes := changes_to_fit(recipe, cost_of, allowed):
            advice = ", and ".join(map(str, changes))
            check(cost, allowed, f"{advice[:1].upper()}{advice[1:]}. {ELSEWHERE}", changes[0].place)
        fitting = model_to_fit(shape, lambda smaller: cost_of(recipe, smaller), allowed)
        check(cost, allowed, f"{fitting} {ELSEWHERE}")
    return cost


def check_request(
    number: int, name: str, cost_of: Callable[[int], Cost], allowed: Allowance | None = None
) -> Cost:
    """Refuse a request that takes more than this machine can give, such as a prompt that is too long.

    Args:
        number: What decides its size, such as the number of a prompt's tokens.
        name: What the number counts, in the plural, such as `tokens`.
        cost_of: The estimate for such a number, from `pruning.estimate`.
        allowed: What may be used; by default what this machine has.

    Returns:
        The estimate.

    Raises:
        RecipeError: It is too much; the message has the number, the limit and what would fit.
    """
    allowed = allowed or allowance()
    cost = cost_of(number)
    if allowed.excess(cost) > 1:
        fitting = largest(1, number, lambda fewer: allowed.excess(cost_of(fewer)) <= 1)
        advice = f"At most {fitting:,} {name} fit, not {number:,}." if fitting else "Choose a smaller model."
        check(cost, allowed, advice)
    return cost
