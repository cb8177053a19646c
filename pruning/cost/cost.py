"""What a piece of work takes, before it begins: operations, memory and disk, and how they add up."""

from dataclasses import dataclass
from functools import reduce


@dataclass(frozen=True)
class Cost:
    """What a piece of work takes.

    `first + second` is one after the other: operations add up, and the second begins with what the first holds.

    Attributes:
        flop: Floating-point operations.
        memory: The most private memory at one time, in bytes, beyond what the process had before.
        held: How much of it the work's result still takes when it is done.
        disk: Bytes that the work leaves on disk.
        seconds: Time that the work takes however fast the machine is, such as a training by minutes.
    """

    flop: float = 0.0
    memory: int = 0
    held: int = 0
    disk: int = 0
    seconds: float = 0.0

    def __add__(self, later: "Cost") -> "Cost":
        return Cost(
            self.flop + later.flop,
            max(self.memory, self.held + later.memory),
            self.held + later.held,
            self.disk + later.disk,
            self.seconds + later.seconds,
        )

    def times(self, count: float) -> "Cost":
        """Return the cost of doing this often, one after the other, with each result dropped."""
        return Cost(count * self.flop, self.memory if count else 0, 0, 0, count * self.seconds)

    @classmethod
    def holding(cls, size: int) -> "Cost":
        """Return the cost of memory that is taken and kept."""
        return cls(memory=size, held=size)


def in_sequence(*costs: Cost) -> Cost:
    """Return the cost of several pieces of work, one after the other."""
    return reduce(Cost.__add__, costs, Cost())
