"""Reconstruction: layer by layer, the model learns to pass on what the dense model passes on."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pruning.architectures.families import CHANNEL, TOKEN
from pruning.architectures.shape import Shape
from pruning.errors import RecipeError
from pruning.repair.reconstruction import reconstruct
from pruning.steps.base import Outcome, Step, Subject
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
            starts=True,
        ),
    )

    step: Literal["reconstruction"] = "reconstruction"
    epochs: Annotated[int, Field(ge=0, le=100)] = 2

    @property
    def reads_text(self) -> bool:
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

    def apply(self, subject: Subject) -> Outcome:
        made = reconstruct(
            subject.model,
            subject.base.model,
            subject.windows,
            seed=subject.seed,
            progress=subject.progress,
            epochs=self.epochs,
        )
        # What is seen is what is saved: new weights are rounded to the stored precision.
        tensors = {name: value.to(subject.base.storage_dtype) for name, value in made.tensors.items()}
        model = cut(subject.model, subject.shape, {}, tensors)
        return Outcome(model, subject.tokenizer, made.notes)

    def describe(self) -> str:
        if not self.epochs:
            return "reconstruction by least squares"
        return f"reconstruction in {self.epochs} pass{'es' if self.epochs > 1 else ''}"
