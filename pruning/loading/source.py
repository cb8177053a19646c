"""Where a model comes from, and who asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Token = str | bool | None
"""An access token. None: the one saved on this machine. False: none."""


@dataclass(frozen=True)
class Access:
    """Who asks for a model, and what they may see.

    Attributes:
        token: The access token that shows their rights on the Hub.
        local: Whether they own this machine, and so may use its folders, its saved token, and its
            copies of models that are not public. A server that acts for others must say False.
    """

    token: Token = field(default=None, repr=False)
    local: bool = True

    @property
    def hub_token(self) -> Token:
        """The token to show to the Hub: the one saved on a machine is its owner's, not its visitors'."""
        return False if self.token is None and not self.local else self.token


@dataclass(frozen=True)
class HubFiles:
    """The files of a model on the Hub that were looked up, but whose weights were not downloaded.

    Attributes:
        commit: The commit that was looked up.
        sizes: The bytes of each file to download, by name.
        weights: The names of those that hold weights.
    """

    commit: str | None
    sizes: Mapping[str, int]
    weights: frozenset[str]


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that is merged into its base once both are read.

    Attributes:
        base: The base.
        remote: What to download of the adapter; None if it is here.
    """

    base: Source
    remote: HubFiles | None = None


@dataclass(frozen=True)
class Source:
    """A model that was found: where it comes from, and its config.

    Attributes:
        name: The name that it was asked for by.
        hub_id: Its id on the Hub, or None for a folder.
        revision: A commit, a package version, or a digest of a folder's files.
        license: The license that its card or the catalog names.
        origin: Where its files come from, as a phrase for people.
        folder: The folder that holds its files.
        config: Its checked config.
        public: Whether anyone may see it. What is not public must not be handed to other visitors.
        remote: What to download before its weights can be read; None if they are here.
        kept_layers: If it was pruned by Secateur, the number that each of its layers has in its base.
        multimodal: Whether its files hold more than the model, which is the text half of what they hold.
        adapter: If its files are those of an adapter, what it is merged into. The config is that of the base.
        notes: What was done to make a model of its files, in sentences for people.
    """

    name: str
    hub_id: str | None
    revision: str | None
    license: str | None
    origin: str
    folder: Path
    config: PreTrainedConfig = field(repr=False, compare=False)
    public: bool = True
    remote: HubFiles | None = None
    kept_layers: tuple[int, ...] | None = None
    multimodal: bool = False
    adapter: Adapter | None = None
    notes: tuple[str, ...] = ()

    @property
    def base(self) -> Source:
        """The model that was trained before: the base of an adapter, or the model itself."""
        return self if self.adapter is None else self.adapter.base
