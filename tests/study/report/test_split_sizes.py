"""Every report says how many images train, validate and test, and where they came from."""

import dataclasses

import pytest
from parquet_folder import parquet, pictures
from tiny_study import in_this_process

from cdgrad.study import data
from cdgrad.study.data import decoding
from cdgrad.study.report.split_sizes import nothing_learned, repeated_images, split_sizes
from cdgrad.study.run.driver import run_study
from cdgrad.study.spec import Task, parse
from cdgrad.study.statistics.results import Results, read


def test_a_split_that_the_seed_draws(tiny, tmp_path):
    run_study(tiny, tmp_path, 1, in_this_process)
    assert list(split_sizes(read(tmp_path))) == [
        "Images of each run: 48 for training and 32 for validation, and 320 for the test, all drawn by the "
        "seed from one set of images: the data has no test split of its own."
    ]


def test_the_datas_own_split(tiny_text, tmp_path, monkeypatch):
    monkeypatch.setenv("CDGRAD_CACHE", str(tmp_path / "cache"))
    folder = parquet(tmp_path / "set", train=pictures(12, 0), test=pictures(6, 1))
    text = tiny_text.replace('"fake"', f"'{folder}'").replace("train = 48", 'train = "all"')
    text = text.replace("validation = 32", "validation = 4").replace("seeds = 2", "seeds = 1")
    run_study(parse(text.replace("batch = 16", "batch = 4"), "tiny"), tmp_path / "out", 1, in_this_process)
    (sentence,) = split_sizes(read(tmp_path / "out"))
    assert sentence == (
        "Images of each run: 8 for training and 4 for validation, which the seed draws from the split train, "
        "and 6 of the data's own split test for the test."
    )


@pytest.mark.parametrize(("train", "test"), [(100, "all"), ("all", 50), (100, 50)])
def test_the_recorded_sizes_are_those_that_a_run_is_given(train, test):
    task = Task("fake", train, 32, test)
    loaded = data.load(task, seed=3)
    sizes = data.split_sizes(task)
    assert [sizes[k] for k in ("train", "validation", "test")] == [
        len(loaded.train),
        len(loaded.validation),
        len(loaded.test),
    ]


def test_test_images_that_training_draws_from_are_counted(tiny_text, tmp_path, monkeypatch):
    monkeypatch.setenv("CDGRAD_CACHE", str(tmp_path / "cache"))
    train, test = pictures(12, 0), pictures(6, 1)
    both = [*test[:4], *train[3:5]]
    assert data.repeated(Task(str(parquet(tmp_path / "apart", train=train, test=test)), 8, 4)) == 0
    folder = parquet(tmp_path / "set", train=train, test=both)
    text = tiny_text.replace('"fake"', f"'{folder}'").replace("train = 48", "train = 8")
    text = text.replace("validation = 32", "validation = 4").replace("seeds = 2", "seeds = 1")
    run_study(parse(text.replace("batch = 16", "batch = 4"), "tiny"), tmp_path / "out", 1, in_this_process)
    assert list(repeated_images(read(tmp_path / "out"))) == [
        "2 test images are also in the split train, from which the seed draws the training images: the error "
        "is partly that of images which the network may have seen."
    ]


def test_images_that_occur_twice_are_counted_where_the_seed_draws_the_test(tmp_path, monkeypatch):
    monkeypatch.setenv("CDGRAD_CACHE", str(tmp_path / "cache"))
    images = pictures(12, 0)
    folder = parquet(tmp_path / "set", train=[*images, *images[:3], images[0]])
    assert data.repeated(Task(str(folder), 4, 4)) == 7


@pytest.mark.parametrize(("level", "learned"), [(76.0, False), (71.0, False), (69.0, True)])
def test_arms_that_learned_nothing_are_named(tiny, make_run, level, learned):
    """On 320 images, an error of 75 % has a standard error of 2.4 points."""
    sizes = data.split_sizes(tiny.setting("", "sgd").tables()[0])
    assert sizes["constant_error"]["test"] == 75
    runs = [
        dataclasses.replace(make_run(arm, seed, error), environment={"splits": sizes})
        for arm, error in zip(tiny.arms, (level, 50.0), strict=True)
        for seed in (0, 1)
    ]
    first = next(iter(tiny.arms))
    said = [sentence.partition(":")[0] for sentence in nothing_learned(Results.of(tiny, runs))]
    assert said == ([] if learned else [first])


def test_the_error_of_a_constant_prediction_is_of_the_images_that_a_split_is_drawn_from(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("CDGRAD_CACHE", str(tmp_path / "cache"))
    train, test = pictures(12, 0), pictures(6, 1)
    task = Task(str(parquet(tmp_path / "set", train=train, test=test[:4])), 4, 4)
    decoded = decoding.load(task)
    for role, images in (("validation", decoded.train), ("test", decoded.test)):
        labels = images.labels.tolist()
        others = len(labels) - max(map(labels.count, labels))
        assert data.split_sizes(task)["constant_error"][role] == pytest.approx(100 * others / len(labels))
