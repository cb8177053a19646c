"""Prune a model, fine-tune it with peft, merge, and measure it."""

import torch
from peft import LoraConfig, get_peft_model

import pruning

base = pruning.load("HuggingFaceTB/SmolLM2-135M-Instruct")
pruned = pruning.prune(base, steps=pruning.Neurons(fraction=0.2), calibration="general")

adapted = get_peft_model(pruned.model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
optimizer = torch.optim.AdamW(adapted.parameters(), lr=1e-3)
ids = pruned.tokenizer("A text that the model is to know by heart.", return_tensors="pt").input_ids
for _ in range(3):
    loss = adapted(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()

model = adapted.merge_and_unload()
model.save_pretrained("tuned")
pruned.tokenizer.save_pretrained("tuned")
print(pruning.evaluate(model, pruned.tokenizer, tokens=500).overall.value)
