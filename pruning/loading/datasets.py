"""Texts from datasets on the Hugging Face Hub."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from huggingface_hub import HfApi, HfFileSystem, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

from pruning.errors import ModelError, PruningError
from pruning.lazy import pyarrow, pyarrow_compute, pyarrow_parquet
from pruning.loading.files import first_line
from pruning.loading.hub import check_revision
from pruning.loading.hub_errors import Unreachable, hub_errors
from pruning.loading.repo_files import format_bytes
from pruning.loading.source import Token
from pruning.progress import Progress, Reporter, silent

MAX_CHARACTERS = 100_000
"""Where a row is cut: a longer one is read as its beginning."""

MAX_GROUP_BYTES = 256_000_000
"""The most text that a part of a Parquet file may hold once it is unpacked. Row groups are usually far smaller."""

MAX_BATCH_BYTES = 256_000_000
"""The most that one batch of rows takes if each of them is as large as its whole part of the file."""

MAX_ROWS = 64
"""How many rows are read at a time, at most."""


def wikitext(token: Token = None, progress: Reporter = silent) -> str:
    """Download the validation split of WikiText-2 (Merity et al., 2016) from the Hub.

    Raises:
        ModelError: The Hub cannot be reached.
    """
    progress(Progress("Downloading WikiText-2"))
    endpoint = os.environ.get("HF_ENDPOINT")
    place = {
        "repo_id": "Salesforce/wikitext",
        "filename": "wikitext-2-raw-v1/validation-00000-of-00001.parquet",
        "repo_type": "dataset",
    }
    try:
        with hub_errors("Salesforce/wikitext", None):
            file = try_to_load_from_cache(**place)
            if not isinstance(file, str):
                # Without a network, this fails immediately; the download would retry for half a minute.
                if not HfApi(endpoint=endpoint).file_exists(**place, token=token):
                    raise Unreachable
                file = hf_hub_download(
                    place["repo_id"],
                    place["filename"],
                    repo_type=place["repo_type"],
                    token=token,
                    endpoint=endpoint,
                )
    except Unreachable:
        raise ModelError(
            "WikiText-2 is on the Hugging Face Hub, which cannot be reached. "
            "Choose one of the bundled calibration texts."
        ) from None
    with _dataset_errors("Salesforce/wikitext", None), open(file, "rb") as stream:
        return "".join(_texts_of("Salesforce/wikitext", "text", stream, progress))


def dataset_texts(
    name: str,
    column: str,
    subset: str | None = None,
    split: str = "train",
    revision: str | None = None,
    token: Token = False,
    progress: Reporter = silent,
) -> Iterator[str]:
    """Yield the texts in a column of a dataset on the Hub, row by row, downloading no more than is consumed.

    Reads the dataset's own Parquet files, or those that the Hub converted it to.

    Args:
        name: The dataset's id on the Hub.
        column: The column that holds the texts.
        subset: The subset (configuration) to read; None for any.
        split: The split to read.
        revision: A commit, a branch or a tag; None for the newest.
        token: The access token of the caller.
        progress: Is called between batches of rows. It may raise `Cancelled`.

    Raises:
        ModelError: The dataset cannot be read, or has no such column, subset or split.
    """
    _check_name(name, subset, split, revision)
    files: list[str] = []
    try:
        with _dataset_errors(name, revision):
            version, files = _files_of(name, subset, split, revision, token)
            disk = HfFileSystem(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
            for path in files:
                with disk.open(f"datasets/{name}@{version.replace('/', '%2F')}/{path}") as stream:
                    yield from _texts_of(name, column, stream, progress)
    except Unreachable:
        raise ModelError(
            f"{name} is on the Hugging Face Hub, which cannot be reached. Choose one of the bundled texts."
        ) from None
    if not files:
        raise ModelError(
            f"{name} has no Parquet files of the split {split!r}"
            f"{f' of {subset!r}' if subset else ''}. Choose another dataset, subset or split."
        )


def _check_name(name: str, subset: str | None, split: str, revision: str | None) -> None:
    """Refuse names that can be none. Raises `ModelError`."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise ModelError(f"{name[:100]!r} is not a dataset: give a Hub id such as owner/name.") from None
    check_revision(revision)
    for kind, value in (("subset", subset), ("split", split)):
        if value is not None and not re.fullmatch(r"[\w.+=, -]{1,200}", value):
            raise ModelError(f"{value[:100]!r} is not the name of a {kind} of {name}.")


