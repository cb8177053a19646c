"""Distillation: a smaller model, the student, learns to say what its teacher says.

Reads from top to bottom: what is set, which tokens are read when, the loss, the loop, and what is kept on
disk so that a run that was killed can go on.
"""

import hashlib
import json
import math
import platform
import signal
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast, reduce
from pydantic import Field, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from pruning.architectures.anatomy import anatomy_of
from pruning.errors import Cancelled, RecipeError
from pruning.files import replacing
from pruning.progress import Progress, Reporter, silent
from pruning.schema import Frozen
from pruning.surgery import assemble
from pruning.text.likelihood import token_losses

HEAD_TOKENS = defaultdict(lambda: 2048, cpu=128)
"""Tokens whose logits are in memory at one time, by kind of device: on a CPU, as many as its cache likes."""

HELD_OUT_TOKENS = 2048
"""At most so many held-out tokens are measured each time."""

MEASURING = 0.2
"""The largest share of a training by minutes that goes into measuring."""

Weight = Annotated[float, Field(ge=0, le=1000)]


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
    hidden: Weight = 0.0
    cross_entropy: Weight = 0.0
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


@dataclass(frozen=True)
class Reading:
    """Tokens to train on, and token windows held out from them.

    `prefix`: what every window begins with (a BOS token, where the model expects one).
    """

    tokens: torch.Tensor
    heldout: tuple[torch.Tensor, ...]
    prefix: torch.Tensor
    name: str = "own text"

    def windows(self, numbers: Sequence[int], length: int, seed: int) -> torch.Tensor:
        """Windows by their number in an endless order, `[numbers, length]`.

        Each epoch cuts the text at other places and reads every window of it once, in random order.
        """
        piece = length - len(self.prefix)
        count = len(self.tokens) // piece
        rows = []
        for number in numbers:
            epoch, place = divmod(number, count)
            generator = torch.Generator().manual_seed((seed + 1) * 1_000_003 + epoch)
            start = int(torch.randint(len(self.tokens), (), generator=generator))
            start += piece * int(torch.randperm(count, generator=generator)[place])
            row = self.tokens[torch.arange(start, start + piece) % len(self.tokens)]
            rows.append(torch.cat([self.prefix, row]))
        return torch.stack(rows)

    @property
    def digest(self) -> str:
        parts = (self.tokens, *self.heldout)
        return hashlib.sha256(b"|".join(part.numpy().tobytes() for part in parts)).hexdigest()[:32]


class TrainingProgress(Progress):
    """Where a training stands, after a step.

    `seconds` of training so far and `remaining` (infinite before the first step), `step`, `tokens` seen, the
    training `loss` of the last step (None before the first); `heldout`: the student's perplexity on held-out
    text when it was last measured, `measured` if that was just now; `curve`: seconds, step and perplexity
    of every measurement; `best` so far; `dense` and `before`: the perplexity of the teacher, and of the
    student as it came. `model` is the student itself: it may be sampled until the reporter returns.
    `stop()` ends the training here; the best so far is what is kept.
    """

    seconds: float
    remaining: float
    step: int
    tokens: int
    loss: float | None
    heldout: float
    measured: bool
    curve: list[tuple[float, int, float]]
    best: float
    dense: float
    before: float
    model: PreTrainedModel
    stopped: bool

    def __new__(cls, share: float, **values):
        text = "Distilling"
        line = str.__new__(
            cls,
            f"{text}: step {values['step']}, {_time(values['remaining'])} left, perplexity "
            f"{values['before']:.2f} → {values['heldout']:.2f} (dense {values['dense']:.2f})",
        )
        line.text, line.done, line.total, line.stopped = text, int(1000 * share), 1000, False
        for name, value in values.items():
            setattr(line, name, value)
        return line

    def stop(self) -> None:
        self.stopped = True


def is_first_process() -> bool:
    """Whether this is the process that reports and saves; under a launcher, each takes its device here."""
    return PartialState(cpu=not torch.cuda.is_available()).is_main_process


