"""Prune a model that is loaded already. It is not changed, and shares no memory with the result."""

from transformers import AutoModelForCausalLM, AutoTokenizer

import pruning

name = "HuggingFaceTB/SmolLM2-135M-Instruct"
model = AutoModelForCausalLM.from_pretrained(name)
tokenizer = AutoTokenizer.from_pretrained(name)

pruned = pruning.prune(
    model, tokenizer, steps=[pruning.Layers(count=1), pruning.Neurons(fraction=0.2)], calibration="general"
)
print(pruned.kept["layers"])
pruned.save("smaller")
