"""The training loop of distillation: a student learns to predict what its teacher predicts."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, reduce
from torch import nn
from transformers import PreTrainedModel

from pruning.architectures.anatomy import anatomy_of
from pruning.architectures.families import NEURON
from pruning.architectures.placement import device_map
from pruning.distillation.checkpoint import (
    Checkpoint,
    TrainingState,
    fingerprint_of,
    load_checkpoint,
    save_checkpoint,
)
from pruning.distillation.data import TrainingTokens
from pruning.distillation.hardware import hardware_name, multiplies_in_bfloat16
from pruning.distillation.loss import DistillationLoss
from pruning.distillation.progress import Clock, EvalPoint, RunningTraining, TrainingProgress
from pruning.distillation.refit import refit_windows
from pruning.distillation.result import DistillationNote, DistillationResult
from pruning.distillation.settings import Training
from pruning.errors import RecipeError
from pruning.progress import Progress, Reporter, TrainingPulse, silent
from pruning.repair.reconstruction import EndEarly, reconstruct
from pruning.surgery import assemble
from pruning.text.likelihood import perplexity_of, token_losses

MAX_EVAL_SHARE = 0.2
"""Largest share of a training by minutes that is spent on evaluation."""
LR_BACKOFF = 1 / 3
"""Factor of the learning rate after an evaluation without a gain, until there is a first one."""


def distill(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    data: TrainingTokens,
    training: Training,
    *,
    teacher_tokens: torch.Tensor | None = None,
    origins: Sequence[int] | None = None,
    storage_dtype: torch.dtype = torch.float32,
    seed: int = 0,
    progress: Reporter = silent,
    checkpoint: Checkpoint | None = None,
) -> DistillationResult:
    """Train a copy of the student to match its teacher. Neither model is changed; frozen weights are shared.

    Under `accelerate launch` the processes share every batch, and each returns the same model. A training
    by minutes depends on the speed of the machine: only one by steps gives the same weights again.

    Args:
        student: The model to improve.
        teacher: The model to match, usually the one that the student was pruned from.
        data: Tokens to train and to evaluate on.
        training: The settings.
        teacher_tokens: The teacher's token id for each of the student's, `[vocabulary]`; None if they are
            the same.
        origins: For each layer of the student, its number in the teacher, if known.
        storage_dtype: The precision that the result is rounded to.
        seed: Seed of the order in which windows are read.
        progress: Called after every step with a `TrainingProgress`, and before every micro-batch and every
            held-out window with a `TrainingPulse`; in the main process alone.
        checkpoint: A file to write the training to; if it exists, the training resumes from it.

    Returns:
        The student with the lowest held-out loss, and a note for the report.

    Raises:
        RecipeError: If a model is spread over several devices, if the checkpoint cannot be resumed, or if
            hidden states are to be matched and differ in width.
    """
    for model in (student, teacher):
        if device_map(model):
            raise RecipeError(
                "The model is spread over several devices, but each process trains on one. "
                "Use a smaller model."
            )
    trainer = _Trainer(
        student, teacher, data, training, teacher_tokens, origins, storage_dtype, seed, progress
    )
    trainer.start(checkpoint)
    trainer.train(checkpoint)
    return trainer.finish()


class _Trainer:
    """One training: the copy of the student that learns, its optimizer, its state and its best weights."""

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        data: TrainingTokens,
        training: Training,
        teacher_tokens: torch.Tensor | None,
        origins: Sequence[int] | None,
        storage_dtype: torch.dtype,
        seed: int,
        progress: Reporter,
    ) -> None:
        self.student, self.teacher, self.teacher_tokens = student, teacher, teacher_tokens
        self.origins = origins
        self.data, self.training, self.seed = data, training, seed
        self.storage_dtype, self.progress = storage_dtype, progress
        self.accelerator = Accelerator(cpu=student.device.type == "cpu", mixed_precision="no")
        self.dtype = _precision(training, self.accelerator.device)
        self.model, self.trained = _trainable_copy(student, training, self.dtype)
        loss = DistillationLoss(self.model, teacher, training, teacher_tokens, self.dtype, origins)
        optimizer = torch.optim.AdamW(
            self.trained.values(), lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
        )
        self.loss, self.optimizer = self.accelerator.prepare(loss, optimizer)
        self.loss.eval()  # No dropout.
        self.state = TrainingState()
        self.running, self.clock = RunningTraining(self.model), Clock(0.0)
        self.best: dict[str, torch.Tensor] = {}
        self.fingerprint = ""

    def start(self, checkpoint: Checkpoint | None) -> None:
        """Resume from the checkpoint if there is one, or else evaluate both models before training."""
        if checkpoint:
            self.fingerprint = fingerprint_of(self.training, self.data, self.seed, self.trained)
            if checkpoint.file.exists():
                self.progress(Progress("Resuming from the checkpoint"))
                self.state, self.best = load_checkpoint(
                    checkpoint.file, self.fingerprint, self.trained, self.optimizer
                )
                return
        evaluating = Progress("Evaluating teacher and student on held-out text")
        clock, state = Clock(0.0), self.state

        def report() -> None:
            if self.accelerator.is_main_process:
                with clock.paused():
                    self.progress(evaluating)

        state.teacher_loss = self._heldout_loss(self.teacher, report, self.teacher_tokens)
        start = clock.seconds
        state.initial_loss = self._heldout_loss(self.model, report)
        state.heldout_loss = state.best_loss = state.initial_loss
        seconds, _ = self._broadcast_from_main(clock.seconds - start, False)
        state.num_evals = _num_evals(self.training, seconds)
        state.curve.append((0.0, 0, state.initial_loss))
        self._refit(seconds)

    def train(self, checkpoint: Checkpoint | None) -> None:
        """Step, evaluate, report and write checkpoints until the training ends; then freeze the copy."""
        state, running = self.state, self.running
        self.clock, saved_at = Clock(state.seconds), state.seconds
        while not state.ended:
            share, stopped = self._broadcast_from_main(self._share_done(), running.stopped)
            evaluated = self._evaluate_if_due(share, stopped)
            state.seconds = self.clock.seconds
            if self.accelerator.is_main_process:
                if (
                    checkpoint
                    and state.step
                    and (state.ended or state.seconds - saved_at >= checkpoint.every)
                ):
                    self._save(checkpoint)
                    saved_at = state.seconds
                with self.clock.paused():
                    self.progress(self._event(share, evaluated or not state.step))
            _, stopped = self._broadcast_from_main(share, running.stopped)
            if not (state.ended or stopped):
                self._step(share)
        self.model.requires_grad_(False)

    def finish(self) -> DistillationResult:
        """Round the best weights to their stored precision, and keep them if they are still a gain."""
        result, loss = self.student, self.state.initial_loss
        if self.best:
            named = self.student.named_parameters()
            tensors = {name: self.best.get(name, p.detach()).to(p.dtype) for name, p in named}
            rounded = assemble(self.student, self.student.config, tensors)
            # The weights are evaluated as they will be saved: after rounding.
            rounded_loss = self._heldout_loss(rounded, lambda: self._pulse(1.0))
            if rounded_loss < self.state.initial_loss:
                result, loss = rounded, rounded_loss
        self.accelerator.free_memory()
        return DistillationResult(result, self._note(loss, improved=result is not self.student))

    def _refit(self, seconds: float) -> None:
        """Refit the layers in closed form before a training by minutes, and keep the result if it is a gain.

        A refit that is stopped has refitted the first layers.

        A CPU takes only a few steps in minutes. A refit to the teacher's residual stream, layer by layer, gains more in
        the same time (`pruning.repair.reconstruction`).

        Args:
            seconds: What one evaluation of the student takes.
        """
        state, windows = self.state, refit_windows(self.data, self.training, seconds, self.seed)
        if windows is None or not self._can_refit:
            return
        self.clock, layers = Clock(state.seconds), {-1}

        def show(evaluated: bool) -> None:
            with self.clock.paused():
                self.progress(self._event(self._share_done(), evaluated, "Refitting layers"))

        def report(event: Progress) -> None:
            state.seconds = self.clock.seconds
            self._pulse(self._share_done())
            if event.done not in layers:
                layers.add(event.done)
                show(evaluated=False)
            if self.running.stopped:
                raise EndEarly

        show(evaluated=True)
        try:
            refit = reconstruct(
                self.model, self.teacher, windows, self.origins, progress=report, epochs=0, kinds=(NEURON,)
            )
        except RecipeError:  # The two residual streams do not compare.
            return
        if not refit.layers:
            return
        before = {name: self.trained[name].detach().clone() for name in refit.tensors}
        for name, value in refit.tensors.items():
            self.trained[name].data.copy_(value)
        state.refit_tokens = sum(map(len, windows.fitting))
        loss = self._heldout_loss(self.model, lambda: self._pulse(self._share_done()))
        if loss < state.best_loss:
            state.heldout_loss = state.best_loss = loss
            self._keep_weights()
        else:
            for name, value in before.items():
                self.trained[name].data.copy_(value)
        state.seconds = self.clock.seconds
        state.refit_share = state.evaluated_at = self._share_done()
        state.curve.append((state.seconds, 0, state.heldout_loss))

    @property
    def _can_refit(self) -> bool:
        """Whether the teacher's layers are those of the student, and one process trains it in full precision.

        Models whose layers write through a norm are left out: in Gemma, no layer gained from a refit.
        """
        dtypes = {p.dtype for model in (self.model, self.teacher) for p in model.parameters()}
        return (
            self.accelerator.num_processes == 1
            and self.teacher_tokens is None
            and not anatomy_of(self.model.config).family.post_norms
            and type(self.teacher) is type(self.model)
            and dtypes == {torch.float32}
        )

    def _keep_weights(self) -> None:
        """Keep the weights as they are now: they are the best so far."""
        self.best = {name: p.detach().to(self.storage_dtype, copy=True) for name, p in self.trained.items()}

    def _back_off(self) -> None:
        """Return to the weights of the start with a lower learning rate, if no step has gained anything yet.

        The best rate depends on the model: Gemma 3 270M gains at a fifth of what SmolLM2-135M does.
        """
        if self.state.best_step:
            return
        self.state.lr_scale *= LR_BACKOFF
        for name, parameter in self.trained.items():
            start = self.best[name] if self.best else self.student.get_parameter(name)
            parameter.data.copy_(start)

    def _share_done(self) -> float:
        """Return the share of the training that is done, as this process sees it."""
        if self.training.steps:
            return self.state.step / self.training.steps
        assert self.training.minutes is not None  # One of the two is given.
        return self.state.seconds / (60 * self.training.minutes)

    def _pulse(self, share: float) -> None:
        """Report between two steps, in the main process alone. The time that the reporter takes is not counted."""
        if self.accelerator.is_main_process:
            with self.clock.paused():
                self.progress(TrainingPulse("Distilling", int(1000 * min(share, 1.0)), 1000))

    def _evaluate_if_due(self, share: float, stopped: bool) -> bool:
        """Evaluate the student if it is time, and end the training if it is over. Return if it did evaluate.

        A training that ends is evaluated once more, so that its last steps count too.
        """
        state = self.state
        over = share >= 1 or stopped
        due = over or int(share * state.num_evals) > int(state.evaluated_at * state.num_evals)
        evaluate = due and state.step > state.curve[-1][1]
        if evaluate:
            state.heldout_loss = self._heldout_loss(self.model, lambda: self._pulse(share))
            state.evaluated_at = share
            if state.heldout_loss < state.best_loss:
                state.best_loss, state.best_step, state.evals_without_gain = state.heldout_loss, state.step, 0
                self._keep_weights()
            else:
                state.evals_without_gain += 1
                self._back_off()
            state.curve.append((self.clock.seconds, state.step, state.heldout_loss))
        if over or state.evals_without_gain >= self.training.patience:
            state.ended = "stopped" if stopped else "done" if over else "no further gain"
        return evaluate

    def _step(self, share: float) -> None:
        """Do one step of the optimizer on one batch; every process reads its part of the batch."""
        accelerator, state, training = self.accelerator, self.state, self.training
        for group in self.optimizer.param_groups:
            group["lr"] = state.lr_scale * training.lr_at(
                (share - state.refit_share) / (1 - state.refit_share)
            )
        first = state.step * training.batch
        numbers = range(first + accelerator.process_index, first + training.batch, accelerator.num_processes)
        ids = self.data.windows(numbers, training.window, self.seed).to(accelerator.device)
        micro_batches, total = ids.split(training.micro_batch_size), 0.0
        for number, micro_batch in enumerate(micro_batches, 1):
            if number > 1:
                self._pulse(share)
            with self._gradients_shared(number == len(micro_batches)):
                loss = self.loss(micro_batch) * (len(micro_batch) / len(ids))
                accelerator.backward(loss)
            total += float(loss.detach())
        accelerator.clip_grad_norm_(self.trained.values(), training.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        state.step += 1
        state.tokens += training.batch * training.window
        state.loss = float(reduce(torch.tensor(total, device=accelerator.device), "mean"))

    @contextmanager
    def _gradients_shared(self, last: bool) -> Iterator[None]:
        """Let the processes exchange gradients on the last micro-batch alone."""
        if last:
            yield
        else:
            with self.accelerator.no_sync(self.loss):
                yield

    def _broadcast_from_main(self, value: float, flag: bool) -> tuple[float, bool]:
        """Return the first process's value and flag in every process: their clocks differ."""
        pair = torch.tensor([value, float(flag)], dtype=torch.float64, device=self.accelerator.device)
        value, number = broadcast(pair).tolist()
        return value, bool(number)

    def _heldout_loss(
        self, model: PreTrainedModel, report: Callable[[], None], tokens: torch.Tensor | None = None
    ) -> float:
        """Return the mean loss on held-out text, in nats per token; every process reads some of the windows.

        `report` is called before each window. `tokens`: the model's token id for each of the student's,
        `[vocabulary]`; None if they are the same.
        """
        accelerator = self.accelerator
        total = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
        for window in self.data.heldout[accelerator.process_index :: accelerator.num_processes]:
            report()
            with torch.autocast(accelerator.device.type, self.dtype, enabled=self.dtype != torch.float32):
                losses = token_losses(model, window if tokens is None else tokens[window])
            total += torch.stack([losses.sum(dtype=torch.float64), total.new_tensor(len(losses))])
        total = reduce(total, "sum")
        return float(total[0] / total[1])

    def _save(self, checkpoint: Checkpoint) -> None:
        save_checkpoint(
            checkpoint.file, self.fingerprint, self.state, self.trained, self.best, self.optimizer
        )

    def _event(self, share: float, evaluated: bool, text: str = "Distilling") -> TrainingProgress:
        state = self.state
        share = 1.0 if state.ended else share
        return TrainingProgress(
            text=text,
            done=int(1000 * share),
            total=1000,
            seconds=state.seconds,
            seconds_left=self._seconds_left(share),
            step=state.step,
            tokens=state.tokens,
            loss=state.loss,
            perplexity=perplexity_of(state.heldout_loss),
            evaluated=evaluated,
            curve=_perplexity_curve(state.curve),
            perplexity_best=perplexity_of(state.best_loss),
            perplexity_teacher=perplexity_of(state.teacher_loss),
            perplexity_before=perplexity_of(state.initial_loss),
            training=self.running,
        )

    def _note(self, loss: float, improved: bool) -> DistillationNote:
        state, processes = self.state, self.accelerator.num_processes
        hardware = hardware_name(self.accelerator.device)
        return DistillationNote(
            text=self.data.name,
            tokens=state.tokens,
            refit_tokens=state.refit_tokens,
            steps=state.step,
            best_step=state.best_step if improved else 0,
            seconds=state.seconds,
            loss=state.loss,
            perplexity_teacher=perplexity_of(state.teacher_loss),
            perplexity_before=perplexity_of(state.initial_loss),
            perplexity_after=perplexity_of(loss),
            heldout_tokens=sum(map(len, self.data.heldout)),
            ended=state.ended,
            improved=improved,
            reproducible=self.training.minutes is None,
            hardware=f"{processes} × {hardware}" if processes > 1 else hardware,
            precision=str(self.dtype).removeprefix("torch."),
            curve=_perplexity_curve(state.curve),
        )

    def _seconds_left(self, share: float) -> float:
        if self.training.minutes is not None:
            return max(0.0, (1 - share) * 60 * self.training.minutes)
        return self.state.seconds * (1 / share - 1) if share else math.inf


