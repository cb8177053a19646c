"""The distillation loss: KL divergence of the outputs, hidden states and cross-entropy."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from pruning.architectures.anatomy import Anatomy, anatomy_of
from pruning.architectures.lm_head import backbone, logits_of
from pruning.distillation.settings import HEAD_TOKENS, Training
from pruning.errors import ModelError, RecipeError

IGNORED = -100
"""The label of a position that predicts no token, as in `torch.nn.CrossEntropyLoss`."""

LogitsLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""From student logits, teacher logits and labels to a summed loss and its gradient (`logits_loss`)."""


class OutputHead:
    """The map from the last hidden states of a model to its logits.

    Args:
        model: The model.
        dtype: Precision of the product.
        rows: Ids of the tokens to compute logits for, `[tokens]`; None for the whole vocabulary.
    """

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype, rows: torch.Tensor | None = None) -> None:
        module = model.get_output_embeddings()
        parameters = [module.weight] if module.bias is None else [module.weight, module.bias]
        self.cap: float | None = getattr(model.config, "final_logit_softcapping", None)
        self.scale = _logit_scale(model, self.cap)
        # Frozen tensors are cast to the precision of the product once, not for every batch.
        self.tensors = [
            tensor if tensor.requires_grad else (tensor if rows is None else tensor[rows]).detach().to(dtype)
            for tensor in parameters
        ]

    def __call__(self, hidden: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        """Return logits, `[tokens, vocabulary]`, of hidden states `[tokens, channels]`.

        `tensors` stand in for the head's own weight (and bias), to differentiate with respect to them.
        """
        weight, *bias = tensors or self.tensors
        logits = functional.linear(hidden.to(weight.dtype), weight, *bias)
        if self.scale != 1:
            logits = self.scale * logits
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


@torch.no_grad()
def _logit_scale(model: PreTrainedModel, cap: float | None) -> float:
    """Return the factor between the products of a model's head and its logits, as Granite and Cohere have.

    Raises:
        ModelError: The model does more to its last hidden states than the product, a scale and a cap.
    """
    head = model.get_output_embeddings()
    weight = head.weight
    hidden = torch.linspace(-1, 1, 2 * weight.shape[1], device=weight.device).view(2, -1).to(weight.dtype)
    logits, products = logits_of(model, hidden), head(hidden).float()
    if cap is not None:
        logits = cap * torch.atanh((logits / cap).clamp(-0.999, 0.999))
    inside = logits.abs() < 0.9 * cap if cap is not None else torch.ones_like(logits, dtype=torch.bool)
    logits, products = logits[inside], products[inside]
    scale = float((logits * products).sum() / products.square().sum().clamp_min(1e-30))
    if not torch.allclose(logits, scale * products, atol=0.02 * float(logits.abs().max())):
        raise ModelError(
            f"A model of the type {model.config.model_type} does more than a product to get from its last hidden "
            "states to its logits, and cannot be distilled here. Leave distillation out."
        )
    return 1.0 if abs(scale - 1) < 0.01 else scale


class HeadLoss(torch.autograd.Function):
    """The mean loss over tokens at the head, with the logits of only `HEAD_TOKENS` tokens at a time.

    The gradient is computed together with the loss, so no logits are computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any,  # torch's own context object
        loss_of: LogitsLoss,
        student_head: OutputHead,
        teacher_head: OutputHead,
        student_hidden: torch.Tensor,
        teacher_hidden: torch.Tensor,
        labels: torch.Tensor,
        *tensors: torch.Tensor,
    ) -> torch.Tensor:
        """Return the mean loss, and keep its gradients.

        Args:
            ctx: Context of the function.
            loss_of: The loss of some tokens and its gradient.
            student_head: Head of the student.
            teacher_head: Head of the teacher.
            student_hidden: Last hidden states of the student, `[tokens, channels]`.
            teacher_hidden: Those of the teacher.
            labels: The token that follows each, `[tokens]`.
            tensors: Weight (and bias) of the student's head.
        """
        needed = [need for at, need in enumerate(ctx.needs_input_grad) if at == 3 or at >= 6]
        inputs = (student_hidden, *tensors)
        grads = [torch.zeros_like(x) if need else None for x, need in zip(inputs, needed, strict=True)]
        total = student_hidden.new_zeros((), dtype=torch.float32)
        count, chunk = len(student_hidden), HEAD_TOKENS[student_hidden.device.type]
        for start in range(0, count, chunk):
            part = slice(start, start + chunk)
            pieces = [
                x.detach().requires_grad_(need)
                for x, need in zip((student_hidden[part], *tensors), needed, strict=True)
            ]
            with torch.enable_grad():
                logits = student_head(*pieces)
            loss, grad = loss_of(logits.detach(), teacher_head(teacher_hidden[part]), labels[part])
            total += loss
            if any(needed):
                leaves = [piece for piece in pieces if piece.requires_grad]
                new = iter(torch.autograd.grad(logits, leaves, (grad / count).to(logits.dtype)))
                for index, sum_of_grads in enumerate(grads):
                    if sum_of_grads is not None:
                        (sum_of_grads[part] if index == 0 else sum_of_grads).add_(next(new))
        ctx.grads = grads
        return total / count

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale the gradients that `forward` kept."""
        hidden, *tensors = (None if grad is None else grad.mul_(*grad_outputs) for grad in ctx.grads)
        return None, None, None, hidden, None, None, *tensors


def logits_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    temperature: float,
    ce_loss_weight: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the loss of some tokens, summed, and its gradient with respect to the student's logits.

    With p and q the softmax of the teacher's and the student's logits over T, the loss is T² KL(p ‖ q)
    (Hinton et al., 2015: the factor T² keeps gradients comparable across temperatures), and its gradient
    T (q - p). The cross-entropy of the labels, weighted, is added to both.

    Args:
        student_logits: `[tokens, vocabulary]`.
        teacher_logits: `[tokens, vocabulary]`.
        labels: The token that follows each, `[tokens]`; `IGNORED` where none does.
        temperature: T.
        ce_loss_weight: Weight of the cross-entropy.

    Returns:
        The loss, a scalar in nats, and its gradient, `[tokens, vocabulary]`.
    """
    log_q = functional.log_softmax(student_logits.float() / temperature, -1)
    log_p = functional.log_softmax(teacher_logits.float() / temperature, -1)
    p = log_p.exp()
    loss = temperature**2 * torch.dot(p.flatten(), log_p.sub_(log_q).flatten())
    grad = log_q.exp_().sub_(p).mul_(temperature)
    if ce_loss_weight:
        labeled = labels >= 0
        with torch.enable_grad():
            leaf = student_logits[labeled].float().requires_grad_()
            cross_entropy = ce_loss_weight * functional.cross_entropy(leaf, labels[labeled], reduction="sum")
            grad[labeled] += torch.autograd.grad(cross_entropy, leaf)[0]
        loss = loss + cross_entropy.detach()
    return loss, grad


class DistillationLoss(nn.Module):
    """The loss of one batch: a module, so that several processes can share the work on it.

    Args:
        student: The model that is trained.
        teacher: The model whose outputs it shall match.
        training: The settings.
        teacher_tokens: The teacher's token id for each of the student's, `[vocabulary]`; None if they are
            the same.
        dtype: Precision of the matrix products.
        origins: For each layer of the student, its number in the teacher, if known (see `layer_map`).
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        training: Training,
        teacher_tokens: torch.Tensor | None,
        dtype: torch.dtype,
        origins: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.student, self.settings, self.teacher_tokens = student, training, teacher_tokens
        self.layers = layer_map(student, teacher, origins) if training.hidden_loss_weight else ()
        self._teacher = [teacher]  # In a list, so that its weights are not part of this module.
        self.student_head = OutputHead(student, dtype)
        self.teacher_head = OutputHead(teacher, dtype, teacher_tokens)
        self.dtype = dtype

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the mean loss per token of token ids, `[windows, tokens]`."""
        settings = self.settings
        hidden_states = bool(settings.hidden_loss_weight)
        with torch.autocast(ids.device.type, self.dtype, enabled=self.dtype != torch.float32):
            with torch.inference_mode():
                teacher_ids = ids if self.teacher_tokens is None else self.teacher_tokens[ids]
                teacher = backbone(self._teacher[0])(
                    teacher_ids, use_cache=False, output_hidden_states=hidden_states
                )
            student = backbone(self.student)(ids, use_cache=False, output_hidden_states=hidden_states)
            # A position predicts the token after it; the last one of a window predicts none.
            labels = functional.pad(ids[:, 1:], (0, 1), value=IGNORED)
            # The mean is over all positions, the cross-entropy over those with a label.
            ce_loss_weight = settings.ce_loss_weight * ids.shape[1] / (ids.shape[1] - 1)
            loss = HeadLoss.apply(
                partial(logits_loss, temperature=settings.temperature, ce_loss_weight=ce_loss_weight),
                self.student_head,
                self.teacher_head,
                student.last_hidden_state.flatten(0, 1),
                teacher.last_hidden_state.flatten(0, 1),
                labels.flatten(),
                *self.student_head.tensors,
            )
        if hidden_states:
            errors = [
                relative_error(student.hidden_states[ours + 1], teacher.hidden_states[theirs + 1].clone())
                for ours, theirs in enumerate(self.layers)
            ]
            loss = loss + settings.hidden_loss_weight * torch.stack(errors).mean()
        return loss


def relative_error(student_hidden: torch.Tensor, teacher_hidden: torch.Tensor) -> torch.Tensor:
    """Compute ‖h - h'‖² / ‖h'‖² of each token, averaged: tokens with large states do not drown the others.

    Args:
        student_hidden: h, `[..., channels]`.
        teacher_hidden: h', of the same shape.

    Returns:
        A scalar.
    """
    teacher_hidden = teacher_hidden.float()
    squared_error = (student_hidden.float() - teacher_hidden).square().sum(-1)
    return (squared_error / teacher_hidden.square().sum(-1)).mean()


def layer_map(
    student: PreTrainedModel, teacher: PreTrainedModel, origins: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Return, for each layer of the student, the layer of the teacher whose output it should have.

    That is its own layer, or, if layers after it were removed, the last of these, so that the next layer
    reads the states that it is used to.

    Args:
        student: The student.
        teacher: The teacher, whose hidden states have the same number of channels.
        origins: For each layer of the student, its number in the teacher, if known. If not, it is
            recognized by its norms, which the removal of layers does not change; if that fails, layers are
            spaced evenly.

    Returns:
        One number per layer of the student, ascending; the last is the teacher's last layer.

    Raises:
        RecipeError: If the hidden states differ in their number of channels.
    """
    ours, theirs = anatomy_of(student.config), anatomy_of(teacher.config)
    if student.config.hidden_size != teacher.config.hidden_size:
        raise RecipeError(
            f"The student's hidden states have {student.config.hidden_size} channels, and the teacher's "
            f"{teacher.config.hidden_size}, so that they cannot be compared. Set hidden_loss_weight to 0."
        )
    if origins is None:
        origins = _layers_with_equal_norms(student, teacher)
    if origins is None:
        return tuple(-(-theirs.layers * (number + 1) // ours.layers) - 1 for number in range(ours.layers))
    return (*(layer - 1 for layer in origins[1:]), theirs.layers - 1)


def _layers_with_equal_norms(student: PreTrainedModel, teacher: PreTrainedModel) -> list[int] | None:
    """Find the teacher's layer with the same norms for each layer of the student; None if one has none."""
    ours, theirs = anatomy_of(student.config), anatomy_of(teacher.config)
    teacher_norms = [_norm_weights(teacher, theirs, layer) for layer in range(theirs.layers)]
    origins: list[int] = []
    for layer in range(ours.layers):
        norms = _norm_weights(student, ours, layer)
        later = range(origins[-1] + 1 if origins else 0, theirs.layers)
        origin = next((other for other in later if torch.equal(norms, teacher_norms[other])), None)
        if origin is None:
            return None
        origins.append(origin)
    return origins


def _norm_weights(model: PreTrainedModel, anatomy: Anatomy, layer: int) -> torch.Tensor:
    """Concatenate the norm weights of one layer, `[weights]`."""
    weights = [
        model.get_parameter(spec.name).detach().float().flatten()
        for spec in anatomy.tensors
        if spec.layer == layer and spec.component == "norms"
    ]
    return torch.cat(weights)
