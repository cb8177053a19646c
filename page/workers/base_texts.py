"""The answers of bases, kept so that a visitor who moves a slider waits for the pruned model alone."""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

MOST = 200
"""How many texts a worker keeps."""


class BaseTexts:
    """The last texts of bases, each for the owner who asked for it: everyone, or one visitor."""

    def __init__(self) -> None:
        self._texts: OrderedDict[tuple[str, Hashable], tuple[str, float]] = OrderedDict()

    def find(self, owner: str, asked: Hashable) -> str | None:
        """Return a text that was kept for an owner or for everyone.

        Args:
            owner: The name of the owner; empty for everyone.
            asked: What the text depends on: the base, the prompt and the sampling.
        """
        for name in (owner, ""):
            if (found := self._texts.get((name, asked))) is not None:
                self.keep(name, asked, found[0])
                return found[0]
        return None

    def keep(self, owner: str, asked: Hashable, text: str) -> None:
        """Keep a text, and drop the least recently used one if there are too many."""
        self._texts[owner, asked] = text, time.monotonic()
        self._texts.move_to_end((owner, asked))
        if len(self._texts) > MOST:
            self._texts.popitem(last=False)

    def drop_unused(self, since: float) -> None:
        """Drop what belongs to one visitor and was last used before a time, in seconds of the monotonic clock."""
        for key in [key for key, (_, used_at) in self._texts.items() if key[0] and used_at < since]:
            del self._texts[key]

    def forget(self, is_theirs: Callable[[str], bool]) -> None:
        """Drop the texts of some owners."""
        for key in [key for key in self._texts if is_theirs(key[0])]:
            del self._texts[key]
