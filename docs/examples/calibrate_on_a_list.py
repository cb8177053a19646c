"""Calibrate on a list of texts."""

import pruning

texts = [
    f"Order {number}: the customer asks where the parcel is, and it is on its way." for number in range(100)
]
pruned = pruning.prune(
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    steps=pruning.Neurons(fraction=0.2),
    calibration=texts,
)
print(pruned.recipe.calibration.sha256)
