"""Token windows: how a model is given a text."""

import hashlib
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Windows:
    """Token windows, each a vector of at most the window's length: to fit on, and held out."""

    fitting: tuple[torch.Tensor, ...]
    heldout: tuple[torch.Tensor, ...]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.fitting + self.heldout))

    @property
    def digest(self) -> str:
        total = hashlib.sha256()
        for part in (self.fitting, self.heldout):
            for window in part:
                total.update(window.numpy().astype("<i8").tobytes() + b"|")
            total.update(b"#")
        return total.hexdigest()[:32]
