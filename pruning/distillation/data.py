"""The tokens that a student is trained on, and those that are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from pruning.lazy import torch


@dataclass(frozen=True)
class TrainingTokens:
    """Tokens to train on, and windows of tokens held out from them.

    Attributes:
        tokens: Token ids to train on, `[tokens]`.
        heldout: Windows to evaluate on, each `[window]`.
        prefix: Token ids that every window begins with, such as a BOS token; may be empty.
        name: Name of the text, for reports.
    """

    tokens: torch.Tensor
    heldout: tuple[torch.Tensor, ...]
    prefix: torch.Tensor
    name: str = "custom text"

    def windows(self, numbers: Sequence[int], length: int, seed: int) -> torch.Tensor:
        """Return windows by their number in an endless order.

        Each epoch cuts the text at other places, and reads every window once, in random order.

        Args:
            numbers: Numbers of windows, from 0.
            length: Tokens in a window, the prefix included.
            seed: Seed of the order.

        Returns:
            Token ids, `[len(numbers), length]`.
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
        """32 hexadecimal digits that identify the tokens."""
        parts = (self.tokens, *self.heldout)
        return hashlib.sha256(b"|".join(part.numpy().tobytes() for part in parts)).hexdigest()[:32]
