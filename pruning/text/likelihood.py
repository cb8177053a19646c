"""The loss of a model on tokens: what perplexity and the layer searches are made of."""

import math

import torch
from torch.nn import functional
from transformers import PreTrainedModel


def token_losses(model: PreTrainedModel, window: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each token of a window but the first, `[tokens - 1]`, in nats."""
    ids = window[None].to(model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        return functional.cross_entropy(logits, ids[0, 1:], reduction="none")


def mean_loss(model: PreTrainedModel, windows) -> float:
    """Mean negative log-likelihood over windows, each token weighing the same."""
    losses = [token_losses(model, window) for window in windows if len(window) > 1]
    return float(torch.cat(losses).mean(dtype=torch.float64))


def perplexity_of(loss: float) -> float:
    """exp of a loss in nats; infinite where that is more than a float holds."""
    return math.exp(loss) if loss < 700 else math.inf
