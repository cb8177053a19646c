"""What a visitor may ask of this machine: the estimate of a recipe or a request, compared before it is queued."""

import shutil
from collections.abc import Callable, Mapping

from page.server.look_ups import look_up
from page.server.session import JOB_SECONDS, pools
from page.workers.pool import worker_memory
from page.workers.tasks import (
    CompareTask,
    DistillTask,
    EvaluateTask,
    ExportTask,
    ImportanceTask,
    InfluenceTask,
    NextTokensTask,
    PruneTask,
    PublishTask,
    SearchTask,
    SweepTask,
    Task,
    TokenLossTask,
)
from page.workers.workbench import Visitor
from pruning.architectures.shape import Shape
from pruning.cost.allowance import Allowance, changes_to_fit, check, largest, machine_speed, model_to_fit
from pruning.cost.cost import Cost
from pruning.errors import RecipeError
from pruning.estimate import estimate, generating, search, sweep
from pruning.files import cache_folder
from pruning.recipe import Recipe
from pruning.steps import Distillation, Neurons
from pruning.text.generation import MAX_PROMPT_TOKENS

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
    cache_folder().mkdir(parents=True, exist_ok=True)
    disk = shutil.disk_usage(cache_folder()).free
    return Allowance(seconds, SPEED_MARGIN * machine_speed(), worker_memory(), int(DISK_SHARE * disk))


def check_task(task: Task, visitor: Visitor, seconds: float) -> None:
    """Refuse a visitor's task that takes more than this machine can give, before it is queued.

    Args:
        task: The task.
        visitor: Who asks.
        seconds: How long their job may work.

    Raises:
        PruningError: It is too much, with the number, the limit and what would fit; or its model cannot be used.
    """
    match task:
        case DistillTask(recipe, step):
            steps = [step] if _is_kept(recipe, visitor) else [*recipe.steps, step]
            _check_recipe(recipe.model_copy(update={"steps": tuple(steps)}), visitor, seconds, evaluate=False)
        case EvaluateTask(recipe) | ExportTask(recipe) | PublishTask(recipe):
            _check_recipe(recipe, visitor, seconds, evaluate=True)
        case PruneTask(recipe) | NextTokensTask(recipe) | TokenLossTask(recipe):
            _check_recipe(recipe, visitor, seconds, evaluate=False)
        case CompareTask(recipe, prompt, sampling):
            shape = look_up(recipe.base, visitor).shape
            tokens = min(len(prompt), MAX_PROMPT_TOKENS)
            _check_cost(generating((shape, shape), tokens, sampling.max_new_tokens), seconds)
        case SearchTask(model, _, calibration):
            _check_cost(search(look_up(model, visitor).shape, calibration, thorough=False), seconds)
        case SweepTask(model, criteria, calibration):
            _check_cost(sweep(look_up(model, visitor).shape, criteria, calibration), seconds)
        case ImportanceTask(model, _, _, calibration) | InfluenceTask(model, calibration):
            reading = Recipe(base=model, calibration=calibration, steps=(Neurons(fraction=0.2),))
            _check_recipe(reading, visitor, seconds, evaluate=False)


def _is_kept(recipe: Recipe, visitor: Visitor) -> bool:
    """Return whether the model of a recipe is on disk, so that its steps are not carried out again."""
    storage = pools.storage
    return storage is not None and storage.find(recipe.sha256, visitor.owner) is not None


def _check_recipe(recipe: Recipe, visitor: Visitor, seconds: float, evaluate: bool) -> None:
    if not _is_kept(recipe, visitor):
        found = look_up(recipe.base, visitor)
        recipe.check(found.shape)
        is_mapped = found.source.public
        check_budget(recipe, found.shape, seconds=seconds, base_is_mapped=is_mapped, evaluate=evaluate)


def _check_cost(cost: Cost, seconds: float) -> None:
    check(cost, allowance(seconds), f"Ask for less, or choose a smaller model. {ELSEWHERE}")


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
