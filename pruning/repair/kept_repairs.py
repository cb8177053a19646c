"""Keep the repairs of gaps while a base is cut in several ways, so that it reads the text only once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pruning.calibration import cache
from pruning.repair.gap import GapRepair, LayerRun
from pruning.text.tokens import Windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class KeptRepairs:
    """Repairs by the layers that are removed."""

    repairs: Mapping[LayerRun, GapRepair]

    @property
    def bytes(self) -> int:
        """The size of the refitted projections."""
        return sum(new.nbytes for repair in self.repairs.values() for new in repair.tensors.values())


@dataclass(frozen=True, kw_only=True)
class KeptRepairsKey(cache.CacheKey[KeptRepairs]):
    """The digest of the token windows that the gaps were refitted on."""

    windows: str

    @classmethod
    def of(cls, windows: Windows) -> KeptRepairsKey:
        """Return the key for a text."""
        return cls(text_sha256=windows.text_sha256, windows=windows.digest)


def kept_repairs(model: PreTrainedModel, windows: Windows) -> Mapping[LayerRun, GapRepair]:
    """Return the repairs that are kept for a model and a text; empty if none are."""
    kept = cache.find(model, KeptRepairsKey.of(windows))
    return kept.repairs if kept else {}


def keep_repairs(model: PreTrainedModel, windows: Windows, repairs: Mapping[LayerRun, GapRepair]) -> None:
    """Keep repairs for a model and a text, until `forget_repairs`."""
    cache.store(model, KeptRepairsKey.of(windows), KeptRepairs(repairs))


def forget_repairs(model: PreTrainedModel, windows: Windows) -> None:
    """Drop the repairs that are kept for a model and a text."""
    cache.drop(model, KeptRepairsKey.of(windows))
