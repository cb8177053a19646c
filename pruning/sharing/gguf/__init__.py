"""Export to GGUF, the format of llama.cpp."""

from pruning.sharing.gguf.export import Exported, export, export_and_compare
from pruning.sharing.gguf.types import GGUF_TYPES, GGUFType, gguf_types

__all__ = ["GGUF_TYPES", "Exported", "GGUFType", "export", "export_and_compare", "gguf_types"]
