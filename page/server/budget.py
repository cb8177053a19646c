"""What a visitor may ask of this machine: the estimate of a recipe or a request, compared before it is queued."""

import shutil
from collections.abc import Callable, Mapping

from page.server.look_ups import look_up
from page.server.session import JOB_SECONDS, pools
from page.workers.abilities import AbilitiesTask
from page.workers.export import ZIP, ExportTask, PublishTask
from page.workers.messages import Prompt
from page.workers.pool import worker_memory
from page.workers.rounding import RoundingTask
from page.workers.tasks import (
    CompareTask,
    DistillTask,
    EvaluateTask,
    ImportanceTask,
    InfluenceTask,
    NextTokensTask,
    PruneTask,
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
from pruning.estimate import (
    estimate,
    exporting,
    generating,
    loading,
    next_tokens,
    rounding,
    saving,
    search,
    sweep,
    token_losses,
)
from pruning.evaluation.answers import MAX_NEW_TOKENS
from pruning.evaluation.inspection import LONGEST_TEXT
from pruning.files import cache_folder
from pruning.recipe import Recipe
from pruning.sharing.gguf import GGUF_TYPES
from pruning.sharing.gguf.rounded import ROUNDED_TYPES, tokens_read
from pruning.steps import Distillation, Neurons
from pruning.text.generation import MAX_PROMPT_TOKENS

MAX_STEPS = 20
"""The most steps of a visitor's recipe."""

ELSEWHERE = "Or run Secateur on your own machine."
ASK_FOR_LESS = "Ask for less, or choose a smaller model."

CHAT_TOKENS = 256
"""At most of what chat templates write around a question, with a system prompt of their own."""

CHARACTERS_PER_TOKEN = 4
"""Of a text in English. What is refused must be certain, so a text counts as no more tokens than that."""

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

    def check_recipe(recipe: Recipe, evaluate: bool = False) -> None:
        if not _is_kept(recipe, visitor):
            base = look_up(recipe.base, visitor)
            recipe.check(base.shape)
            check_budget(
                recipe, base.shape, seconds=seconds, base_is_mapped=base.source.public, evaluate=evaluate
            )

    def check_cost(cost_of: Callable[[Shape, int], Cost], model: str) -> None:
        base, allowed = look_up(model, visitor), allowance(seconds)
        loaded = loading(base.shape, base_is_mapped=base.source.public)
        check(loaded + cost_of(base.shape, allowed.memory), allowed, f"{ASK_FOR_LESS} {ELSEWHERE}")

    match task:
        case PruneTask(recipe):
            check_recipe(recipe)
        case EvaluateTask(recipe):
            check_recipe(recipe, evaluate=True)
        case AbilitiesTask(recipe):
            check_recipe(recipe)
            check_cost(lambda shape, _: generating((shape, shape), CHAT_TOKENS, MAX_NEW_TOKENS), recipe.base)
        case ExportTask(recipe, form):
            check_recipe(recipe, evaluate=True)
            check_cost(lambda shape, _: _exporting(recipe.check(shape), form), recipe.base)
        case PublishTask(recipe):
            check_recipe(recipe, evaluate=True)
            check_cost(lambda shape, _: saving(recipe.check(shape)), recipe.base)
        case DistillTask(recipe, step):
            before = () if _is_kept(recipe, visitor) else recipe.steps
            check_recipe(recipe.model_copy(update={"steps": (*before, step)}))
        case CompareTask(recipe, prompt, sampling):
            check_recipe(recipe)
            tokens = prompt_tokens(prompt)
            check_cost(
                lambda shape, _: generating((shape, shape), tokens, sampling.max_new_tokens), recipe.base
            )
        case NextTokensTask(recipe, prompt):
            check_recipe(recipe)
            check_cost(
                lambda shape, _: next_tokens(shape, least_tokens(prompt, MAX_PROMPT_TOKENS)), recipe.base
            )
        case TokenLossTask(recipe, text):
            check_recipe(recipe)
            check_cost(
                lambda shape, _: token_losses((shape, shape), least_tokens(text, LONGEST_TEXT)), recipe.base
            )
        case RoundingTask(recipe):
            check_recipe(recipe)
            types, read = len(ROUNDED_TYPES), tokens_read(recipe.steps)
            check_cost(lambda shape, _: rounding(shape, recipe.check(shape), types, read), recipe.base)
        case SearchTask(model, _, calibration):
            check_cost(lambda shape, free: search(shape, calibration, thorough=False, free=free), model)
        case SweepTask(model, criteria, calibration):
            check_cost(lambda shape, free: sweep(shape, criteria, calibration, free), model)
        case ImportanceTask(model, _, _, calibration) | InfluenceTask(model, calibration):
            # The same text is read for a cut of neurons, of which it is known what would fit.
            check_recipe(Recipe(base=model, calibration=calibration, steps=(Neurons(fraction=0.2),)))


def prompt_tokens(prompt: Prompt) -> int:
    """Return how many tokens a prompt has at least; if it may be a question, with room for its chat format."""
    around = 0 if prompt.chat is False else CHAT_TOKENS
    return min(
        around + least_tokens(prompt.text + (prompt.system or ""), MAX_PROMPT_TOKENS), MAX_PROMPT_TOKENS
    )


def least_tokens(text: str, most: int) -> int:
    """Return how many tokens a text has at least, as most tokenizers split it, up to the most that are read."""
    return min(-(-len(text) // CHARACTERS_PER_TOKEN), most)


def _exporting(shape: Shape, form: str) -> Cost:
    saved = saving(shape, packed=form == ZIP)
    return saved + exporting(shape, GGUF_TYPES[form].bits) if form in GGUF_TYPES else saved


def _is_kept(recipe: Recipe, visitor: Visitor) -> bool:
    """Return whether the model of a recipe is on disk, so that its steps are not carried out again."""
    storage = pools.models
    return storage is not None and storage.find(recipe.sha256, visitor.owner) is not None


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

    def first_steps(count: int) -> Recipe:
        return recipe.model_copy(update={"steps": recipe.steps[:count]})

    cost = cost_of(recipe)
    if allowed.excess(cost) > 1:
        if changes := changes_to_fit(recipe, cost_of, allowed):
            advice = ", and ".join(map(str, changes))
            check(cost, allowed, f"{advice[:1].upper()}{advice[1:]}. {ELSEWHERE}", changes[0].place)
        if kept := largest(
            1, len(recipe.steps) - 1, lambda count: allowed.excess(cost_of(first_steps(count))) <= 1
        ):
            check(cost, allowed, f"Leave out the steps after step {kept}. {ELSEWHERE}", ("steps", kept))
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
