"""Calibrate on the batches of tokens of a `DataLoader`."""

import torch
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

import pruning

name = "HuggingFaceTB/SmolLM2-135M-Instruct"
tokenizer = AutoTokenizer.from_pretrained(name)
text = " ".join(f"Step {number} comes before step {number + 1}." for number in range(200))
ids = torch.tensor(tokenizer(text).input_ids)
windows = ids[: len(ids) // 64 * 64].view(-1, 64)

pruned = pruning.prune(
    name, steps=pruning.Neurons(fraction=0.2), calibration=DataLoader(windows, batch_size=4)
)
print(pruned)
