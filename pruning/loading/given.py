"""The kinds of model that a caller may give: a name, a path, a source, or one that is loaded already."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Union
from weakref import WeakKeyDictionary

from pruning.architectures.config import build_on_meta
from pruning.architectures.multimodal import is_multimodal
from pruning.architectures.placement import device_map
from pruning.errors import ModelError
from pruning.lazy import nn, torch, transformers
from pruning.loading.checks import check_config, check_finite, check_tokenizer
from pruning.loading.load import LoadedModel, find, load
from pruning.loading.own_head import has_own_head
from pruning.loading.placement import AnyDtype, read_device, read_dtype
from pruning.loading.source import Access, Source, Token
from pruning.loading.text_half import find_renaming, with_text_half
from pruning.progress import Reporter, silent
from pruning.surgery import cast

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

TENSORS = "tensors:"
"""How the revision of a model begins that was given in memory: the rest is a digest of its weights."""

SAMPLE = 1024
"""How many numbers of each tensor are part of the digest, beside their sum."""


class CausalLM(Protocol):
    """A model with the tokenizer that belongs to it, such as `LoadedModel` and `Pruned`."""

    @property
    def model(self) -> transformers.PreTrainedModel: ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...


AnyModel = Union[str, os.PathLike[str], Source, "transformers.PreTrainedModel", CausalLM]
"""A catalog name, a Hub id or a folder; a model that is loaded, alone or with its tokenizer."""


def open_model(
    model: AnyModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    revision: str | None = None,
    token: Token = None,
    dtype: AnyDtype | None = None,
    device: str | torch.device | None = None,
    progress: Reporter = silent,
) -> LoadedModel:
    """Return any kind of model as one that nobody changes, and load it if it is not loaded.

    Args:
        model: The model. One that is loaded is not changed, and shares its weights with the result.
        tokenizer: Its tokenizer, if the model is a `PreTrainedModel`.
        revision: A commit, a branch or a tag of a model that is named.
        token: The access token of the caller, for a model that is named.
        dtype: See `load`; a model that is loaded is copied if its weights have to be rounded.
        device: See `load`; a model that is loaded must be there already.
        progress: Is called with each stage.

    Raises:
        ModelError: The model cannot be used. The message says why, and what to do.
    """
    if not isinstance(model, str | os.PathLike | Source):
        given = _open_given(model, tokenizer)
        if device is not None and read_device(device).type != given.model.device.type:
            raise ModelError(
                f"{given.source.name} is on {given.model.device.type}, not on {device}. Move it there first, with "
                f"model.to({str(device)!r})."
            )
        return given if dtype is None else _in_precision(given, read_dtype(dtype), progress)
    name = model if isinstance(model, Source) else os.fspath(model)
    loaded = load(name, revision=revision, token=token, dtype=dtype, device=device, progress=progress)
    return loaded if tokenizer is None else _with_tokenizer(loaded, tokenizer)


def _open_given(
    model: transformers.PreTrainedModel | CausalLM, tokenizer: PreTrainedTokenizerBase | None
) -> LoadedModel:
    if isinstance(model, LoadedModel):
        return model if tokenizer is None else _with_tokenizer(model, tokenizer)
    return _adopt(_in_memory(model), tokenizer or getattr(model, "tokenizer", None))


def _in_precision(loaded: LoadedModel, dtype: torch.dtype, progress: Reporter) -> LoadedModel:
    """Return a model that is saved in a precision, with its weights rounded to it."""
    if loaded.storage_dtype == dtype:
        return loaded
    model = cast(cast(loaded.model, dtype, progress), loaded.model.dtype, progress)
    return replace(loaded, model=model.requires_grad_(False).eval(), storage_dtype=dtype)


def with_tokenizer(
    model: AnyModel, tokenizer: PreTrainedTokenizerBase | None = None, *, progress: Reporter = silent
) -> CausalLM:
    """Return a model with its tokenizer, to run and not to cut: what has both is returned as it is.

    See `open_model` for the arguments and errors.
    """
    has_both = hasattr(model, "tokenizer") and isinstance(
        getattr(model, "model", None), transformers.PreTrainedModel
    )
    if has_both and tokenizer is None and not isinstance(model, transformers.PreTrainedModel):
        return model  # type: ignore[return-value]
    return open_model(model, tokenizer, progress=progress)


def name_of(model: AnyModel) -> str:
    """Return the name that a recipe gives any kind of model.

    Raises:
        ModelError: It is of no known kind.
    """
    if isinstance(model, str | os.PathLike):
        return os.fspath(model)
    if isinstance(model, Source | LoadedModel):
        return (model if isinstance(model, Source) else model.source).name
    return _name_in_memory(_in_memory(model))


def config_of(
    model: AnyModel,
    *,
    revision: str | None = None,
    token: Token = None,
    access: Access | None = None,
) -> PreTrainedConfig:
    """Return the checked config of any kind of model, without loading it.

    Raises:
        ModelError: The model cannot be used.
    """
    if isinstance(model, str | os.PathLike):
        return find(model, revision=revision, token=token, access=access).config
    if isinstance(model, Source | LoadedModel):
        return (model if isinstance(model, Source) else model.source).config
    return _config_in_memory(_in_memory(model))


def _config_in_memory(model: transformers.PreTrainedModel) -> PreTrainedConfig:
    config = check_config(model.config.to_dict(), _name_in_memory(model))
    if has_own_head(model):
        config.tie_word_embeddings = False
    return config


def _in_memory(model: Any) -> transformers.PreTrainedModel:
    """Return the model itself of what was given in memory. Raises `ModelError` if it holds none that can be cut."""
    if not isinstance(model, transformers.PreTrainedModel) and not hasattr(model, "peft_config"):
        # The wrappers of torch and peft have a `model` too; they are refused below, in words.
        inner = getattr(model, "model", None) if hasattr(model, "tokenizer") else None
        model = inner if isinstance(inner, transformers.PreTrainedModel) else model
    _check_given(model)
    assert isinstance(model, transformers.PreTrainedModel)
    return model


def _name_in_memory(model: transformers.PreTrainedModel) -> str:
    return model.name_or_path or str(model.config.model_type)


def _with_tokenizer(loaded: LoadedModel, tokenizer: PreTrainedTokenizerBase) -> LoadedModel:
    check_tokenizer(loaded.source.name, tokenizer, loaded.model.config.vocab_size)
    return replace(loaded, tokenizer=tokenizer)


def _is_quantized(model: Any) -> bool:
    return bool(
        getattr(model, "is_quantized", False)
        or getattr(model, "hf_quantizer", None)
        or getattr(model.config, "quantization_config", None)
    )


def _is_offloaded(model: Any) -> bool:
    hooks = (getattr(module, "_hf_hook", None) for module in model.modules())
    parts = (part for hook in hooks for part in getattr(hook, "hooks", (hook,)))
    return bool(device_map(model)) or any(getattr(part, "offload", False) for part in parts)


def _has_adapters(model: Any) -> bool:
    loaded = getattr(model, "_hf_peft_config_loaded", False)
    return bool(loaded) or any(".lora_" in name for name, _ in model.named_parameters())


REFUSALS: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (lambda model: hasattr(model, "_orig_mod"), "is compiled. Give the model inside it, model._orig_mod"),
    (
        lambda model: hasattr(model, "peft_config"),
        "has adapters. Merge them first, with model.merge_and_unload(), and give what that returns",
    ),
    (
        lambda model: not isinstance(model, transformers.PreTrainedModel),
        "is not a model that can be used here. Give a name, a folder, or a model of transformers with its tokenizer",
    ),
    (_is_quantized, "is quantized, and packed weights cannot be pruned. Load it without quantization"),
    (_has_adapters, "has adapters. Merge them into its weights first"),
    (
        _is_offloaded,
        "is offloaded or split over devices. Give its name or folder instead, or load it on one device",
    ),
    (
        lambda model: any(values.is_meta for values in model.parameters()),
        "is on the meta device and has no weights. Load its weights first",
    ),
)
"""What is refused of a model that was given in memory, and the end of the sentence that says so."""


def _check_given(model: object) -> None:
    """Refuse a model in memory that cannot be cut. Raises `ModelError`."""
    for applies, message in REFUSALS:
        if applies(model):
            raise ModelError(f"The {type(model).__name__} that was given {message}.")


_adopted: WeakKeyDictionary[nn.Module, LoadedModel] = WeakKeyDictionary()
"""For each model that was given, what was made of it last: another ratio then reads no text again."""


def _adopt(model: transformers.PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> LoadedModel:
    """Return a model that shares the weights of one in memory, in evaluation mode and without gradients."""
    name = _name_in_memory(model)
    if tokenizer is None:
        raise ModelError(f"The tokenizer of {name} is missing. Give it after the model.")
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"The tokenizer of {name} is a slow one, which does not tell where its tokens stand in a text. "
            "Load it with AutoTokenizer."
        )
    revision = fingerprint(model)
    known = _adopted.get(model)
    if known is not None and known.source.revision == revision and known.tokenizer is tokenizer:
        return known
    config = _config_in_memory(model)
    check_tokenizer(name, tokenizer, config.vocab_size)
    shared = _sharing_weights(name, model, config)
    check_finite(name, shared)
    source = Source(
        name=name,
        hub_id=None,
        revision=revision,
        license=None,
        origin="given in memory",
        folder=Path(name),
        config=config,
        public=False,
    )
    source = with_text_half(source, model.config.to_dict())
    loaded = LoadedModel(shared, tokenizer, source, model.dtype)
    _adopted[model] = loaded
    return loaded


def _sharing_weights(
    name: str, model: transformers.PreTrainedModel, config: PreTrainedConfig
) -> transformers.PreTrainedModel:
    """Build a model of a config around the weights of another, which is not changed."""
    built = build_on_meta(config, model.dtype, model.config._attn_implementation)
    renaming = None
    if is_multimodal(model.config.to_dict()):
        shapes = {
            key: ("", tuple(each.shape)) for key, each in model.named_parameters(remove_duplicate=False)
        }
        renaming = find_renaming(name, config, shapes)
    elif not isinstance(model, type(built)):
        raise ModelError(
            f"{name} is a {type(model).__name__}; only a {type(built).__name__}, which predicts tokens, can be used."
        )
    theirs, buffers = dict(model.named_parameters(remove_duplicate=False)), dict(model.named_buffers())
    if renaming is not None:
        theirs = {new: theirs[old] for new, old in renaming.names(theirs).items()}
        buffers = {new: buffers[old] for new, old in renaming.names(buffers).items()}
    modules = dict(built.named_modules())
    ours: dict[int, nn.Parameter] = {}
    for key, expected in list(built.named_parameters(remove_duplicate=False)):
        values = theirs.get(key)
        if values is None or values.shape != expected.shape:
            found = "is missing" if values is None else f"has the shape {[*values.shape]}"
            raise ModelError(f"The weights of {name} do not fit its config: {key} {found}.")
        if id(values) not in ours:
            ours[id(values)] = nn.Parameter(values.detach(), requires_grad=False)
        _set(modules, key, ours[id(values)])
    for key, _ in list(built.named_buffers()):
        _set(modules, key, buffers[key])
    built.generation_config = copy.deepcopy(model.generation_config)
    built.name_or_path = model.name_or_path
    return built.eval()


def _set(modules: dict[str, nn.Module], name: str, value: torch.Tensor) -> None:
    module, _, attribute = name.rpartition(".")
    setattr(modules[module], attribute, value)


def fingerprint(model: transformers.PreTrainedModel) -> str:
    """Return a digest of a model's weights that changes when they are trained, and takes no longer than to read them.

    Of each tensor it takes the name, the shape, the precision, the sum of all bytes as 64-bit integers, and some of the
    bytes themselves.
    """
    total = hashlib.sha256()
    for name, values in model.named_parameters():
        plain = values.detach().contiguous().flatten()
        if plain.storage_offset() * plain.element_size() % 8:
            plain = plain.clone()
        data = plain.view(torch.uint8)
        whole = len(data) // 8 * 8
        numbers = data[:whole].view(torch.int64)
        parts = (numbers[:: max(1, len(numbers) // SAMPLE)], numbers.sum().reshape(1), data[whole:])
        total.update(f"{name}|{values.dtype}|{[*values.shape]}|".encode())
        for part in parts:
            total.update(part.cpu().numpy().tobytes())
    return TENSORS + total.hexdigest()
