"""Prune a model and write it for llama.cpp, which opens the file and computes the same before you get it."""

import pruning

pruned = pruning.prune(
    "HuggingFaceTB/SmolLM2-135M-Instruct", steps=pruning.Neurons(fraction=0.2), calibration="general"
)
folder = pruned.save("smaller")
file = pruning.export(folder, "smaller.gguf", "f16")
print(f"{file.stat().st_size:,} bytes")
