"""What a recipe or a request will take, from the config alone: so that too much is refused before it begins.

Each step estimates its own work (`Step.cost`). Here are the pipeline around them, and what is measured, generated,
searched and saved. Everything is an upper bound where the config does not decide: a text may be shorter than a
recipe allows, and fewer dampings may be tried.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from math import log2

from pruning.architectures.families import EXPERT, LAYER
from pruning.architectures.shape import Shape
from pruning.cost.cost import Cost, in_sequence
from pruning.cost.passes import FLOAT, Sizes
from pruning.cost.plan import Plan
from pruning.cost.reading import Reading, calibration_text, generation, losses, statistics
from pruning.errors import RecipeError
from pruning.evaluation.perplexity import GENRE_CHARACTERS, WINDOW
from pruning.evaluation.speed import NEW_TOKENS, ROUNDS
from pruning.memory import available_memory
from pruning.recipe import Recipe
from pruning.shape_search.candidates import PROBED_SHARES, PRUNABLE_UNITS, CutStep, PrunableUnit
from pruning.shape_search.costs import FINALISTS
from pruning.shape_search.gaps import gaps_cost
from pruning.shape_search.search import QUICK_TOKENS, RECONSTRUCTED
from pruning.shape_search.sweep import FRACTIONS
from pruning.sharing.gguf.expect import ROUNDINGS
from pruning.steps import Channels, Layers, Neurons, Reconstruction
from pruning.steps.base import Step
from pruning.steps.layers import Method, watching
from pruning.text.choice import DEFAULT_CALIBRATION, Calibration
from pruning.text.passages import CHAT, CHAT_AND_GENERAL, GENERAL, GENRES

SLACK = 64_000_000
"""Memory that any work takes: freed blocks that the allocator keeps, and the libraries' own buffers."""

TOKENIZER_BYTES = 16_000_000
"""Disk of a tokenizer and of the other small files of a saved model, at most."""

CONVERTER_BYTES = 600_000_000
"""Memory of the converter to GGUF, a process of its own that imports torch, without the tensors."""

COMPARED_TOKENS = 512
"""Tokens that an exported file and its model are compared on, without those beyond a sliding window."""

PROMPT_TOKENS = 6
"""Tokens of the short prompts that models are measured with, about."""

CHECKED_TOKENS = 16
"""Tokens that a saved model and the one in memory are compared on."""


def loading(shape: Shape, base_is_mapped: bool = False) -> Cost:
    """Estimate loading a model; one whose weights stay in their file takes only what its tokenizer does.

    Args:
        shape: The model's shape.
        base_is_mapped: Whether its file holds float32, so that the weights are mapped and not copied.
    """
    sizes = Sizes(shape)
    if base_is_mapped:
        return Cost()
    return Cost(memory=sizes.bytes + 2 * FLOAT * sizes.largest, held=sizes.bytes)


def estimate(
    recipe: Recipe,
    shape: Shape,
    *,
    free: int | None = None,
    teachers: Mapping[str, Shape] | None = None,
    base_is_mapped: bool = False,
    evaluate: bool = False,
) -> Cost:
    """Estimate carrying out a recipe on a base that is not loaded yet.

    Args:
        recipe: The recipe; it was checked against the shape.
        shape: The base's shape.
        free: The free memory that work in batches may divide up, in bytes; by default what is free now.
        teachers: The shapes of other teachers, by the name in the recipe; a missing one counts as the base.
        base_is_mapped: Whether the base's file holds float32, so that its weights take no private memory.
        evaluate: Whether both models are measured afterwards.

    Returns:
        The cost; what it holds is the base and the pruned model.

    Raises:
        RecipeError: A step does not fit the shape.

    Example:
        >>> import pruning
        >>> from pruning.estimate import estimate
        >>> recipe = pruning.Recipe(base="smollm2-135m", steps=[pruning.Neurons(fraction=0.2)])
        >>> cost = estimate(recipe, pruning.preview(recipe).before, free=4_000_000_000)
        >>> cost.memory < 4_000_000_000
        True
    """
    recipe.check(shape)
    free = available_memory() if free is None else free
    loaded = loading(shape, base_is_mapped)
    work, pruned = _steps(recipe.steps, recipe.calibration, shape, free, teachers or {})
    measured = evaluation(shape, pruned) if evaluate else Cost()
    return in_sequence(Cost.holding(SLACK), loaded, work, measured)


