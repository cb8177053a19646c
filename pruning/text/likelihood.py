"""The loss of a model on tokens, which perplexity and the layer searches are computed from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pruning.architectures.lm_head import backbone, logits_of
from pruning.lazy import nn, torch
from pruning.progress import Progress, Reporter, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_LOGITS = 1 << 25
"""The most logits in memory at one time, of one token at least: 134 MB in float32."""


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
        hidden = backbone(model)(input_ids=ids, use_cache=False).last_hidden_state[0]
        labels = nn.functional.pad(ids[0, 1:], (0, 1))  # The last position predicts nothing that is known.
        pieces = max(1, MOST_LOGITS // model.config.vocab_size)
        losses = [
            nn.functional.cross_entropy(
                logits_of(model, states), following.to(states.device), reduction="none"
            )
            for states, following in zip(hidden.split(pieces), labels.split(pieces), strict=True)
        ]
        return torch.cat(losses)[:-1]


def mean_loss(model: PreTrainedModel, windows: Sequence[torch.Tensor], progress: Reporter = silent) -> float:
    """Return the mean negative log-likelihood in nats per token, every token weighing the same.

    Args:
        model: The model to measure.
        windows: Token ids, each `[tokens]`; at least one window has two tokens.
        progress: Called before each window.
    """
    losses = []
    for number, window in enumerate(windows):
        progress(Progress("Measuring the loss, windows", number, len(windows)))
        if len(window) > 1:
            losses.append(token_losses(model, window))
    return float(torch.cat(losses).mean(dtype=torch.float64))


def perplexity_of(loss: float) -> float:
    """Return exp of a loss in nats, or infinity if that is more than a float holds."""
    return math.exp(loss) if loss < 700 else math.inf
