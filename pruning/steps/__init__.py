"""What to cut: one file per kind of unit. To add one, write its file and name it in `AnyStep`."""

from pruning.steps.neurons import Neurons

AnyStep = Neurons
"""Every step, told apart by its field `step`."""

STEPS = {"neurons": Neurons}

__all__ = ["STEPS", "AnyStep", "Neurons"]
