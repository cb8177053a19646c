"""Prune a model to 25% fewer parameters by the cuts that keep most of its answers, and save it."""

import pruning

base = pruning.load("HuggingFaceTB/SmolLM2-135M-Instruct")  # Or the path of your folder.
found = pruning.search(
    base, "25%", score="answers", calibration="general", thorough=False, top_k=2, scores="scores.json"
)
pruned = pruning.prune(base, recipe=found.chosen.recipe)
pruned.save("smaller")
print(f"{found.chosen.title}: {found.chosen.score:.0%} of the answers are good")
