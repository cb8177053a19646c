"""Where a model comes from, and what a caller may see."""

from dataclasses import dataclass
from pathlib import Path

Token = str | bool | None
"""An access token; None for the one saved on this machine, False for none at all."""


@dataclass(frozen=True)
class Source:
    """Where a model came from. `revision` is a commit, a package version, or a digest of a folder.

    `public`: whether anyone may see it; what is not must not be handed to other visitors.
    """

    name: str
    hub_id: str | None
    revision: str | None
    license: str | None
    origin: str
    folder: Path
    public: bool = True
