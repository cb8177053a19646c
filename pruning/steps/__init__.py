"""What a recipe can do, one file per step.

To add one, write its file and name it here, and in the tests' table of samples.
"""

from typing import Annotated

from pydantic import Field

from pruning.steps.channels import Channels
from pruning.steps.distillation import Distillation
from pruning.steps.experts import Experts
from pruning.steps.heads import Heads
from pruning.steps.layers import Layers
from pruning.steps.neurons import Neurons
from pruning.steps.reconstruction import Reconstruction
from pruning.steps.vocabulary import Vocabulary
from pruning.steps.weights import Weights

AnyStep = Annotated[
    Neurons | Heads | Layers | Channels | Vocabulary | Weights | Reconstruction | Distillation | Experts,
    Field(discriminator="step"),
]
"""Every step, told apart by its field `step`."""

STEPS = {
    step.model_fields["step"].default: step
    for step in (Layers, Experts, Heads, Neurons, Reconstruction, Channels, Vocabulary, Distillation, Weights)
}
"""Every step by name, in the order in which they are best carried out."""

__all__ = [
    "STEPS",
    "AnyStep",
    "Channels",
    "Distillation",
    "Experts",
    "Heads",
    "Layers",
    "Neurons",
    "Reconstruction",
    "Vocabulary",
    "Weights",
]
