"""The tokens that a student is trained on, and those that are held out."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TrainingTokens:
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
