"""Texts from datasets on the Hugging Face Hub."""

import os
from collections.abc import Iterator
from contextlib import suppress

from huggingface_hub import HfApi, HfFileSystem, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import RevisionNotFoundError
from pyarrow import ArrowException, parquet

from pruning.errors import ModelError
from pruning.loading.files import first_line
from pruning.loading.hub import Unreachable, hub_errors
from pruning.loading.source import Token
from pruning.progress import Progress, Reporter, silent


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
    return "".join(parquet.read_table(file, columns=["text"])["text"].to_pylist())


def dataset_texts(
    name: str,
    column: str,
    subset: str | None = None,
    split: str = "train",
    revision: str | None = None,
    token: Token = False,
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

    Raises:
        ModelError: The dataset cannot be read, or has no such column, subset or split.
    """
    endpoint = os.environ.get("HF_ENDPOINT")
    files: list[str] = []
    try:
        with hub_errors(name, revision):
            for version in [revision] if revision else ["main", "refs/convert/parquet"]:
                listed: list[str] = []
                with suppress(*[RevisionNotFoundError] * (revision is None)):
                    # Without a network, this fails immediately; other calls would retry for half a minute.
                    info = HfApi(endpoint=endpoint).dataset_info(
                        name, revision=version, token=token, timeout=15
                    )
                    listed = [file.rfilename for file in info.siblings or []]
                if files := sorted(path for path in listed if _holds_split(path, subset, split)):
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
    except Unreachable:
        raise ModelError(
            f"{name} is on the Hugging Face Hub, which cannot be reached. Choose one of the bundled texts."
        ) from None
    except ArrowException as error:
        raise ModelError(f"{name} cannot be read: {first_line(error)}. Choose another dataset.") from None
    if not files:
        raise ModelError(
            f"{name} has no Parquet files of the split {split!r}"
            f"{f' of {subset!r}' if subset else ''}. Choose another dataset, subset or split."
        )


def _holds_split(path: str, subset: str | None, split: str) -> bool:
    """Return whether a file of a dataset is a Parquet file of a subset and a split, judging by its path."""
    folder, _, file = path.rpartition("/")
    fits = subset is None or subset in folder.split("/")
    return path.endswith(".parquet") and fits and (split in file or folder.endswith(split))
