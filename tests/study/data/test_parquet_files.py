"""Parquet files of the hub's layout give the same images with and without the package `datasets`."""

import json
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from parquet_folder import datasets, new_process, parquet, pictures

from cdgrad.study import StudyError
from cdgrad.study.data import choice, decoding, parquet_files
from cdgrad.study.data.files import contents
from cdgrad.study.spec import Task

pytestmark = pytest.mark.usefixtures("cached")
TASK = Task("", train="all", validation=2)


@pytest.fixture
def without_datasets(monkeypatch):
    """To call once the folder is written, which needs the package."""
    return lambda: monkeypatch.setitem(sys.modules, "datasets", None)


def task(folder, **changes):
    return Task(folder, train="all", validation=2, **changes)


def read(folder):
    """What both readers decode of a folder: pixels and labels of each split, titles, classes."""
    decoded = decoding.load(task(folder))
    arrays = [a.numpy() for part in (decoded.train, decoded.test) if part for a in (part.pixels, part.labels)]
    return arrays, decoded.description


def test_both_readers_decode_the_same(tmp_path, monkeypatch):
    folder = parquet(tmp_path / "pets", train=pictures(7, 0), test=pictures(5, 1), validation=pictures(3, 2))
    with pytest.warns(UserWarning, match="the 3 images of split validation are not read"):
        theirs, about = read(folder)
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setenv("CDGRAD_CACHE", str(tmp_path / "another"))
    new_process()
    with pytest.warns(UserWarning, match="the 3 images of split validation are not read"):
        ours, same = read(folder)
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert same == about


def test_an_entry_has_the_same_name_whoever_reads(tmp_path, monkeypatch):
    folder = parquet(tmp_path / "pets", train=pictures(7, 0), test=pictures(5, 1))
    with_it = decoding.identity(task(folder))
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert decoding.identity(task(folder)) == with_it


def test_several_files_of_a_split_are_read_in_order(tmp_path, without_datasets):
    folder = parquet(tmp_path / "pets", train=pictures(6, 0), test=pictures(4, 1))
    (tmp_path / "pets/train-00000-of-00001.parquet").rename(tmp_path / "pets/train-00000-of-00002.parquet")
    parquet(tmp_path / "more", train=pictures(5, 2))
    (tmp_path / "more/train-00000-of-00001.parquet").rename(tmp_path / "pets/train-00001-of-00002.parquet")
    without_datasets()
    (pixels, *_), _ = read(folder)
    expected = np.concatenate([pictures(6, 0), pictures(5, 2)]).transpose(0, 3, 1, 2)
    assert np.array_equal(pixels, expected)


@pytest.mark.parametrize("classes", [(), ("cat", "dog")])
def test_labels_without_names_are_classes_too(tmp_path, without_datasets, classes):
    folder = parquet(tmp_path / "pets", classes=classes, train=pictures(4, 0))
    without_datasets()
    (_, labels), about = read(folder)
    assert labels.tolist() == [0, 1, 0, 1]
    assert about.classes == 2


def test_files_that_number_their_classes_otherwise_are_refused(tmp_path, without_datasets):
    folder = parquet(tmp_path / "pets", train=pictures(4, 0))
    parquet(tmp_path / "pets", classes=("dog", "cat"), test=pictures(4, 1))
    without_datasets()
    with pytest.raises(StudyError, match="column label numbers its classes differently in train-00000-of"):
        read(folder)


def test_a_damaged_file_is_named(tmp_path, without_datasets):
    folder = parquet(tmp_path / "pets", train=pictures(4, 0))
    without_datasets()
    (tmp_path / "pets/train-00000-of-00001.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(StudyError, match=r"train-00000-of-00001.parquet cannot be read as Parquet"):
        read(folder)


def test_other_names_still_need_datasets(tmp_path, without_datasets):
    folder = parquet(tmp_path / "pets", train=pictures(4, 0))
    without_datasets()
    (tmp_path / "pets/train-00000-of-00001.parquet").rename(tmp_path / "pets/train.parquet")
    with pytest.raises(StudyError, match="decoding it needs datasets"):
        read(folder)


def test_the_kinds_of_columns_are_those_of_datasets(tmp_path):
    folder = tmp_path / "pets"
    parquet(folder, train=pictures(4, 0))
    theirs = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "arrow"))["train"].features
    kinds = parquet_files.columns_of(folder / "train-00000-of-00001.parquet")
    ours = {name: about["_type"] for name, about in kinds.items()}
    assert ours == {name: type(kind).__name__ for name, kind in theirs.items()}
    assert parquet_files.are_named_by_split(contents(folder))
    assert choice.choose_columns(TASK, ours) == ("img", "label")


@pytest.mark.parametrize(
    ("kinds", "names"),
    [
        ({"left": "Image", "right": "Image", "breed": "Value"}, "task.image and one as task.label"),
        ({"left": "Image", "right": "Image", "label": "Value"}, "task.image"),
        ({"left": "Image", "breed": "Value"}, "task.label"),
    ],
)
def test_all_columns_that_are_unclear_are_asked_for_at_once(kinds, names):
    with pytest.raises(StudyError, match=rf"has the columns {', '.join(kinds)}: name one as {names}$"):
        choice.choose_columns(TASK, kinds)


@pytest.mark.parametrize("names", [5, "ab", [1, 2], {"a": 1}, [["a"], ["b"]]])
def test_names_of_classes_that_are_no_words_are_refused(tmp_path, without_datasets, names):
    folder = parquet(tmp_path / "pets", train=pictures(4, 0))
    path = tmp_path / "pets/train-00000-of-00001.parquet"
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    written = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pq.read_table(path).replace_schema_metadata(written), path)
    without_datasets()
    with pytest.raises(StudyError, match="names of classes that are no list of words"):
        read(folder)


def test_damaged_pages_are_blamed_on_their_file(tmp_path, without_datasets):
    """And not on the cache, which would be told to have no space left."""
    folder = parquet(tmp_path / "pets", train=pictures(40, 0))
    path = tmp_path / "pets/train-00000-of-00001.parquet"
    pq.write_table(pq.read_table(path), path, compression="snappy", use_dictionary=False)
    content, messages = path.read_bytes(), []
    without_datasets()
    for start in range(4, len(content) // 2, len(content) // 20):
        path.write_bytes(content[:start] + b"\xff" * 40 + content[start + 40 :])
        decoding.contents.cache_clear()
        decoding.digest.cache_clear()
        try:
            read(folder)
        except StudyError as error:
            messages.append(str(error))
    assert any("cannot be read as Parquet" in message for message in messages)
    assert not any("cannot store" in message for message in messages)
