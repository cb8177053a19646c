"""The distillation loss: KL divergence at the head, hidden states and cross-entropy."""

from collections import defaultdict
from functools import partial

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from pruning.architectures.anatomy import anatomy_of
from pruning.distillation.settings import Training
from pruning.errors import RecipeError

HEAD_TOKENS = defaultdict(lambda: 2048, cpu=128)
"""Tokens whose logits are in memory at one time, by kind of device: on a CPU, as many as its cache likes."""


class OutputHead:
    """From the last hidden states of a model to its logits.

    `rows`: the tokens to keep of a vocabulary, where not all.
    """

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype, rows: torch.Tensor | None = None):
        module = model.get_output_embeddings()
        self.parameters = [module.weight] if module.bias is None else [module.weight, module.bias]
        self.cap = getattr(model.config, "final_logit_softcapping", None)
        # What is frozen is turned to the precision of the products once, not every time.
        self.tensors = [
            tensor if tensor.requires_grad else (tensor if rows is None else tensor[rows]).detach().to(dtype)
            for tensor in self.parameters
        ]

    def __call__(self, hidden: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        weight, *bias = tensors or self.tensors
        logits = functional.linear(hidden.to(weight.dtype), weight, *bias)
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


class HeadLoss(torch.autograd.Function):
    """The mean loss over tokens at the head, with logits for only some of them (`HEAD_TOKENS`) at a time.

    The gradient is worked out together with the loss: nothing is computed twice.
    """

    @staticmethod
    def forward(ctx, terms, student, teacher, hidden, taught, labels, *tensors):
        wanted = [needed for at, needed in enumerate(ctx.needs_input_grad) if at == 3 or at >= 6]
        inputs = (hidden, *tensors)
        gradients = [torch.zeros_like(x) if want else None for x, want in zip(inputs, wanted, strict=True)]
        total, rows = 0.0, HEAD_TOKENS[hidden.device.type]
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            pieces = [
                x.detach().requires_grad_(want)
                for x, want in zip((hidden[part], *tensors), wanted, strict=True)
            ]
            with torch.enable_grad():
                logits = student(*pieces)
            loss, slope = terms(logits.detach(), teacher(taught[part]), labels[part])
            total += loss
            if any(wanted):
                leaves = [piece for piece in pieces if piece.requires_grad]
                found = iter(torch.autograd.grad(logits, leaves, (slope / len(hidden)).to(logits.dtype)))
                for index, gradient in enumerate(gradients):
                    if gradient is not None:
                        (gradient[part] if index == 0 else gradient).add_(next(found))
        ctx.gradients = gradients
        return total / len(hidden)

    @staticmethod
    def backward(ctx, upstream):
        hidden, *tensors = (None if g is None else g.mul_(upstream) for g in ctx.gradients)
        return None, None, None, hidden, None, None, *tensors


def logits_loss(
    logits: torch.Tensor, taught: torch.Tensor, labels: torch.Tensor, temperature: float, cross_entropy: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of some tokens, summed, and its gradient with respect to the student's logits.

    `logits`, `taught`: `[tokens, vocabulary]`; `labels`: the token that follows each, −100 where none does.
    """
    log_q = functional.log_softmax(logits.float() / temperature, -1)
    log_p = functional.log_softmax(taught.float() / temperature, -1)
    p = log_p.exp()
    # T² KL(p ‖ q), and its slope T (q − p).
    loss = temperature**2 * torch.dot(p.flatten(), log_p.sub_(log_q).flatten())
    slope = log_q.exp_().sub_(p).mul_(temperature)
    if cross_entropy:
        known = labels >= 0
        with torch.enable_grad():
            leaf = logits[known].float().requires_grad_()
            entropy = cross_entropy * functional.cross_entropy(leaf, labels[known], reduction="sum")
            slope[known] += torch.autograd.grad(entropy, leaf)[0]
        loss = loss + entropy.detach()
    return loss, slope


class DistillationLoss(nn.Module):
    """The loss of one batch: a module, so that several processes can share the work on it."""

    def __init__(self, student: PreTrainedModel, teacher: PreTrainedModel, training: Training, tokens, dtype):
        super().__init__()
        self.student, self.settings, self.tokens = student, training, tokens
        self.layers = layer_map(student, teacher) if training.hidden else ()
        self._teacher = [teacher]  # In a list: its weights are no part of this module.
        self.heads = OutputHead(student, dtype), OutputHead(teacher, dtype, tokens)
        self.dtype = dtype

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        training, (head, teachers_head) = self.settings, self.heads
        deep = bool(training.hidden)
        with torch.autocast(ids.device.type, self.dtype, enabled=self.dtype != torch.float32):
            with torch.inference_mode():
                known = ids if self.tokens is None else self.tokens[ids]
                taught = self._teacher[0].base_model(known, use_cache=False, output_hidden_states=deep)
            learnt = self.student.base_model(ids, use_cache=False, output_hidden_states=deep)
            # What a position predicts is the token after it; the last one of a window predicts none.
            labels = functional.pad(ids[:, 1:], (0, 1), value=-100)
            entropy = training.cross_entropy * ids.shape[1] / (ids.shape[1] - 1)
            terms = partial(logits_loss, temperature=training.temperature, cross_entropy=entropy)

            loss = HeadLoss.apply(
                terms,
                head,
                teachers_head,
                learnt.last_hidden_state.flatten(0, 1),
                taught.last_hidden_state.flatten(0, 1),
                labels.flatten(),
                *head.tensors,
            )
        if deep:
            errors = [
                relative_error(learnt.hidden_states[ours + 1], taught.hidden_states[theirs + 1].clone())
                for ours, theirs in enumerate(self.layers)
            ]
            loss = loss + training.hidden * torch.stack(errors).mean()
        return loss


def relative_error(states: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
    """‖h − h'‖² / ‖h'‖² of each token, averaged: tokens with large states do not drown the others."""
    taught = taught.float()
    return ((states.float() - taught).square().sum(-1) / taught.square().sum(-1)).mean()


def layer_map(student: PreTrainedModel, teacher: PreTrainedModel) -> tuple[int, ...]:
    """For each layer of the student, the layer of the teacher whose output it should have.

    Where layers were cut, that is the last one before the next that stayed. Which ones stayed is seen from
    their norms, which no cut of layers changes; if they do not tell, the layers are spread evenly.
    """
    ours, theirs = anatomy_of(student.config), anatomy_of(teacher.config)
    if student.config.hidden_size != teacher.config.hidden_size:
        raise RecipeError(
            f"The hidden states of the student have {student.config.hidden_size} channels, those of the "
            f"teacher {teacher.config.hidden_size}: they do not logits_loss. Set hidden to 0."
        )
    marks = [_norm_weights(teacher, theirs, layer) for layer in range(theirs.layers)]
    stayed: list[int] = []
    for layer in range(ours.layers):
        mark = _norm_weights(student, ours, layer)
        after = range(stayed[-1] + 1 if stayed else 0, theirs.layers)
        found = next((other for other in after if torch.equal(mark, marks[other])), None)
        if found is None:
            return tuple(-(-theirs.layers * (number + 1) // ours.layers) - 1 for number in range(ours.layers))
        stayed.append(found)
    return (*(layer - 1 for layer in stayed[1:]), theirs.layers - 1)


def _norm_weights(model, anatomy, layer: int) -> torch.Tensor:
    found = [
        model.get_parameter(spec.name).detach().float().flatten()
        for spec in anatomy.tensors
        if spec.layer == layer and spec.component == "norms"
    ]
    return torch.cat(found)
