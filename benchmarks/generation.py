"""Tokens per second and prefill time of pruned models over the base's, beside their share of parameters."""

from functools import partial

import torch
from transformers import PreTrainedModel

from benchmarks.common import ROUNDS, base, medians, table
from pruning import Heads, Layers, Neurons, Recipe, prune

CUTS = {
    "width: 50% of the neurons": [Neurons(fraction=0.5, criterion="peak_to_peak")],
    "width: 50% of the neurons, a multiple of 64": [
        Neurons(fraction=0.5, criterion="peak_to_peak", multiple_of=64)
    ],
    "heads: one of three groups": [Heads(groups=1, repair=False)],
    "depth: the last 9 of 30 layers": [Layers(count=9, method="last")],
    "both": [Neurons(fraction=0.5, criterion="peak_to_peak"), Layers(count=9, method="last")],
}
NEW_TOKENS = 32
PROMPT_TOKENS = 512


def main() -> None:
    """Time generation and prefill of the base and of five pruned models, and print a table."""
    models = {"base": base().model}
    for name, steps in CUTS.items():
        models[name] = prune(Recipe(base=base().source.name, steps=steps), base()).model
    generating = medians({name: partial(_generate, model) for name, model in models.items()})
    prefilling = medians({name: partial(_prefill, model) for name, model in models.items()})
    parameters = models["base"].num_parameters()
    table(
        f"Generation at batch 1, greedy, {NEW_TOKENS} tokens after a prompt of 4; prefill of {PROMPT_TOKENS} "
        f"tokens (medians of {ROUNDS} turns)",
        ["model", "parameters", "share", "tokens per second", "over base", "prefill", "time over base"],
        [
            (
                name,
                f"{model.num_parameters():,}",
                f"{model.num_parameters() / parameters:.3f}",
                f"{NEW_TOKENS / generating[name]:.1f}",
                f"{generating['base'] / generating[name]:.2f}",
                f"{1000 * prefilling[name]:.0f} ms",
                f"{prefilling[name] / prefilling['base']:.3f}",
            )
            for name, model in models.items()
        ],
    )


def _generate(model: PreTrainedModel) -> None:
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


def _prefill(model: PreTrainedModel) -> None:
    tokens = torch.arange(1000, 1000 + PROMPT_TOKENS)[None]
    with torch.inference_mode():
        model(input_ids=tokens, logits_to_keep=1)
