"""Reconstruction: layer by layer, the model is trained to pass on what the base passes on."""

from typing import ClassVar, Literal

from pydantic import Field

from pruning.architectures.families import CHANNEL, TOKEN
from pruning.architectures.shape import Shape
from pruning.errors import RecipeError
from pruning.repair.reconstruction import reconstruct
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