def _files_of(
    name: str, subset: str | None, split: str, revision: str | None, token: Token
) -> tuple[str, list[str]]:
    """Return the revision to read and the Parquet files in it: the dataset's own, or those that the Hub made."""
    version, files = "", []
    for version in [revision] if revision else ["main", "refs/convert/parquet"]:
        listed: list[str] = []
        with suppress(*[RevisionNotFoundError] * (revision is None)):
            # Without a network, this fails immediately; other calls would retry for half a minute.
            info = HfApi(endpoint=os.environ.get("HF_ENDPOINT")).dataset_info(
                name, revision=version, token=token, timeout=15
            )
            listed = [file.rfilename for file in info.siblings or []]
        if files := sorted(path for path in listed if _holds_split(path, subset, split)):
            break
    return version, files


def _texts_of(name: str, column: str, stream: Any, progress: Reporter) -> Iterator[str]:
    """Yield the texts in a column of a Parquet file, each cut to `MAX_CHARACTERS`."""
    table = pyarrow_parquet.ParquetFile(stream)
    names = table.schema_arrow.names
    if column not in names:
        known = ", ".join(str(known)[:50] for known in names[:20])
        raise ModelError(f"{name} has no column {column!r}; it has: {known}.")
    for group in range(table.num_row_groups):
        size = _column_bytes(table.metadata.row_group(group), column)
        if size > MAX_GROUP_BYTES:
            raise ModelError(
                f"{name} holds {format_bytes(size)} of text in one part; the limit is "
                f"{format_bytes(MAX_GROUP_BYTES)}. Choose another dataset."
            )
        rows = min(MAX_ROWS, max(1, MAX_BATCH_BYTES // max(1, size)))
        for batch in table.iter_batches(rows, row_groups=[group], columns=[column], use_threads=False):
            progress(Progress(f"Reading {name}, part", group, table.num_row_groups))
            values = batch[column]
            if pyarrow.types.is_string(values.type) or pyarrow.types.is_large_string(values.type):
                values = pyarrow_compute.utf8_slice_codeunits(values, 0, MAX_CHARACTERS)
            yield from (_as_text(value) for value in values.to_pylist() if value)


def _as_text(value: object) -> str:
    """Return the text of a cell; what is not a text, such as a conversation, is written as JSON."""
    if isinstance(value, list | dict):
        value = json.dumps(value, ensure_ascii=False, default=str)
    return str(value)[:MAX_CHARACTERS]


def _column_bytes(group: Any, column: str) -> int:
    """Return the bytes that a column of a row group takes once it is unpacked, by the file's own account."""
    columns = (group.column(number) for number in range(group.num_columns))
    return sum(
        chunk.total_uncompressed_size for chunk in columns if chunk.path_in_schema.split(".")[0] == column
    )


@contextmanager
def _file_errors() -> Iterator[None]:
    """Tell an `OSError` about the content of a file, as pyarrow and fsspec raise them, from one about the disk."""
    try:
        yield
    except OSError as error:
        if type(error) is FileNotFoundError or (type(error) is OSError and error.errno is None):
            raise ValueError(first_line(error)) from None
        raise


@contextmanager
def _dataset_errors(name: str, revision: str | None) -> Iterator[None]:
    """Turn what the Hub's client, fsspec and pyarrow raise into one sentence."""
    try:
        with hub_errors(name, revision), _file_errors():
            yield
    except (PruningError, Unreachable):
        raise
    except Exception as error:
        raise ModelError(f"{name} cannot be read: {first_line(error)}. Choose another dataset.") from None


def _holds_split(path: str, subset: str | None, split: str) -> bool:
    """Return whether a file of a dataset is a Parquet file of a subset and a split, judging by its path."""
    folder, _, file = path.rpartition("/")
    fits = subset is None or subset in folder.split("/")
    return path.endswith(".parquet") and fits and (split in file or folder.endswith(split))
