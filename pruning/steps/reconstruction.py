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
        description="How often every layer reads the calibration text; two are enough, and 0 is least "
        "squares alone",
    )

    @property
    def needs_calibration_text(self) -> bool:
        """Always."""
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

        The base's layers are passed once for targets, the model's once for states. Each layer is refitted twice,
        with one system for each damping that is tried, and trained: an epoch reads the fitting text forward and
        backward, where the backward pass ends at the first matrices of the MLP, and then the held-out text.
        The residual streams of the whole text are held three times while they pass a layer.
        """
        sizes, base = plan.sizes, Sizes(plan.base)
        reading, channels = plan.reading, sizes.channels
        share = min(1.0, MOST_TOKENS / reading.tokens)
        tokens, fitting, heldout = (
            share * count for count in (reading.tokens, reading.fitting, reading.heldout)
        )
        mlp = sizes.components["mlp"] / sizes.layers
        forward = sizes.forward_flop(1, reading.window) / sizes.layers
        refits = 0.0
        for width in (sizes.queries, sizes.neurons):
            system = width**3 / 3 + 2 * width**2 * channels + heldout * forward
            refits += fitting * (forward + 2 * width * (width + channels)) + len(DAMPINGS) * system
        training = self.epochs * (fitting * (forward + 3 * mlp) + heldout * forward)
        of_layer = (heldout + tokens) * forward + refits + training
        streams = 3 * FLOAT * int(tokens) * channels
        width = max(sizes.neurons, sizes.queries)
        systems = FLOAT * (3 * width**2 + 3 * width * channels)
        copies = FLOAT * int(sizes.projections / sizes.layers + 5 * mlp)
        results = FLOAT * int(sizes.components["mlp"] + sizes.layers * sizes.queries * channels)
        working = max(systems, sizes.saved_memory(reading.window, reading.window) // sizes.layers)
        return Cost(
            base.forward_flop(tokens, reading.window) + sizes.layers * of_layer,
            streams + copies + results + working,
            results,
        )

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
        return StepResult(model, context.tokenizer, result.layers)

    def describe(self) -> str:
        """Return how the layers are refitted."""
        if not self.epochs:
            return "reconstruction by least squares"
        return f"reconstruction in {self.epochs} pass{'es' if self.epochs > 1 else ''}"
