"""How long and how a student is trained."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pruning.schema import Frozen

LossWeight = Annotated[float, Field(ge=0, le=1000)]


class Training(Frozen):
    """How long and how a student is trained. Give either `minutes` or `steps`.

    `batch`: windows of `window` tokens for one step, over all processes; `at_once`: windows in one forward
    pass, the rest of a batch is accumulated. `learning_rate` rises over the first `warmup` share of the
    time and falls to nothing along a cosine. `temperature`, `hidden` and `cross_entropy` make the loss:
    T²·KL(teacher ‖ student) at temperature T (Hinton et al., 2015; forward, on the logits, as in Minitron;
    Muralidharan et al., 2024), plus `hidden` times the relative squared error of the hidden states, plus
    `cross_entropy` times the negative log-likelihood of the text. `embeddings`: whether the embeddings and
    the head are trained too. The student is measured on held-out text `measurements` times, less often
    where few minutes leave no time for it, and training stops after `patience` of them in a row without a
    gain: most of them, because a model that lost little gains nothing before the learning rate has fallen.
    """

    minutes: Annotated[float, Field(gt=0, le=10_000)] | None = None
    steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    batch: Annotated[int, Field(ge=1, le=4096)] = 2
    at_once: Annotated[int, Field(ge=1, le=4096)] = 4
    window: Annotated[int, Field(ge=16, le=8192)] = 256
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 3e-4
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    clip: Annotated[float, Field(gt=0)] = 1.0
    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0
    hidden: LossWeight = 0.0
    cross_entropy: LossWeight = 0.0
    embeddings: bool = False
    measurements: Annotated[int, Field(ge=1, le=10_000)] = 16
    patience: Annotated[int, Field(ge=1, le=10_000)] = 12
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    @model_validator(mode="after")
    def _one_length(self):
        if (self.minutes is None) == (self.steps is None):
            raise ValueError("give either minutes or steps for the length of the training, and not both")
        return self

    def rate(self, share: float) -> float:
        """The learning rate once a share of the training is done."""
        if share < self.warmup:
            return self.learning_rate * max(share / self.warmup, 0.01)
        return self.learning_rate * (1 + math.cos(math.pi * (share - self.warmup) / (1 - self.warmup))) / 2
