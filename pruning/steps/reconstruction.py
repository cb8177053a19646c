"""Reconstruction: layer by layer, the model learns to pass on what the dense model passes on."""

from dataclasses import asdict
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pruning.architectures.families import CHANNEL, TOKEN
from pruning.architectures.shape import Shape
from pruning.errors import RecipeError
from pruning.repair.reconstruction import reconstruct
from pruning.steps.base import Step, StepContext, StepResult
from pruning.steps.settings import Setting, Slider, whole
from pruning.surgery import cut


class Reconstruction(Step):
    """Refit each layer to the dense model's residual stream, on what the layers before it really say.

    `epochs`: how often each layer reads the calibration text; 0 for least squares alone. A repair before
    it is not needed: see `pruning.reconstruction`. It takes about five calibration passes at two epochs.
    """

    title: ClassVar[str] = "Reconstruction"
    hint: ClassVar[str] = "Repairs every layer against the whole model: better than repair alone, and slower"
    settings: ClassVar[tuple[Setting, ...]] = (
        Setting(
            "epochs",
            "--reconstruct",
            "Passes of reconstruction",
            "How often every layer reads the calibration text; two are enough",
            whole,
            Slider(lambda shape: 8),
            activates_step=True,
        ),
    )

    step: Literal["reconstruction"] = "reconstruction"
    epochs: Annotated[int, Field(ge=0, le=100)] = 2

    @property
    def needs_calibration_text(self) -> bool:
        return True

    def reshape(self, shape: Shape) -> Shape:
        changed = {CHANNEL: "channels", TOKEN: "vocabulary"}
        for kind, name in changed.items():
            if shape.count(kind) != shape.anatomy.units[kind]:
                raise RecipeError(
                    f"Reconstruction compares residual streams and tokens, which a cut of {name} changes. "
                    f"Cut {name} after it, or leave one of the two out."
                )
        return shape

    def apply(self, context: StepContext) -> StepResult:
        made = reconstruct(
            context.model,
            context.base.model,
            context.windows,
            seed=context.seed,
            progress=context.progress,
            epochs=self.epochs,
        )
        # What is seen is what is saved: new weights are rounded to the stored precision.
        tensors = {name: value.to(context.base.storage_dtype) for name, value in made.tensors.items()}
        model = cut(context.model, context.shape, {}, tensors)
        return StepResult(model, context.tokenizer, tuple(asdict(fit) for fit in made.layers))

    def describe(self) -> str:
        if not self.epochs:
            return "reconstruction by least squares"
        return f"reconstruction in {self.epochs} pass{'es' if self.epochs > 1 else ''}"
