"""Texts from datasets on the Hub: hostile Parquet files, names and faults."""

import io
import json

import pytest
from pyarrow import array, parquet, table

import pruning
from pruning.loading import datasets
from pruning.loading.datasets import dataset_texts, wikitext


def parquet_bytes(values, **options):
    stream = io.BytesIO()
    parquet.write_table(table(values), stream, **options)
    return stream.getvalue()


@pytest.fixture
def local(hub, monkeypatch):
    """Serve one Parquet file as a dataset, without the parts of the Hub's interface that only datasets have."""

    def serve(content):
        monkeypatch.setattr(datasets, "_files_of", lambda *_: ("main", ["data/train.parquet"]))

        class Disk:
            def __init__(self, **_):
                pass

            def open(self, _path):
                return io.BytesIO(content)

        monkeypatch.setattr(datasets, "HfFileSystem", Disk)

    return serve


def refusal(*args, **options):
    with pytest.raises(pruning.ModelError) as error:
        list(dataset_texts(*args, **options))
    return str(error.value)


def test_texts_come_row_by_row_without_empty_ones(local):
    local(parquet_bytes({"text": ["one", "", None, "two"], "other": [1, 2, 3, 4]}))
    assert list(dataset_texts("ada/words", "text")) == ["one", "two"]
    assert list(dataset_texts("ada/words", "other")) == ["1", "2", "3", "4"]


def test_a_long_row_is_cut(local):
    local(parquet_bytes({"text": ["é" * 3_000_000]}))
    assert list(dataset_texts("ada/words", "text")) == ["é" * datasets.MAX_CHARACTERS]


def test_a_part_that_is_too_large_when_unpacked_is_refused_by_the_metadata(local, monkeypatch):
    content = parquet_bytes({"text": ["x" * 3_000_000]})
    assert len(content) < 300_000
    local(content)
    monkeypatch.setattr(datasets, "MAX_GROUP_BYTES", 10**6)
    assert "of text in one part; the limit is 1.0 MB" in refusal("ada/words", "text")


def test_a_value_that_many_rows_share_is_not_unpacked_for_all_of_them_at_once(local, monkeypatch):
    monkeypatch.setattr(datasets, "MAX_BATCH_BYTES", 4_000_000)
    local(parquet_bytes({"text": ["x" * 1_000_000] * 500}))
    read = []
    real = parquet.ParquetFile.iter_batches

    def iter_batches(self, size, **options):
        read.append(size)
        return real(self, size, **options)

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", iter_batches)
    texts = dataset_texts("ada/words", "text")
    assert len(next(texts)) == datasets.MAX_CHARACTERS
    assert 1 <= read[0] <= 4


def test_reading_can_be_cancelled_between_batches(local):
    local(parquet_bytes({"text": [""] * 1_000}))

    def cancel(_progress):
        raise pruning.Cancelled

    with pytest.raises(pruning.Cancelled):
        list(dataset_texts("ada/words", "text", progress=cancel))


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"x" * 1_000, b"PAR1" + b"\xff" * 200 + (100).to_bytes(4, "little") + b"PAR1"]
)
def test_a_damaged_file_is_a_sentence(local, content):
    local(content)
    message = refusal("ada/words", "text")
    assert message.startswith("ada/words cannot be read: ")
    assert "Choose another dataset" in message


def test_a_column_that_is_missing_is_named(local):
    local(parquet_bytes({"words": ["one"], "more": array([1])}))
    assert "has no column 'text'; it has: words, more." in refusal("ada/words", "text")


@pytest.mark.parametrize(
    "fault", [OSError("x"), RuntimeError("x"), NotImplementedError("x"), KeyError("x"), ValueError()]
)
def test_every_error_of_the_file_system_is_a_sentence(local, monkeypatch, fault):
    class Broken:
        def __init__(self, **_):
            pass

        def open(self, _path):
            raise fault

    local(b"")
    monkeypatch.setattr(datasets, "HfFileSystem", Broken)
    assert "ada/words" in refusal("ada/words", "text")


@pytest.mark.parametrize(
    "name", ["", "a b", "../up", "a/b/c", "name\0", "x" * 5_000, "-a", "https://x.org/a"]
)
def test_a_name_that_is_no_dataset_is_a_sentence(hub, name):
    assert "is not a dataset: give a Hub id such as owner/name" in refusal(name, "text")
    assert not hub.requests


@pytest.mark.parametrize(
    "options", [{"revision": ".."}, {"revision": "a\0"}, {"subset": "../x"}, {"split": "a/b"}, {"split": ""}]
)
def test_a_bad_revision_subset_or_split_is_a_sentence(hub, options):
    assert "is not" in refusal("ada/words", "text", **options)
    assert not hub.requests


def test_a_dataset_that_does_not_exist_is_a_sentence(hub):
    assert "ada/none" in refusal("ada/none", "text")


def test_wikitext_that_is_damaged_is_a_sentence(hub):
    file = "wikitext-2-raw-v1/validation-00000-of-00001.parquet"
    hub.add_dataset("Salesforce/wikitext", {file: json.dumps({}).encode()})
    with pytest.raises(pruning.ModelError, match="cannot be read"):
        wikitext()


def test_wikitext(hub, tmp_path, monkeypatch):
    from pyarrow import parquet, table

    file = "wikitext-2-raw-v1/validation-00000-of-00001.parquet"
    parquet.write_table(table({"text": ["", " = Title = \n", "Words .\n"]}), tmp_path / "validation")
    hub.add_dataset("Salesforce/wikitext", {file: (tmp_path / "validation").read_bytes()})
    assert wikitext() == " = Title = \nWords .\n"
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert wikitext() == " = Title = \nWords .\n"


def test_wikitext_that_cannot_be_reached():
    with pytest.raises(pruning.ModelError, match="Choose one of the bundled calibration texts"):
        wikitext()
