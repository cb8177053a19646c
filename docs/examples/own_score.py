"""Search for the shape that does best by a score of your own."""

import pruning

TEXT = "The bakery opens at seven. " * 40


def recall(model: pruning.Pruned) -> float:
    """Return how well a model knows a text: higher is better."""
    return -pruning.perplexity(model.model, model.tokenizer, TEXT).value


base = pruning.load("HuggingFaceTB/SmolLM2-135M-Instruct")
found = pruning.search(
    base, "15%", score=recall, steps=["neurons", "heads"], calibration="general", thorough=False, top_k=2
)
pruned = pruning.prune(base, recipe=found.chosen.recipe)
print(pruning.evaluate(pruned, metrics=[recall], against=base)["recall"])
