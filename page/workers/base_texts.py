"""What bases made of prompts, so that a visitor who moves a slider waits for the pruned model alone."""

from collections import OrderedDict
from collections.abc import Callable, Hashable

MOST = 200
"""How many texts a worker keeps."""


class BaseTexts:
    """The last texts of bases, each for the owner who asked for it: everyone, or one visitor."""

    def __init__(self) -> None:
        self._texts: OrderedDict[tuple[str, Hashable], str] = OrderedDict()

    def find(self, owner: str, asked: Hashable) -> str | None:
        """Return a text that was kept.

        Args:
            owner: The name of the owner; empty for everyone.
            asked: What the text depends on: the base, the prompt and the sampling.
        """
        text = self._texts.get((owner, asked))
        if text is not None:
            self._texts.move_to_end((owner, asked))
        return text

    def keep(self, owner: str, asked: Hashable, text: str) -> None:
        """Keep a text, and drop the one that was not asked for the longest if there are too many."""
        self._texts[owner, asked] = text
        if len(self._texts) > MOST:
            self._texts.popitem(last=False)

    def forget(self, is_theirs: Callable[[str], bool]) -> None:
        """Drop the texts of some owners."""
        for key in [key for key in self._texts if is_theirs(key[0])]:
            del self._texts[key]
