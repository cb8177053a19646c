"""The training loop of distillation: a student learns to predict what its teacher predicts."""

import math
import platform
import time
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, reduce
from torch import nn
from transformers import PreTrainedModel

from pruning.architectures.anatomy import anatomy_of
from pruning.architectures.placement import device_map
from pruning.distillation.checkpoint import (
    Checkpoint,
    TrainingState,
    fingerprint,
    load_checkpoint,
    save_checkpoint,
)
from pruning.distillation.data import TrainingTokens
from pruning.distillation.loss import DistillationLoss
from pruning.distillation.progress import Clock, TrainingProgress
from pruning.distillation.settings import Training
from pruning.errors import RecipeError
from pruning.progress import Progress, Reporter, silent
from pruning.surgery import assemble
from pruning.text.likelihood import token_losses

HELD_OUT_TOKENS = 2048
"""At most so many held-out tokens are measured each time."""

MEASURING = 0.2
"""The largest share of a training by minutes that goes into measuring."""


@dataclass(frozen=True)
class DistillationResult:
    """The best student, and what is to be said of how it came about. It is the model that came in where
    nothing was gained."""

    model: PreTrainedModel
    notes: dict


def distill(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    reading: TrainingTokens,
    training: Training,
    *,
    tokens: torch.Tensor | None = None,
    storage_dtype: torch.dtype = torch.float32,
    seed: int = 0,
    progress: Reporter = silent,
    checkpoint: Checkpoint | None = None,
) -> DistillationResult:
    """Teach a copy of the student; neither model is changed, and what is frozen is shared.

    `tokens`: the teacher's token for each of the student's, `[vocabulary]`, where they differ.
    `storage_dtype`: the precision that the result is rounded to. Under `accelerate launch` the processes
    share every batch, and each returns the same model. With a `checkpoint` that is there already the
    training goes on from it. A training by minutes depends on how fast the machine is: only one by steps
    gives the same weights again.
    """
    for model in (student, teacher):
        if device_map(model):
            raise RecipeError(
                "The model is spread over several devices, and each process trains on one. Use a smaller one."
            )
    accelerator = Accelerator(cpu=student.device.type == "cpu", mixed_precision="no")
    dtype = _precision(training, accelerator.device)
    model, trained = _trainable(student, training, dtype)
    lesson = DistillationLoss(model, teacher, training, tokens, dtype)
    optimizer = torch.optim.AdamW(
        trained.values(), lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
    )
    lesson, optimizer = accelerator.prepare(lesson, optimizer)
    lesson.eval()  # No dropout.

    def measured(model: PreTrainedModel, tokens: torch.Tensor | None = None) -> float:
        with torch.autocast(accelerator.device.type, dtype, enabled=dtype != torch.float32):
            return _heldout_loss(accelerator, model, reading.heldout, tokens)

    state, best = TrainingState(), {}
    run = fingerprint(training, reading, seed, trained) if checkpoint else ""
    if checkpoint and checkpoint.file.exists():
        progress(Progress("Going on from the checkpoint"))
        state, best = load_checkpoint(checkpoint.file, run, trained, optimizer)
    else:
        progress(Progress("Measuring teacher and student on held-out text"))
        state.dense = measured(teacher, tokens)
        start = time.perf_counter()
        state.before = state.heldout = state.best = measured(model)
        each, _ = _broadcast_from_main(accelerator, time.perf_counter() - start, False)
        state.measurements = _num_evals(training, each)
        state.curve.append((0.0, 0, state.before))

    clock, kept, stopped = Clock(state.seconds), state.seconds, False
    while not state.ended:
        share = state.step / training.steps if training.steps else state.seconds / (60 * training.minutes)
        share, _ = _broadcast_from_main(accelerator, share, stopped)
        over = share >= 1 or stopped
        due = over or int(share * state.measurements) > int(state.measured_at * state.measurements)
        fresh = due and state.step > state.curve[-1][1]
        if fresh:
            state.heldout, state.measured_at = measured(model), share
            if state.heldout < state.best:
                state.best, state.best_step, state.worse = state.heldout, state.step, 0
                best = {name: p.detach().to(storage_dtype, copy=True) for name, p in trained.items()}
            else:
                state.worse += 1
            state.curve.append((clock.seconds, state.step, state.heldout))
        if over or state.worse >= training.patience:
            state.ended = "stopped" if stopped else "done" if over else "no gain any more"
        state.seconds = clock.seconds
        if accelerator.is_main_process:
            if checkpoint and state.step and (state.ended or state.seconds - kept >= checkpoint.every):
                save_checkpoint(checkpoint.file, run, state, trained, best, optimizer)
                kept = state.seconds
            with clock.paused():
                event = _event(training, state, share, fresh or not state.step, model)
                progress(event)
            stopped = event.stopped
        _, stopped = _broadcast_from_main(accelerator, share, stopped)
        if not (state.ended or stopped):
            _step(accelerator, lesson, optimizer, reading, training, state, trained, share, seed)

    model.requires_grad_(False)
    result, after = student, state.before
    if best:
        tensors = {name: best.get(name, p.detach()).to(p.dtype) for name, p in student.named_parameters()}
        result = assemble(student, student.config, tensors)
        # What is measured is what is saved: the weights after rounding.
        after = measured(result)
        if not after < state.before:
            result, after = student, state.before
    accelerator.free_memory()
    return DistillationResult(
        result, _notes(accelerator, training, reading, state, dtype, after, result is student)
    )


