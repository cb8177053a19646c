"""The loss of a model on tokens, which perplexity and the layer searches are computed from."""

import math
from collections.abc import Iterable

import torch
from torch.nn import functional
from transformers import PreTrainedModel


def token_losses(model: PreTrainedModel, window: torch.Tensor) -> torch.Tensor:
    """Return the negative log-likelihood of each token of a window, given those before it.

    Args:
        model: The model to measure.
        window: Token ids, `[tokens]`.

    Returns:
        Nats, `[tokens - 1]`: the first token has none before it.
    """
    ids = window[None].to(model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        return functional.cross_entropy(logits, ids[0, 1:], reduction="none")


def mean_loss(model: PreTrainedModel, windows: Iterable[torch.Tensor]) -> float:
    """Return the mean negative log-likelihood in nats per token, every token weighing the same.

    Args:
        model: The model to measure.
        windows: Token ids, each `[tokens]`; at least one window has two tokens.
    """
    losses = [token_losses(model, window) for window in windows if len(window) > 1]
    return float(torch.cat(losses).mean(dtype=torch.float64))


def perplexity_of(loss: float) -> float:
    """Return exp of a loss in nats, or infinity if that is more than a float holds."""
    return math.exp(loss) if loss < 700 else math.inf
