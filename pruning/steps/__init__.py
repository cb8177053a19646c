"""What a recipe can do, one file per step. To add one, write its file and name it here."""

from typing import Annotated

from pydantic import Field

from pruning.steps.heads import Heads
from pruning.steps.layers import Layers
from pruning.steps.neurons import Neurons

AnyStep = Annotated[Neurons | Heads | Layers, Field(discriminator="step")]
"""Every step, told apart by its field `step`."""

STEPS = {step.model_fields["step"].default: step for step in (Neurons, Heads, Layers)}
"""Every step by name, in the order in which people meet them."""

__all__ = ["STEPS", "AnyStep", "Heads", "Layers", "Neurons"]
