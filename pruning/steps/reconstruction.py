"""Reconstruction: layer by layer, the model is trained to pass on what the base passes on."""

from typing import ClassVar, Literal

from pydantic import Field

from pruning.architectures.families import CHANNEL, TOKEN
from pruning.architectures.shape import Shape
from pruning.cost.cost import Cost
from pruning.cost.passes import FLOAT, Sizes
from pruning.cost.plan import Plan
from pruning.errors import RecipeError
from pruning.repair.layer_student import DAMPINGS
from pruning.repair.reconstruction import MOST_TOKENS, reconstruct
from pruning.steps.base import Step, StepContext, StepResult
from pruning.steps.settings import Setting, Slider, whole
from pruning.surgery import cut

MAX_EPOCHS = 100


class Reconstruction(Step):
    """Refit each layer to the base's residual stream, given what the pruned layers before it output.

    A repair before it is not needed: see `pruning.repair.reconstruction`. It takes about five calibration
    passes at two epochs.

    Example:
        >>> import pruning
        >>> pruning.Reconstruction(epochs=2).describe()
        'reconstruction in 2 passes'
    """

    title: ClassVar[str] = "Reconstruction"
    hint: ClassVar[str] = "Repairs every layer against the whole model: better than repair alone, and slower"
    settings: ClassVar[tuple[Setting, ...]] = (
        Setting(
            "epochs",
            "--reconstruct",
            "Passes of reconstruction",
            whole,
            Slider(lambda _shape: 8),
            activates_step=True,
            usage="A number, such as 2",
        ),
    )

    step: Literal["reconstruction"] = "reconstruction"
    epochs: int = Field(
        2,
        ge=0,
        le=MAX_EPOCHS,
        description="Number of passes over the calibration text; two are usually enough, and 0 is least "
        "squares alone",
    )

    def reads_text(self, shape: Shape) -> bool:
        """Return that it does."""
        del shape
        return True

    def reshape(self, shape: Shape) -> Shape:
        """Return the same shape, once it is known that its residual stream compares with the base's."""
        for kind, name in {CHANNEL: "channels", TOKEN: "vocabulary"}.items():
            if shape.count(kind) != shape.anatomy.units[kind]:
                raise RecipeError(
                    f"Reconstruction compares residual streams and tokens, which a cut of {name} changes. "
                    f"Cut {name} after it, or leave one of the two out."
                )
        return shape

    def cost(self, plan: Plan) -> Cost:
        """Estimate the passes through both models, the refits of each layer and its training.

        A layer keeps its training only where that helps, so memory may turn out to be less.
        """
        share = min(1.0, MOST_TOKENS / plan.reading.tokens)  # Of a longer text, a part is read.
        results = FLOAT * int(
            plan.sizes.components["mlp"] + plan.sizes.layers * plan.sizes.queries * plan.sizes.channels
        )
        return Cost(self._flop(plan, share), results + self._memory(plan, share), results)

    def _flop(self, plan: Plan, share: float) -> float:
        """Count the operations.

        The base's layers are passed once for targets, the model's once for states. Each layer is refitted twice,
        with one system for each damping that is tried, and trained: an epoch reads the fitting text forward and
        backward, where the backward pass ends at the first matrices of the MLP, and then the held-out text.
        """
        sizes, reading = plan.sizes, plan.reading
        tokens, fitting, heldout = (
            share * count for count in (reading.tokens, reading.fitting, reading.heldout)
        )
        forward = sizes.forward_flop(1, reading.window) / sizes.layers
        mlp = sizes.components["mlp"] / sizes.layers
        refits = 0.0
        for width in (sizes.queries, sizes.neurons):
            system = width**3 / 3 + 2 * width**2 * sizes.channels + heldout * forward
            refits += fitting * (forward + 2 * width * (width + sizes.channels)) + len(DAMPINGS) * system
        training = self.epochs * (fitting * (forward + 3 * mlp) + heldout * forward)
        of_layers = sizes.layers * ((heldout + tokens) * forward + refits + training)
        return Sizes(plan.base).forward_flop(tokens, reading.window) + of_layers

    def _memory(self, plan: Plan, share: float) -> int:
        """Return what is held while a layer is worked on, in bytes.

        The residual streams of the whole text three times; a copy of the layer, with gradient, two moments and
        the best so far of its MLP; and either the largest system or what a backward pass needs.
        """
        sizes, window = plan.sizes, plan.reading.window
        width, mlp = max(sizes.neurons, sizes.queries), sizes.components["mlp"] / sizes.layers
        streams = 3 * FLOAT * int(share * plan.reading.tokens) * sizes.channels
        copies = FLOAT * int(sizes.projections / sizes.layers + 5 * mlp)
        systems = FLOAT * (3 * width**2 + 3 * width * sizes.channels)
        return streams + copies + max(systems, sizes.saved_memory(window, window) // sizes.layers)

    def apply(self, context: StepContext) -> StepResult:
        """Train the layers one after the other."""
        result = reconstruct(
            context.model,
            context.base.model,
            context.required_windows,
            kept_layers=context.layers,
            seed=context.seed,
            progress=context.progress,
            epochs=self.epochs,
        )
        # What is seen is what is saved: new weights are rounded to the stored precision.
        tensors = {name: value.to(context.base.storage_dtype) for name, value in result.tensors.items()}
        model = cut(context.model, context.shape, {}, tensors, context.progress)
        return StepResult(model, context.tokenizer, result.layers, changed=frozenset(tensors))

    def describe(self) -> str:
        """Return how the layers are refitted."""
        if not self.epochs:
            return "reconstruction by least squares"
        return f"reconstruction in {self.epochs} pass{'es' if self.epochs > 1 else ''}"
