"""Prune to several sizes and see what each costs. The calibration text is read once."""

import pruning

base = pruning.load("HuggingFaceTB/SmolLM2-135M-Instruct")
for fraction in (0.1, 0.2, 0.3):
    pruned = pruning.prune(base, steps=pruning.Neurons(fraction=fraction), calibration="general")
    quality = pruning.evaluate(pruned, tokens=500)
    print(f"{fraction:.0%}: {pruned.shape.parameters:,} parameters, perplexity {quality.overall.value:.2f}")
