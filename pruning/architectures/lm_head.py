"""The two halves of a model: the backbone, from tokens to hidden states, and the head, from there to logits."""

from __future__ import annotations

import copy
from functools import cache
from types import SimpleNamespace
from typing import Any

from pruning.lazy import nn, torch, transformers


class _HiddenStates(SimpleNamespace):
    """What a backbone returns, with nothing but its last hidden states."""

    def __getattr__(self, _name: str) -> None:
        return None

    def __getitem__(self, index: int) -> Any:
        return self.last_hidden_state if index == 0 else None


@cache
def _recorded() -> Any:
    """Return the class of a backbone that has already run."""

    class Recorded(nn.Module):
        """A backbone that has already run: it, and whatever of it is called, returns the same hidden states."""

        def __init__(self, module: nn.Module, hidden: torch.Tensor) -> None:
            super().__init__()
            self.__dict__ |= {"module": module, "hidden": hidden}

        def __getattr__(self, name: str) -> Any:
            value = getattr(self.__dict__["module"], name)
            return self if isinstance(value, nn.Module) else value

        def forward(self, *_args: Any, **_named: Any) -> _HiddenStates:
            """Return the hidden states."""
            return _HiddenStates(last_hidden_state=self.__dict__["hidden"])

    return Recorded


def backbone(model: transformers.PreTrainedModel) -> nn.Module:
    """Return the part of a causal language model that computes its last hidden states."""
    return model.get_submodule(_backbone_name(model))


def logits_of(model: transformers.PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Return the logits of hidden states, by the model's own code with its backbone left out.

    What a model does besides multiplying by its output embeddings belongs to its logits: a bias, a further layer
    (BERT), a scale (Granite, Cohere, MiniCPM), a cap (Gemma).

    Args:
        model: The model. It is not changed.
        hidden: Last hidden states, `[tokens, channels]`.

    Returns:
        `[tokens, vocabulary]`, float32.
    """
    head = copy.copy(model)
    name = _backbone_name(model)
    head._modules = {**model._modules, name: _recorded()(model.get_submodule(name), hidden[None])}
    head.__dict__.pop("forward", None)  # accelerate puts one there that calls the whole model.
    ids = torch.zeros((1, len(hidden)), dtype=torch.long, device=hidden.device)
    logits: torch.Tensor = head(input_ids=ids, use_cache=False).logits[0]
    return logits.float()


def _backbone_name(model: transformers.PreTrainedModel) -> str:
    """Return the attribute that holds the backbone: a few classes name another one than they have."""
    if model.base_model_prefix in model._modules:
        return model.base_model_prefix
    return next(
        name for name, module in model.named_children() if isinstance(module, transformers.PreTrainedModel)
    )
