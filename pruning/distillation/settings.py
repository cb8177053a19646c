"""The settings of a training: its length, its optimizer and its loss."""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from pruning.schema import Frozen

HEAD_TOKENS: defaultdict[str, int] = defaultdict(lambda: 2048, cpu=128)
"""Tokens whose logits are in memory at one time, by device type: on a CPU, few enough for its cache."""


MAX_HELDOUT_TOKENS = 2048
"""Most held-out tokens in one evaluation."""


class Training(Frozen):
    """The settings of a training. Give either `minutes` or `steps`.

    The loss is T²·KL(teacher ‖ student) of the output distributions at temperature T (Hinton et al., 2015,
    "Distilling the knowledge in a neural network"; forward and on the logits, as in Minitron: Muralidharan
    et al., 2024), plus `hidden_loss_weight` times the relative squared error of the hidden states, plus
    `ce_loss_weight` times the cross-entropy of the text.
    """

    published_names: ClassVar[Mapping[str, str]] = {
        "micro_batch_size": "at_once",
        "max_grad_norm": "clip",
        "hidden_loss_weight": "hidden",
        "ce_loss_weight": "cross_entropy",
        "num_evals": "measurements",
    }

    minutes: float | None = Field(None, gt=0, le=10_000, description="Length of the distillation, in minutes")
    steps: int | None = Field(
        None, ge=1, le=10_000_000, description="Length of the distillation, in optimizer steps"
    )
    batch: int = Field(2, ge=1, le=4096, description="Windows in one step, over all processes")
    micro_batch_size: int = Field(
        4, ge=1, le=4096, description="Windows in one forward pass; gradients are accumulated over a batch"
    )
    window: int = Field(256, ge=16, le=8192, description="Tokens in one window")
    learning_rate: float = Field(
        1e-4,
        gt=0,
        le=1,
        description="Peak of the learning rate, which rises to it linearly and falls to zero along a cosine; it is "
        "divided by three after each evaluation until the first that shows a gain",
    )
    warmup: float = Field(
        0.1, ge=0, lt=1, description="Share of the training in which the learning rate rises"
    )
    weight_decay: float = Field(0.0, ge=0, le=10, description="Weight decay of AdamW")
    max_grad_norm: float = Field(1.0, gt=0, description="Norm to which gradients are clipped")
    temperature: float = Field(1.0, gt=0, le=100, description="Temperature T of the loss")
    hidden_loss_weight: float = Field(
        0.0, ge=0, le=1000, description="Weight of the error of the hidden states in the loss"
    )
    ce_loss_weight: float = Field(
        0.0, ge=0, le=1000, description="Weight of the cross-entropy of the text in the loss"
    )
    embeddings: bool = Field(False, description="Whether the embeddings and the head are trained too")
    num_evals: int = Field(
        16,
        ge=1,
        le=10_000,
        description="Number of evaluations on held-out text; fewer if there are few minutes",
    )
    # Most evaluations by default: a model that lost little gains nothing before the learning rate has fallen.
    patience: int = Field(
        12, ge=1, le=10_000, description="Evaluations in a row without a gain after which training stops"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Precision of matrix products; auto is bfloat16 on devices that multiply in it",
    )

    @model_validator(mode="after")
    def _either_minutes_or_steps(self) -> Self:
        if (self.minutes is None) == (self.steps is None):
            raise ValueError("give either minutes or steps for the length of the training, and not both")
        return self

    def lr_at(self, share: float) -> float:
        """Return the learning rate when a share of the training is done.

        Args:
            share: From 0 (the start) to 1 (the end).

        Returns:
            The rate of a linear warmup, at least 1 % of the peak, followed by a cosine decay to 0
            (Loshchilov and Hutter, 2017, without restarts).
        """
        if share < self.warmup:
            return self.learning_rate * max(share / self.warmup, 0.01)
        return self.learning_rate * (1 + math.cos(math.pi * (share - self.warmup) / (1 - self.warmup))) / 2
