"""Calibrate on a `datasets.Dataset`, and read more of it than by default."""

from datasets import Dataset

import pruning

rows = Dataset.from_list(
    [{"text": f"Row {number} of a data set with a column of texts."} for number in range(400)]
)
pruned = pruning.prune(
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    steps=pruning.Neurons(fraction=0.2),
    calibration=pruning.Calibration.of(rows, tokens=4096),
)
print(pruned)