def _steps(
    steps: Sequence[Step],
    calibration: Calibration,
    base: Shape,
    free: int,
    teachers: Mapping[str, Shape],
    calibrated: bool = False,
) -> tuple[Cost, Shape]:
    """Return the cost of the steps of a recipe, as the pipeline carries them out, and the last shape.

    The model before a step lives until the step is done, with its statistics; those of the base live on.
    `calibrated`: the statistics of the base that the first step needs were computed before.
    """
    flop, memory, seconds = 0.0, 0, 0.0
    shape, own, of_base = base, 0, 0
    for number, step in enumerate(steps):
        sizes = Sizes(shape)
        reading = Reading.of(calibration, sizes)
        plan = Plan(shape, base, reading, free, teachers)
        reads = _calibration(step, plan, calibration)
        if calibrated and number == 0:
            reads = Cost.holding(reads.held)
        applied = step.cost(plan)
        peak = of_base + own + max(reads.memory, reads.held + applied.memory)
        memory, flop = max(memory, peak), flop + reads.flop + applied.flop
        seconds += applied.seconds
        if number == 0:
            of_base = 2 * reads.held
        shape = step.reshape(shape)
        own = min(own + applied.held, Sizes(shape).bytes)
    return Cost(flop, max(memory, of_base + own), of_base + own, 0, seconds), shape


def _calibration(step: Step, plan: Plan, calibration: Calibration) -> Cost:
    """Return the cost of what the pipeline reads for a step: the text, and statistics of its hooked modules."""
    anatomy, sizes = plan.shape.anatomy, plan.sizes
    kept = {anatomy.layer_module(layer) + "." for layer in range(sizes.layers)}
    modules = [
        module
        for module in step.hooked_modules(plan.shape)
        if any(module.startswith(layer) for layer in kept)
    ]
    if not modules and not step.reads_text(plan.shape):
        return Cost()
    text = calibration_text(sizes, calibration)
    if not modules:
        return text
    widths = [sizes.input_width(module) for module in modules]
    return text + statistics(sizes, widths, plan.reading, plan.free)


