"""LoRA adapters: what their files say, and their weights merged into those of their base.

Others wrote the files. Which modules are changed, and in which rank, is read from the tensors: the patterns in the
settings are never run. peft merges them.
"""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.errors import ModelError
from pruning.lazy import safetensors_torch, torch
from pruning.loading.files import first_line, reading_weights
from pruning.loading.metadata import short_text
from pruning.loading.repo_files import check_brings_no_code, read_json
from pruning.loading.source import HubFiles

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER_CONFIG = "adapter_config.json"

ADAPTER_WEIGHTS = "adapter_model.safetensors"

_HANDLED = frozenset(
    {
        "r",
        "lora_alpha",
        "use_rslora",
        "use_dora",
        "fan_in_fan_out",
        "alpha_pattern",
        "init_lora_weights",
        "bias",
    }
)

_WITHOUT_EFFECT = frozenset(
    # They describe the adapter, only matter while it is trained, or choose modules, which its tensors name.
    {
        "base_model_name_or_path",
        "revision",
        "peft_type",
        "peft_version",
        "task_type",
        "inference_mode",
        "lora_dropout",
    }
    | {
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "megatron_core",
    }
    | {"qalora_group_size", "ensure_weight_tying", "loftq_config", "runtime_config"}
)

_PREFIX = "base_model.model."

_PLAIN_NAME = re.compile(r"[\w.]{1,200}")


@dataclass(frozen=True)
class FoundAdapter:
    """An adapter that was found, before its base is.

    Attributes:
        name: The name that it was asked for by.
        hub_id: Its id on the Hub, or None for a folder.
        folder: The folder that holds its files.
        revision: Its commit, or a digest of its files.
        settings: The content of its adapter_config.json, which was checked.
        public: Whether anyone may see it.
        remote: What to download before it can be merged; None if it is here.
    """

    name: str
    hub_id: str | None
    folder: Path
    revision: str | None
    settings: Mapping[str, Any]
    public: bool
    remote: HubFiles | None = None

    @property
    def base(self) -> str:
        """The name of its base."""
        return str(self.settings["base_model_name_or_path"])

    @property
    def base_revision(self) -> str | None:
        """The revision of its base, if it names one."""
        return short_text(self.settings.get("revision")) or None


def read_settings(file: Path, name: str) -> dict[str, Any]:
    """Read the settings of an adapter that can be merged.

    Args:
        file: Its adapter_config.json.
        name: Its name, for the message.

    Raises:
        ModelError: It is not LoRA, asks for code or for something else than LoRA, names no base, or peft is missing.
    """
    settings = read_json(file)
    settings.pop("auto_mapping", None)  # It names a class, which is not used here.
    check_brings_no_code(settings, ADAPTER_CONFIG, name)
    this = f"{name} holds an adapter ({ADAPTER_CONFIG})"
    if settings.get("peft_type") != "LORA":
        raise ModelError(
            f"{this} of the type {str(settings.get('peft_type'))[:40]}; only LoRA can be merged here. "
            "Merge it into its base model first, or choose another model."
        )
    base = short_text(settings.get("base_model_name_or_path"))
    if not base:
        raise ModelError(
            f"{this} that names no base model (base_model_name_or_path). Merge it into its base first."
        )
    unknown = [key for key, value in settings.items() if value and key not in _HANDLED | _WITHOUT_EFFECT]
    initial = settings.get("init_lora_weights", True)
    if settings.get("bias", "none") != "none":
        unknown.append("bias")
    if not isinstance(initial, bool) and initial != "gaussian":
        unknown.append("init_lora_weights")
    if unknown:
        raise ModelError(
            f"{this} that changes more than LoRA weights: {sorted(unknown)[0][:60]} is set. "
            "Merge it into its base model with peft, and use the result."
        )
    _check_numbers(settings, this)
    if importlib.util.find_spec("peft") is None:
        raise ModelError(
            f"{this}. Adapters are merged by peft, which is not installed. Install it with: pip install peft"
        )
    return settings