@contextmanager
def stopping(report: Reporter) -> Iterator[Reporter]:
    """The reporter, which also ends a training politely when the process is interrupted (Ctrl-C)."""
    asked: list[int] = []

    def listening(progress: Progress) -> None:
        report(progress)
        if asked:
            if not isinstance(progress, TrainingProgress):
                raise Cancelled("Stopped; nothing was kept.")
            asked.clear()
            progress.stop()

    before = signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
    try:
        yield listening
    finally:
        signal.signal(signal.SIGINT, before)


def _time(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02}" if math.isfinite(seconds) else "?"


@dataclass
class State:
    """What a training has come to, but for its tensors: plain values.

    Losses are in nats per token of the held-out text. `measured_at`: the share of the training that was
    done when it was last measured; `measurements`: how many there shall be; `curve`: seconds, step and
    loss of each measurement.
    """

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    loss: float | None = None
    dense: float = math.nan
    before: float = math.nan
    heldout: float = math.nan
    best: float = math.nan
    best_step: int = 0
    measured_at: float = 0.0
    measurements: int = 16
    worse: int = 0
    ended: str = ""
    curve: list[tuple[float, int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Distilled:
    """The best student, and what is to be said of how it came about. It is the model that came in where
    nothing was gained."""

    model: PreTrainedModel
    notes: dict


class Head:
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


def compare(
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


class Lesson(nn.Module):
    """The loss of one batch: a module, so that several processes can share the work on it."""

    def __init__(self, student: PreTrainedModel, teacher: PreTrainedModel, training: Training, tokens, dtype):
        super().__init__()
        self.student, self.settings, self.tokens = student, training, tokens
        self.layers = layer_map(student, teacher) if training.hidden else ()
        self._teacher = [teacher]  # In a list: its weights are no part of this module.
        self.heads = Head(student, dtype), Head(teacher, dtype, tokens)
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
            terms = partial(compare, temperature=training.temperature, cross_entropy=entropy)

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
            f"teacher {teacher.config.hidden_size}: they do not compare. Set hidden to 0."
        )
    marks = [_norms(teacher, theirs, layer) for layer in range(theirs.layers)]
    stayed: list[int] = []
    for layer in range(ours.layers):
        mark = _norms(student, ours, layer)
        after = range(stayed[-1] + 1 if stayed else 0, theirs.layers)
        found = next((other for other in after if torch.equal(mark, marks[other])), None)
        if found is None:
            return tuple(-(-theirs.layers * (number + 1) // ours.layers) - 1 for number in range(ours.layers))
        stayed.append(found)
    return (*(layer - 1 for layer in stayed[1:]), theirs.layers - 1)


def _norms(model, anatomy, layer: int) -> torch.Tensor:
    found = [
        model.get_parameter(spec.name).detach().float().flatten()
        for spec in anatomy.tensors
        if spec.layer == layer and spec.component == "norms"
    ]
    return torch.cat(found)


@dataclass(frozen=True)
class Checkpoint:
    """Where to keep what a killed training needs to go on, and how often, in seconds."""

    file: Path
    every: float = 60.0


def distil(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    reading: Reading,
    training: Training,
    *,
    tokens: torch.Tensor | None = None,
    storage_dtype: torch.dtype = torch.float32,
    seed: int = 0,
    progress: Reporter = silent,
    checkpoint: Checkpoint | None = None,
) -> Distilled:
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
    lesson = Lesson(model, teacher, training, tokens, dtype)
    optimizer = torch.optim.AdamW(
        trained.values(), lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
    )
    lesson, optimizer = accelerator.prepare(lesson, optimizer)
    lesson.eval()  # No dropout.

    def measured(model: PreTrainedModel, tokens: torch.Tensor | None = None) -> float:
        with torch.autocast(accelerator.device.type, dtype, enabled=dtype != torch.float32):
            return _heldout_loss(accelerator, model, reading.heldout, tokens)

    state, best = State(), {}
    run = _fingerprint(training, reading, seed, trained) if checkpoint else ""
    if checkpoint and checkpoint.file.exists():
        progress(Progress("Going on from the checkpoint"))
        state, best = _resume(checkpoint.file, run, trained, optimizer)
    else:
        progress(Progress("Measuring teacher and student on held-out text"))
        state.dense = measured(teacher, tokens)
        start = time.perf_counter()
        state.before = state.heldout = state.best = measured(model)
        each, _ = _agreed(accelerator, time.perf_counter() - start, False)
        state.measurements = _measurements(training, each)
        state.curve.append((0.0, 0, state.before))

    clock, kept, stopped = Clock(state.seconds), state.seconds, False
    while not state.ended:
        share = state.step / training.steps if training.steps else state.seconds / (60 * training.minutes)
        share, _ = _agreed(accelerator, share, stopped)
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
                _keep(checkpoint.file, run, state, trained, best, optimizer)
                kept = state.seconds
            with clock.paused():
                event = _event(training, state, share, fresh or not state.step, model)
                progress(event)
            stopped = event.stopped
        _, stopped = _agreed(accelerator, share, stopped)
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
    return Distilled(result, _notes(accelerator, training, reading, state, dtype, after, result is student))


class Clock:
    """Seconds of training; what a reporter does in between is not counted."""

    def __init__(self, already: float):
        self._start = time.perf_counter() - already

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start

    @contextmanager
    def paused(self) -> Iterator[None]:
        now = time.perf_counter()
        yield
        self._start += time.perf_counter() - now


def _step(accelerator, lesson, optimizer, reading, training, state: State, trained, share, seed) -> None:
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


def _agreed(accelerator, share: float, stopped: bool) -> tuple[float, bool]:
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


def _measurements(training: Training, each: float) -> int:
    """How often to measure, where once takes `each` seconds. A training by steps does not ask the clock."""
    if training.minutes is None:
        return training.measurements
    return max(1, min(training.measurements, int(MEASURING * 60 * training.minutes / each)))


def _perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf


def _curve(state: State) -> list[tuple[float, int, float]]:
    return [(round(seconds, 1), step, _perplexity(loss)) for seconds, step, loss in state.curve]


def _event(
    training: Training, state: State, share: float, fresh: bool, model: PreTrainedModel
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


_MOMENTS = {"first": "exp_avg", "second": "exp_avg_sq"}


def _keep(file: Path, run: str, state: State, trained, best: Mapping[str, torch.Tensor], optimizer) -> None:
    """Write all that a training needs to go on, in one file that is whole or not there."""
    tensors = {f"trained.{name}": p.detach() for name, p in trained.items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    moments = optimizer.optimizer.state
    for name, p in trained.items():
        tensors |= {f"{kind}.{name}": moments[p][key] for kind, key in _MOMENTS.items() if p in moments}
    with replacing(file) as temporary:
        save_file(tensors, temporary, metadata={"run": run, "state": json.dumps(asdict(state))})


def _resume(file: Path, run: str, trained, optimizer) -> tuple[State, dict[str, torch.Tensor]]:
    try:
        with safe_open(file, framework="pt") as kept:
            metadata = kept.metadata() or {}
            if metadata.get("run") != run:
                raise RecipeError(
                    f"The checkpoint {file} is of another training: other models, another text or other "
                    "settings. Delete it, or name another."
                )
            state = State(**json.loads(metadata["state"]))
            names = set(kept.keys())
            moments = optimizer.optimizer.state
            for name, p in trained.items():
                p.data.copy_(kept.get_tensor(f"trained.{name}"))
                if f"first.{name}" in names:
                    moments[p] = {"step": torch.tensor(float(state.step), device=p.device)} | {
                        key: kept.get_tensor(f"{kind}.{name}").to(p.device) for kind, key in _MOMENTS.items()
                    }
            best = {name: kept.get_tensor(f"best.{name}") for name in trained if f"best.{name}" in names}
    except (SafetensorError, OSError) as error:
        raise RecipeError(
            f"The checkpoint {file} cannot be read ({error}). Delete it to start anew."
        ) from error
    state.curve = [tuple(point) for point in state.curve]
    return state, best


def _fingerprint(training: Training, reading: Reading, seed: int, trained) -> str:
    """Identifies a training: settings, text, seed and the student as it comes."""
    total = hashlib.sha256(f"{training.model_dump_json()}|{reading.digest}|{seed}".encode())
    for name, p in trained.items():
        total.update(name.encode() + p.detach().cpu().numpy().tobytes())
    return total.hexdigest()[:32]