def perplexities(shape: Shape, tokens: int | None = None) -> Cost:
    """Estimate measuring a model on the held-out passages of all genres.

    Args:
        shape: The model's shape.
        tokens: How many tokens are read in all; None for the whole passages. How many these have depends on the
            tokenizer: about a quarter of the logarithm of its size, to base 2, in characters for each.
    """
    sizes = Sizes(shape)
    if tokens is None:
        tokens = int(len(GENRES) * GENRE_CHARACTERS / max(1.0, log2(sizes.vocabulary) / 4))
    return losses(sizes, tokens, min(sizes.limit(WINDOW), tokens // len(GENRES)))


def speed(shapes: Iterable[Shape], new_tokens: int = NEW_TOKENS, rounds: int = ROUNDS) -> Cost:
    """Estimate measuring how fast models generate."""
    return in_sequence(
        *(
            generation(Sizes(shape), PROMPT_TOKENS, new_tokens).times(rounds + 2 / new_tokens)
            for shape in shapes
        )
    )


def generating(shapes: Iterable[Shape], prompt: int, new_tokens: int) -> Cost:
    """Estimate continuing a prompt by several models at the same time.

    Args:
        shapes: The models.
        prompt: The prompt's tokens.
        new_tokens: How many tokens are generated.
    """
    costs = [generation(Sizes(shape), prompt, new_tokens) for shape in shapes]
    return Cost(sum(cost.flop for cost in costs), SLACK + sum(cost.memory for cost in costs))


def evaluation(before: Shape, after: Shape) -> Cost:
    """Estimate the full evaluation of a pruned model and its base: quality, speed and samples."""
    samples = in_sequence(
        *(generation(Sizes(shape), PROMPT_TOKENS, 24).times(3) for shape in (before, after))
    )
    return in_sequence(perplexities(before), perplexities(after), speed((before, after)), samples)


def next_tokens(shape: Shape, prompt: int) -> Cost:
    """Estimate the likeliest next tokens of a prompt of some tokens: the logits of its last."""
    sizes = Sizes(shape)
    return Cost(
        sizes.forward_flop(prompt, prompt) + sizes.head_flop(1),
        SLACK + max(sizes.forward_memory(prompt, prompt), sizes.logits_memory(1)),
    )


def token_losses(shapes: Iterable[Shape], tokens: int) -> Cost:
    """Estimate the loss of each token of a text under several models, one after the other."""
    return in_sequence(Cost.holding(SLACK), *(losses(Sizes(shape), tokens, tokens) for shape in shapes))


def rounding(before: Shape, after: Shape, types: int, tokens: int | None) -> Cost:
    """Estimate measuring a base and its pruned model, each in several types of rounded weights.

    Args:
        before: The base's shape.
        after: The pruned model's shape.
        types: The number of types; for each, a copy of the model is rounded a matrix at a time.
        tokens: How many tokens of held-out text are read each time; None for the whole passages.
    """
    copies = (
        (Cost.holding(sizes.bytes + 3 * FLOAT * sizes.largest) + perplexities(shape, tokens)).times(types)
        for shape, sizes in ((shape, Sizes(shape)) for shape in (before, after))
    )
    return in_sequence(Cost.holding(SLACK), perplexities(before, tokens), *copies)


def sweep(
    shape: Shape, criteria: Iterable[str], calibration: Calibration | None = None, free: int | None = None
) -> Cost:
    """Estimate quality against size: models under several criteria, each pruned and measured."""
    calibration = calibration or DEFAULT_CALIBRATION
    trials = [
        [Neurons(fraction=fraction, criterion=criterion)] for criterion in criteria for fraction in FRACTIONS
    ]
    return _trials(trials, shape, calibration, free)


def search(
    shape: Shape, calibration: Calibration | None = None, thorough: bool = True, free: int | None = None
) -> Cost:
    """Estimate a search for the best shape within a budget.

    It measures each kind of unit alone in a few amounts, then the finalists: some that combine kinds, and the best
    of each kind alone. What a finalist combines is not known before; it counts as one that loses a quarter of every
    kind. A thorough search also reconstructs a few by least squares.
    """
    calibration = calibration or DEFAULT_CALIBRATION
    if not thorough:
        calibration = calibration.model_copy(update={"tokens": min(calibration.tokens, QUICK_TOKENS)})
    probes = [
        tuple(found)
        for kind in PRUNABLE_UNITS
        for share in PROBED_SHARES
        if (found := _alone(shape, kind, share))
    ]
    combined = tuple(step for kind in PRUNABLE_UNITS for step in _alone(shape, kind, PROBED_SHARES[1]))
    alone = [tuple(found) for kind in PRUNABLE_UNITS if (found := _alone(shape, kind, PROBED_SHARES[2]))]
    trials: list[tuple[Step, ...]] = [*probes, *[combined] * (FINALISTS + 1), *alone]
    if thorough:
        followed = tuple(step for step in combined if not isinstance(step, Channels))
        trials += [(*followed, Reconstruction(epochs=0))] * RECONSTRUCTED
    free = available_memory() if free is None else free
    removing = [number for number, steps in enumerate(trials) if isinstance(steps[0], Layers)]
    prepared = _gaps_of_a_search(shape, calibration, thorough, free) if removing else None
    if prepared is not None:
        # The gaps of all trials are repaired before the first one.
        changes = [{"method": "last", "repair": False}] * len(trials)
    else:
        # The losses without each layer, or their influences, are kept for all trials.
        first = removing[0] if removing else None
        changes = [
            {"method": _layer_method(thorough) if number == first else "last"}
            for number in range(len(trials))
        ]
    planned = [
        [step.model_copy(update=change) if isinstance(step, Layers) else step for step in steps]
        for steps, change in zip(trials, changes, strict=True)
    ]
    return _trials(planned, shape, calibration, free, prepared)


def _layer_method(thorough: bool) -> Method:
    return "perplexity" if thorough else "influence"


def _gaps_of_a_search(shape: Shape, calibration: Calibration, thorough: bool, free: int) -> Cost | None:
    """Return the cost of the gaps that all trials of a search leave; None if each trial repairs its own."""
    layers = next(kind for kind in PRUNABLE_UNITS if kind.unit == LAYER)
    most = max(count for count in layers.amounts(shape, None) if count <= shape.count(LAYER) - 2)
    step = Layers(count=most, method=_layer_method(thorough))
    return gaps_cost(step, Plan(shape, shape, Reading.of(calibration, Sizes(shape)), free))


def _alone(shape: Shape, kind: PrunableUnit, share: float) -> list[CutStep]:
    """Return the step that removes about a share of a kind of unit, or none if no amount makes a model."""
    for amount in sorted(
        kind.amounts(shape, None), key=lambda amount: abs(amount - share * shape.count(kind.unit))
    ):
        step = kind.step(shape, amount)
        with suppress(RecipeError):
            step.reshape(shape)
            return [step]
    return []


def _trials(
    trials: Iterable[Sequence[Step]],
    shape: Shape,
    calibration: Calibration,
    free: int | None,
    prepared: Cost | None = None,
) -> Cost:
    """Return the cost of cutting a loaded base in several ways, each measured on held-out calibration text.

    The newest statistics of the base are kept, so a trial that begins as the one before reads nothing.
    `prepared`: what is computed for all of them, with what it holds until the last is done.
    """
    free = available_memory() if free is None else free
    sizes = Sizes(shape)
    reading = Reading.of(calibration, sizes)
    text = calibration_text(sizes, calibration)
    if calibration.text in (CHAT, CHAT_AND_GENERAL):  # A model's answers are kept.
        calibration = calibration.model_copy(update={"text": GENERAL})
    costs = []
    newest: tuple[str, ...] = ()
    for steps in trials:
        modules = steps[0].hooked_modules(shape)
        work, pruned = _steps(steps, calibration, shape, free, {}, calibrated=modules == newest)
        newest = modules or newest
        costs.append((work + reading.heldout_loss(Sizes(pruned))).times(1))
    return in_sequence(Cost.holding(SLACK), text, prepared or Cost(), *costs)


def importance(shape: Shape, calibration: Calibration | None = None, free: int | None = None) -> Cost:
    """Estimate scoring every neuron of a model on calibration text."""
    calibration = calibration or DEFAULT_CALIBRATION
    step = Neurons(fraction=0.5, repair=False)
    sizes = Sizes(shape)
    plan = Plan(shape, shape, Reading.of(calibration, sizes), available_memory() if free is None else free)
    return Cost.holding(SLACK) + _calibration(step, plan, calibration)


def influence(shape: Shape, calibration: Calibration | None = None) -> Cost:
    """Estimate measuring the block influence of every layer on calibration text."""
    calibration = calibration or DEFAULT_CALIBRATION
    sizes = Sizes(shape)
    plan = Plan(shape, shape, Reading.of(calibration, sizes), 0)
    return in_sequence(Cost.holding(SLACK), calibration_text(sizes, calibration), watching(plan))


def saving(shape: Shape, bytes_per_parameter: int = 2, packed: bool = False) -> Cost:
    """Estimate saving a model: a copy in the stored precision, or later the model that is read back to check it.

    What is stored in float32 is neither copied nor, since its file is mapped, held when it is read back.

    Args:
        shape: The model's shape.
        bytes_per_parameter: The size of a stored parameter.
        packed: Whether the folder is packed into one file too, which lies beside it.
    """
    sizes = Sizes(shape)
    stored = bytes_per_parameter * sizes.parameters
    return Cost(
        sizes.forward_flop(2 * CHECKED_TOKENS, CHECKED_TOKENS) + sizes.head_flop(2 * CHECKED_TOKENS),
        memory=(0 if bytes_per_parameter == FLOAT else sizes.bytes) + SLACK,
        disk=(2 if packed else 1) * (stored + TOKENIZER_BYTES),
    )


def exporting(shape: Shape, bits: float) -> Cost:
    """Estimate converting a saved model to GGUF, in a process of its own, and comparing the file with the model.

    The converter reads a tensor at a time, in float32. The model is read once more, for what the file has to give, and
    a mixture many more times, with its hidden states rounded. A file with fewer than 16 bits is rounded from one that
    has them.

    Args:
        shape: The model's shape.
        bits: The size of a parameter in the file, as in `GGUF_TYPES`.
    """
    sizes = Sizes(shape)
    tokens = COMPARED_TOKENS * (1 + (ROUNDINGS if EXPERT in shape.anatomy.units else 0))
    return Cost(
        sizes.forward_flop(tokens + COMPARED_TOKENS, COMPARED_TOKENS) + sizes.head_flop(tokens),
        memory=CONVERTER_BYTES + sizes.bytes + 3 * FLOAT * sizes.largest,
        disk=int(sizes.parameters * (bits + (16 if bits < 16 else 0)) / 8) + 2 * TOKENIZER_BYTES,
    )