def _precision(training: Training, device: torch.device) -> torch.dtype:
    """Return the precision of products: bfloat16 if the device multiplies in it, unless the settings say."""
    if training.precision == "auto":
        return torch.bfloat16 if multiplies_in_bfloat16(device) else torch.float32
    return torch.bfloat16 if training.precision == "bfloat16" else torch.float32


def _trainable_copy(
    student: PreTrainedModel, training: Training, dtype: torch.dtype
) -> tuple[PreTrainedModel, dict[str, nn.Parameter]]:
    """Copy what is trained in float32 and share the rest; return the model, and its trained parameters."""
    frozen = () if training.embeddings else ("embeddings", "head")
    names = {spec.name for spec in anatomy_of(student.config).tensors if spec.component not in frozen}
    tensors = {
        name: p.detach().to(torch.float32, copy=True)
        if name in names
        else p.detach().to(torch.float32 if dtype == torch.float32 else p.dtype)
        for name, p in student.named_parameters()
    }
    model = assemble(student, student.config, tensors)
    trained = {name: p for name, p in model.named_parameters() if name in names}
    for parameter in trained.values():
        parameter.requires_grad_()
    return model, trained


def _num_evals(training: Training, seconds: float) -> int:
    """Return the number of evaluations that fit, if one takes `seconds`. Only minutes set a limit."""
    if training.minutes is None:
        return training.num_evals
    return max(1, min(training.num_evals, int(MAX_EVAL_SHARE * 60 * training.minutes / seconds)))


def _perplexity_curve(curve: Iterable[tuple[float, int, float]]) -> tuple[EvalPoint, ...]:
    return tuple(EvalPoint(round(seconds, 1), step, perplexity_of(loss)) for seconds, step, loss in curve)
