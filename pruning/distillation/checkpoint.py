"""The state of a training, and the checkpoint from which it resumes."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pruning.distillation.data import TrainingTokens
from pruning.distillation.settings import Training
from pruning.errors import RecipeError
from pruning.files import replacing


@dataclass
class TrainingState:
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
class Checkpoint:
    """Where to keep what a killed training needs to go on, and how often, in seconds."""

    file: Path
    every: float = 60.0


_MOMENTS = {"first": "exp_avg", "second": "exp_avg_sq"}


def save_checkpoint(
    file: Path, run: str, state: TrainingState, trained, best: Mapping[str, torch.Tensor], optimizer
) -> None:
    """Write all that a training needs to go on, in one file that is whole or not there."""
    tensors = {f"trained.{name}": p.detach() for name, p in trained.items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    moments = optimizer.optimizer.state
    for name, p in trained.items():
        tensors |= {f"{kind}.{name}": moments[p][key] for kind, key in _MOMENTS.items() if p in moments}
    with replacing(file) as temporary:
        save_file(tensors, temporary, metadata={"run": run, "state": json.dumps(asdict(state))})


def load_checkpoint(
    file: Path, run: str, trained, optimizer
) -> tuple[TrainingState, dict[str, torch.Tensor]]:
    try:
        with safe_open(file, framework="pt") as kept:
            metadata = kept.metadata() or {}
            if metadata.get("run") != run:
                raise RecipeError(
                    f"The checkpoint {file} is of another training: other models, another text or other "
                    "settings. Delete it, or name another."
                )
            state = TrainingState(**json.loads(metadata["state"]))
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


def fingerprint(training: Training, reading: TrainingTokens, seed: int, trained) -> str:
    """Identifies a training: settings, text, seed and the student as it comes."""
    total = hashlib.sha256(f"{training.model_dump_json()}|{reading.digest}|{seed}".encode())
    for name, p in trained.items():
        total.update(name.encode() + p.detach().cpu().numpy().tobytes())
    return total.hexdigest()[:32]
