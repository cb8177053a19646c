"""The state of a training, and the checkpoint from which it resumes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pruning.distillation.data import TrainingTokens
from pruning.distillation.settings import Training
from pruning.errors import RecipeError
from pruning.files import replacing
from pruning.lazy import nn, safetensors, safetensors_torch, torch

if TYPE_CHECKING:
    from accelerate.optimizer import AcceleratedOptimizer

FORMAT = "2"
"""Format of the files. Release 0.1.0 wrote none in its checkpoints."""

Ended = Literal["", "done", "stopped", "no further gain"]


@dataclass
class TrainingState:
    """The state of a training but for its tensors: plain values.

    Attributes:
        step: Optimizer steps done.
        seconds: Seconds of training.
        tokens: Training tokens read.
        refit_tokens: Tokens on which the layers were refitted before the first step; 0 if they were not.
        refit_share: Share of the training that this took.
        loss: The training loss of the last step; None before the first.
        teacher_loss: The teacher's held-out loss, in nats per token, as all the following.
        initial_loss: The student's held-out loss before training.
        heldout_loss: The student's held-out loss at the last evaluation.
        best_loss: The lowest held-out loss so far.
        best_step: The step after which it was measured.
        evaluated_at: Share of the training that was done at the last evaluation.
        num_evals: Number of evaluations planned.
        evals_without_gain: Evaluations since the best one.
        lr_scale: Factor of the learning rate, which falls until the first gain.
        ended: Why the training is over; empty while it runs.
        curve: Seconds, step and held-out loss of every evaluation.
    """

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    refit_tokens: int = 0
    refit_share: float = 0.0
    loss: float | None = None
    teacher_loss: float = math.nan
    initial_loss: float = math.nan
    heldout_loss: float = math.nan
    best_loss: float = math.nan
    best_step: int = 0
    evaluated_at: float = 0.0
    num_evals: int = 16
    evals_without_gain: int = 0
    lr_scale: float = 1.0
    ended: Ended = ""
    curve: list[tuple[float, int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Checkpoint:
    """The file from which a killed training resumes, and the seconds between two writes of it."""

    file: Path
    every: float = 60.0


_MOMENTS = {"first": "exp_avg", "second": "exp_avg_sq"}


def save_checkpoint(
    file: Path,
    fingerprint: str,
    state: TrainingState,
    trained: Mapping[str, nn.Parameter],
    best: Mapping[str, torch.Tensor],
    optimizer: AcceleratedOptimizer,
) -> None:
    """Write all that a training needs to resume, in one file, atomically.

    Args:
        file: The file to write.
        fingerprint: The identity of the training (`fingerprint_of`).
        state: The plain values.
        trained: The trained parameters, by name.
        best: The best weights so far, by name; empty before the first gain.
        optimizer: AdamW as accelerate wraps it.
    """
    tensors = {f"trained.{name}": p.detach() for name, p in trained.items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    moments = optimizer.optimizer.state
    for name, p in trained.items():
        tensors |= {f"{kind}.{name}": moments[p][key] for kind, key in _MOMENTS.items() if p in moments}
    metadata = {"format": FORMAT, "run": fingerprint, "state": json.dumps(asdict(state))}
    with replacing(file) as temporary:
        safetensors_torch.save_file(tensors, temporary, metadata=metadata)


def load_checkpoint(
    file: Path, fingerprint: str, trained: Mapping[str, nn.Parameter], optimizer: AcceleratedOptimizer
) -> tuple[TrainingState, dict[str, torch.Tensor]]:
    """Restore a training: its parameters and the optimizer's moments in place.

    Args:
        file: A file that `save_checkpoint` wrote.
        fingerprint: The identity of the training (`fingerprint_of`).
        trained: The parameters to restore, by name.
        optimizer: The optimizer to restore.

    Returns:
        The plain values, and the best weights so far.

    Raises:
        RecipeError: If the file cannot be read, or is from another training or another version.
    """
    try:
        with safetensors.safe_open(file, framework="pt") as tensors:
            metadata = tensors.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise RecipeError(
                    f"The checkpoint {file} was written by another version of Secateur and cannot be "
                    "resumed. Delete it to start from the beginning."
                )
            if metadata.get("run") != fingerprint:
                raise RecipeError(
                    f"The checkpoint {file} is from another training: other models, another text or other "
                    "settings. Delete it, or choose another output."
                )
            state = TrainingState(**json.loads(metadata["state"]))
            names = set(tensors.keys())
            moments = optimizer.optimizer.state
            for name, p in trained.items():
                p.data.copy_(tensors.get_tensor(f"trained.{name}"))
                if f"first.{name}" in names:
                    moments[p] = {"step": torch.tensor(float(state.step), device=p.device)} | {
                        key: tensors.get_tensor(f"{kind}.{name}").to(p.device)
                        for kind, key in _MOMENTS.items()
                    }
            best = {name: tensors.get_tensor(f"best.{name}") for name in trained if f"best.{name}" in names}
    except (safetensors.SafetensorError, OSError) as error:
        raise RecipeError(
            f"The checkpoint {file} cannot be read ({error}). Delete it to start from the beginning."
        ) from error
    state.curve = [(seconds, step, loss) for seconds, step, loss in state.curve]
    return state, best


def fingerprint_of(
    training: Training, data: TrainingTokens, seed: int, trained: Mapping[str, nn.Parameter]
) -> str:
    """Return what identifies a training: 32 hexadecimal digits of its settings, text, seed and student."""
    total = hashlib.sha256(f"{training.model_dump_json()}|{data.digest}|{seed}".encode())
    for name, p in trained.items():
        total.update(name.encode() + p.detach().cpu().numpy().tobytes())
    return total.hexdigest()[:32]