def _step(
    accelerator, lesson, optimizer, reading, training, state: TrainingState, trained, share, seed
) -> None:
    """One batch and one step of the optimiser; every process reads its share of the batch."""
    for group in optimizer.param_groups:
        group["lr"] = training.rate(share)
    first, processes = state.step * training.batch, accelerator.num_processes
    mine = range(first + accelerator.process_index, first + training.batch, processes)
    ids = reading.windows(mine, training.window, seed).to(accelerator.device)
    parts, total = ids.split(training.at_once), 0.0
    for number, part in enumerate(parts, 1):
        with _no_sync(accelerator, lesson, number < len(parts)):
            loss = lesson(part) * (len(part) / len(ids))
            accelerator.backward(loss)
        total += float(loss.detach())
    accelerator.clip_grad_norm_(trained.values(), training.clip)
    optimizer.step()
    optimizer.zero_grad()
    state.step += 1
    state.tokens += training.batch * training.window
    state.loss = float(reduce(torch.tensor(total, device=accelerator.device), "mean"))


@contextmanager
def _no_sync(accelerator, lesson, waiting: bool):
    if waiting:
        with accelerator.no_sync(lesson):
            yield
    else:
        yield


def _broadcast_from_main(accelerator, share: float, stopped: bool) -> tuple[float, bool]:
    """What the first process sees holds for all: clocks differ."""
    seen = torch.tensor([share, float(stopped)], dtype=torch.float64, device=accelerator.device)
    share, stopped = broadcast(seen).tolist()
    return share, bool(stopped)


def _precision(training: Training, device: torch.device) -> torch.dtype:
    """The precision of products: bfloat16 where the device multiplies in it, unless told otherwise."""
    if training.precision != "auto":
        return getattr(torch, training.precision)
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = getattr(torch.cpu, "get_capabilities", dict)()
        able = device.type == "cpu" and (has.get("avx512_bf16") or has.get("amx_bf16"))
    return torch.bfloat16 if able else torch.float32


def _trainable(
    student: PreTrainedModel, training: Training, dtype: torch.dtype
) -> tuple[PreTrainedModel, dict[str, nn.Parameter]]:
    """A student with float32 copies of what is trained, sharing the rest; and what is trained, by name."""
    still = () if training.embeddings else ("embeddings", "head")
    names = {spec.name for spec in anatomy_of(student.config).tensors if spec.component not in still}
    tensors = {
        name: p.detach().to(torch.float32, copy=True)
        if name in names
        else p.detach().to(torch.float32 if dtype == torch.float32 else p.dtype)
        for name, p in student.named_parameters()
    }
    model = assemble(student, student.config, tensors)
    trained = {name: p.requires_grad_() for name, p in model.named_parameters() if name in names}
    return model, trained


def _heldout_loss(accelerator, model, windows, tokens) -> float:
    """The mean negative log-likelihood, every process measuring its share of the windows."""
    total = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    for window in windows[accelerator.process_index :: accelerator.num_processes]:
        losses = token_losses(model, window if tokens is None else tokens[window])
        total += torch.stack([losses.sum(dtype=torch.float64), total.new_tensor(len(losses))])
    total = reduce(total, "sum")
    return float(total[0] / total[1])


def _num_evals(training: Training, each: float) -> int:
    """How often to measure, where once takes `each` seconds. A training by steps does not ask the clock."""
    if training.minutes is None:
        return training.measurements
    return max(1, min(training.measurements, int(MEASURING * 60 * training.minutes / each)))


def _perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf


def _curve(state: TrainingState) -> list[tuple[float, int, float]]:
    return [(round(seconds, 1), step, _perplexity(loss)) for seconds, step, loss in state.curve]


def _event(
    training: Training, state: TrainingState, share: float, fresh: bool, model: PreTrainedModel
) -> TrainingProgress:
    share = 1.0 if state.ended else share
    return TrainingProgress(
        share,
        seconds=state.seconds,
        remaining=state.seconds * (1 / share - 1) if share else math.inf,
        step=state.step,
        tokens=state.tokens,
        loss=state.loss,
        heldout=_perplexity(state.heldout),
        measured=fresh,
        curve=_curve(state),
        best=_perplexity(state.best),
        dense=_perplexity(state.dense),
        before=_perplexity(state.before),
        model=model,
    )


def _notes(accelerator, training, reading, state, dtype, after, unchanged) -> dict:
    device = accelerator.device
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    else:
        name = getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name") or platform.machine()
        hardware = f"{name}, {torch.get_num_threads()} threads"
    return {
        "text": reading.name,
        "tokens": state.tokens,
        "steps": state.step,
        "best_step": 0 if unchanged else state.best_step,
        "seconds": state.seconds,
        "loss": state.loss,
        "perplexity_dense": _perplexity(state.dense),
        "perplexity_before": _perplexity(state.before),
        "perplexity_after": _perplexity(after),
        "heldout_tokens": sum(map(len, reading.heldout)),
        "ended": state.ended,
        "improved": not unchanged,
        "reproducible": training.minutes is None,
        "hardware": f"{accelerator.num_processes} × {hardware}"
        if accelerator.num_processes > 1
        else hardware,
        "precision": str(dtype).removeprefix("torch."),
        "curve": _curve(state),
    }
