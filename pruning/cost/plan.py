"""What a step knows of the work before it begins, to estimate its own cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from pruning.architectures.shape import Shape
from pruning.cost.passes import Sizes
from pruning.cost.reading import Reading


@dataclass(frozen=True)
class Plan:
    """The model that a step will work on, as shapes.

    Attributes:
        shape: The model before the step.
        base: The model that the recipe begins with.
        reading: The calibration text.
        free: Free memory in bytes: some work is done in parts that fit.
        teachers: The shapes of the models that distillations name as teachers.
    """

    shape: Shape
    base: Shape
    reading: Reading
    free: int
    teachers: Mapping[str, Shape] = field(default_factory=dict)

    @cached_property
    def sizes(self) -> Sizes:
        """The sizes of the model before the step."""
        return Sizes(self.shape)