def without_weights(name: str) -> ModelError:
    """Return the error for an adapter without weights in a safetensors file."""
    return ModelError(
        f"{name} holds an adapter ({ADAPTER_CONFIG}) without weights in a safetensors file ({ADAPTER_WEIGHTS}), and "
        "other formats can run code when they are read. Save it again with peft."
    )


def beside_a_model(name: str) -> ModelError:
    """Return the error for an adapter beside the weights of a whole model."""
    return ModelError(
        f"{name} holds an adapter ({ADAPTER_CONFIG}) beside a whole model, so it is not clear which is meant. "
        "Keep one of them in the folder."
    )


def _check_numbers(settings: Mapping[str, Any], this: str) -> None:
    patterns = settings.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(_PLAIN_NAME.fullmatch(key) for key in patterns):
        raise ModelError(f"{this} whose alpha_pattern is not a table of module names. Merge it with peft.")
    for value in (settings.get("lora_alpha", 8), *patterns.values()):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < abs(value) < 1e6:
            raise ModelError(f"{this} whose lora_alpha is {str(value)[:40]!r}; a number is needed.")


def merged(model: PreTrainedModel, folder: Path, name: str) -> PreTrainedModel:
    """Merge an adapter into the weights of its base, which are changed in place.

    Args:
        model: The base, in memory.
        folder: The folder with the adapter's files.
        name: The adapter, for the message.

    Returns:
        The base, without a trace of the adapter but its values.

    Raises:
        ModelError: The adapter is damaged, or does not fit the base.
    """
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict  # noqa: PLC0415 - optional

    settings, file = read_settings(folder / ADAPTER_CONFIG, name), folder / ADAPTER_WEIGHTS
    if not file.is_file():
        raise without_weights(name)
    with reading_weights(file):
        tensors = safetensors_torch.load_file(file)
    ranks = _ranks(model, tensors, name)
    rank = Counter(ranks.values()).most_common(1)[0][0]
    config = LoraConfig(
        r=rank,
        lora_alpha=settings.get("lora_alpha", 8),
        target_modules=sorted(ranks),
        rank_pattern={re.escape(module): own for module, own in ranks.items() if own != rank},
        alpha_pattern={re.escape(key): value for key, value in (settings.get("alpha_pattern") or {}).items()},
        use_rslora=bool(settings.get("use_rslora")),
        use_dora=bool(settings.get("use_dora")),
        fan_in_fan_out=bool(settings.get("fan_in_fan_out")),
        inference_mode=True,
    )
    try:
        wrapped = get_peft_model(model, config)
        result: Any = set_peft_model_state_dict(wrapped, tensors)
        missing = [key for key in result.missing_keys if "lora_" in key]
        if problem := next(iter((*result.unexpected_keys, *missing)), None):
            raise ModelError(f"{problem[:200]} of one has no counterpart in the other")
        whole: Any = wrapped.merge_and_unload(safe_merge=True)
    except Exception as error:
        raise ModelError(
            f"The adapter {name} does not fit its base: {first_line(error).rstrip('.')}. Choose the base that it was "
            "trained on."
        ) from error
    plain: PreTrainedModel = whole.requires_grad_(False).eval()
    return plain


def _ranks(model: PreTrainedModel, tensors: Mapping[str, torch.Tensor], name: str) -> dict[str, int]:
    """Return the rank of each module of the base that an adapter changes."""
    modules = {module for module, _ in model.named_modules()}
    ranks: dict[str, int] = {}
    for key, values in tensors.items():
        if not values.is_floating_point() or not bool(torch.isfinite(values).all()):
            raise ModelError(f"The weights of the adapter {name} are damaged: {key[:100]} is not finite.")
        module, found, part = key.removeprefix(_PREFIX).partition(".lora_")
        if not key.startswith(_PREFIX) or not found or module not in modules:
            raise ModelError(
                f"The adapter {name} does not fit its base: it changes {key[:200]}, which the base does not have. "
                "Choose the base that it was trained on."
            )
        if part in ("A.weight", "embedding_A") and values.ndim == 2:
            ranks[module] = values.shape[0]
    if not ranks:
        raise ModelError(f"The adapter {name} holds no LoRA weights. Save it again.")
    return ranks
