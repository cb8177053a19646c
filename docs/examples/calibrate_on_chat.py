"""Calibrate on a JSONL file of conversations, which are written in the model's own chat format."""

import json
from pathlib import Path

import pruning

rows = [{"prompt": f"Where is order {n}?", "completion": "It is on its way to you."} for n in range(60)]
Path("chat.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

pruned = pruning.prune(
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    steps=pruning.Neurons(fraction=0.2),
    calibration="chat.jsonl",
)
print(pruned.recipe.calibration.kind, pruned.recipe.calibration.address)
