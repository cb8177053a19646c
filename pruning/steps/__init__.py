"""What to cut: one file per kind of unit. To add one, write its file and name it in `AnyStep`."""

from typing import Annotated

from pydantic import Field

from pruning.steps.heads import Heads
from pruning.steps.layers import Layers
from pruning.steps.neurons import Neurons

AnyStep = Annotated[Neurons | Heads | Layers, Field(discriminator="step")]
"""Every step, told apart by its field `step`."""

STEPS = {"neurons": Neurons, "heads": Heads, "layers": Layers}

__all__ = ["STEPS", "AnyStep", "Heads", "Layers", "Neurons"]
