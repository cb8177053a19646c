"""Tokens per second and prefill of pruned over dense, beside the share of the parameters that is left."""

from functools import partial

import torch

from benchmarks.common import ROUNDS, base, medians, table
from pruning import Heads, Layers, Neurons, Recipe, prune

CUTS = {
    "width: 50 % of the neurons": [Neurons(fraction=0.5, criterion="peak_to_peak")],
    "width: 50 % of the neurons, a multiple of 64": [
        Neurons(fraction=0.5, criterion="peak_to_peak", multiple_of=64)
    ],
    "heads: one of three groups": [Heads(groups=1, repair=False)],
    "depth: the last 9 of 30 layers": [Layers(count=9, method="last")],
    "both": [Neurons(fraction=0.5, criterion="peak_to_peak"), Layers(count=9, method="last")],
}
NEW_TOKENS = 32
PROMPT_TOKENS = 512


def main() -> None:
    models = {"dense": base().model}
    for name, steps in CUTS.items():
        models[name] = prune(Recipe(base=base().source.name, steps=steps), base()).model
    writing = medians({name: partial(_write, model) for name, model in models.items()})
    reading = medians({name: partial(_read, model) for name, model in models.items()})
    dense = models["dense"].num_parameters()
    table(
        f"Generation at batch 1, greedy, {NEW_TOKENS} tokens after a prompt of 4; prefill of {PROMPT_TOKENS} "
        f"tokens (medians of {ROUNDS} turns)",
        ["model", "parameters", "share", "tokens per second", "over dense", "prefill", "time over dense"],
        [
            (
                name,
                f"{model.num_parameters():,}",
                f"{model.num_parameters() / dense:.3f}",
                f"{NEW_TOKENS / writing[name]:.1f}",
                f"{writing['dense'] / writing[name]:.2f}",
                f"{1000 * reading[name]:.0f} ms",
                f"{reading[name] / reading['dense']:.3f}",
            )
            for name, model in models.items()
        ],
    )


def _write(model) -> None:
    prompt = base().tokenizer("Once upon a time", return_tensors="pt").input_ids
    with torch.inference_mode():
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            pad_token_id=0,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
        )


def _read(model) -> None:
    tokens = torch.arange(1000, 1000 + PROMPT_TOKENS)[None]
    with torch.inference_mode():
        model(input_ids=tokens, logits_to_keep=1)
