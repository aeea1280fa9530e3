"""Tasks from a folder or the hub: which splits and columns, exact pixels, one decoding, clear refusals."""

import dataclasses
import logging
import os
import subprocess
import sys
import threading
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from cdgrad.study import StudyError, data, streams
from cdgrad.study.data import cache, choice, decoding, files, images
from cdgrad.study.plan.job import Job
from cdgrad.study.run.execute import execute
from cdgrad.study.spec import Task, parse

pytest.importorskip("datasets", reason="the extra data is not installed")
from parquet_folder import datasets, new_process, parquet, pictures, pillow, png

pytestmark = pytest.mark.usefixtures("cached")


SHARED = Path(__file__).parents[4] / "shared" / "data"


def numbered(folder, train=20, test=10, **options):
    """A folder whose labels number its images, with the training and the test pixels."""
    pixels = {"train": pictures(train, 0)} | ({"test": pictures(test, 1)} if test else {})
    parquet(folder, labels=list(range(train)), classes=None, train=pixels["train"], **options)
    if test:
        parquet(folder, labels=list(range(test)), classes=None, test=pixels["test"], **options)
    return str(folder), pixels


def test_the_arrays_are_the_pixels(tmp_path):
    folder, pixels = numbered(tmp_path / "set")
    decoded = decoding.load(Task(folder, 1, 1))
    assert decoded.classes == 20
    for split, name in ((decoded.train, "train"), (decoded.test, "test")):
        assert split.pixels.dtype == torch.uint8
        assert np.array_equal(split.pixels.numpy().transpose(0, 2, 3, 1), pixels[name])
        assert split.labels.tolist() == list(range(len(pixels[name])))


def test_training_and_validation_come_from_the_training_split_and_the_test_set_is_the_official_one(tmp_path):
    folder, pixels = numbered(tmp_path / "set")
    parts = data.load(Task(folder, 12, 5), seed=0)
    drawn = [*parts.train.labels.tolist(), *parts.validation.labels.tolist()]
    assert (len(parts.train), len(parts.validation), len(set(drawn))) == (12, 5, 17)
    assert sorted(parts.test.labels.tolist()) == list(range(10))
    rows = pixels["train"][parts.train.labels].astype(np.float64)
    mean, std = rows.mean((0, 1, 2)), rows.std((0, 1, 2), ddof=1)
    for part, name in ((parts.train, "train"), (parts.validation, "train"), (parts.test, "test")):
        expected = ((pixels[name][part.labels] - mean) / std).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(part.images().numpy(), expected, atol=1e-5)


def test_the_seed_draws_training_validation_and_a_part_of_the_test_split(tmp_path):
    folder, _ = numbered(tmp_path / "set")
    task = Task(folder, 8, 8, test=4)
    first, again, other = (data.load(task, seed) for seed in (0, 0, 1))
    for part in ("train", "validation", "test"):
        labels = [getattr(parts, part).labels.tolist() for parts in (first, again, other)]
        assert labels[0] == labels[1]
        assert set(labels[0]) != set(labels[2])
    assert len(set(first.test.labels.tolist())) == 4
    drawn = streams.generator(0, streams.TEST).permutation(len(first.test.pixels))
    assert first.test.rows.tolist() == drawn[:4].tolist()


def test_all_training_images_are_those_that_validation_leaves(tmp_path):
    folder, _ = numbered(tmp_path / "set")
    parts = data.load(Task(folder, "all", 5), seed=0)
    assert sorted([*parts.train.labels.tolist(), *parts.validation.labels.tolist()]) == list(range(20))
    assert len(parts.validation) == 5


def test_of_a_single_split_the_seed_draws_all_three_parts(tmp_path):
    folder, _ = numbered(tmp_path / "set", test=0)
    parts = data.load(Task(folder, "all", 5, test=4), seed=0)
    assert [len(p) for p in (parts.train, parts.validation, parts.test)] == [11, 5, 4]
    together = [label for p in (parts.train, parts.validation, parts.test) for label in p.labels.tolist()]
    assert sorted(together) == list(range(20))


@pytest.mark.parametrize(
    ("test", "options", "message"),
    [
        (10, {"train": 15, "validation": 6}, "has 20 images: .* = 21 leaves none; reduce them"),
        (10, {"train": "all", "validation": 20}, "leaves none for training"),
        (10, {"train": 5, "validation": 5, "test": 11}, "has 10 images left to test on, and task.test = 11"),
        (0, {"train": 15, "validation": 5}, "leaves none to test on"),
        (0, {"train": "all", "validation": 5}, "leaves none to test on; .* give task.test a count"),
        (0, {"train": 5, "validation": 5, "test": 11}, "has 10 images left to test on, and task.test = 11"),
    ],
)
def test_too_few_images_are_refused(tmp_path, test, options, message):
    folder, _ = numbered(tmp_path / "set", test=test)
    with pytest.raises(StudyError, match=message):
        data.load(Task(folder, **options), seed=0)


def test_a_folder_of_classes_of_images_is_read(tmp_path):
    for split, classes in (("train", "ab"), ("test", "ab")):
        for number, name in enumerate(classes):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for i in range(3):
                pixels = np.full((4, 4, 3), 50 * number + i, np.uint8)
                pillow.fromarray(pixels).save(tmp_path / "set" / split / name / f"{i}.png")
    decoded = decoding.load(Task(str(tmp_path / "set"), 1, 1))
    assert (len(decoded.train.labels), len(decoded.test.labels), decoded.classes) == (6, 6, 2)
    assert torch.equal(decoded.train.pixels[:, 0, 0, 0] // 50, decoded.train.labels)


def test_a_second_split_called_validation_serves_as_the_test_set(tmp_path):
    folder = parquet(tmp_path / "set", train=pictures(6, 0), validation=pictures(4, 1))
    assert len(data.load(Task(folder, 2, 2), seed=0).test) == 4
    parquet(tmp_path / "set", test=pictures(3, 2))
    new_process()
    with pytest.warns(UserWarning, match="the 4 images of split validation are not read"):
        assert len(data.load(Task(folder, 2, 2), seed=0).test) == 3
    with pytest.warns(UserWarning, match="the 3 images of split test are not read"):
        assert len(data.load(Task(folder, 2, 2, test_split="validation"), seed=0).test) == 4


def test_columns_are_found_or_named(tmp_path):
    folder = parquet(tmp_path / "set", image="photo", label="kind", train=pictures(4, 0))
    assert len(decoding.load(Task(folder, 1, 1)).train.labels) == 4
    assert len(decoding.load(Task(folder, 1, 1, image="photo", label="kind")).train.labels) == 4
    plain = parquet(tmp_path / "plain", label="kind", classes=None, train=pictures(4, 0))
    with pytest.raises(StudyError, match=r"has the columns img, kind: name one as task.label"):
        decoding.load(Task(plain, 1, 1))
    with pytest.raises(StudyError, match=r"task.image: .* has the columns img, kind; got 'image'"):
        decoding.load(Task(plain, 1, 1, image="image", label="kind"))
    assert decoding.load(Task(plain, 1, 1, label="kind")).classes == 2


def test_words_are_classes_in_sorted_order(tmp_path):
    folder = parquet(tmp_path / "set", classes=None, labels=["yes", "no", "yes"], train=pictures(3, 0))
    decoded = decoding.load(Task(folder, 1, 1))
    assert (decoded.train.labels.tolist(), decoded.classes) == ([1, 0, 1], 2)


def test_gray_images_have_one_channel_unless_some_are_in_color(tmp_path):
    gray, color = pictures(3, 0, (5, 5)), pictures(3, 1, (5, 5, 3))
    folder = parquet(tmp_path / "gray", train=gray)
    assert np.array_equal(decoding.load(Task(folder, 1, 1)).train.pixels.squeeze(1).numpy(), gray)
    mixed = decoding.load(Task(parquet(tmp_path / "mixed", train=[*gray, *color]), 1, 1)).train.pixels.numpy()
    assert np.array_equal(mixed[:3], np.repeat(gray[:, None], 3, 1))
    assert np.array_equal(mixed[3:], color.transpose(0, 3, 1, 2))


def test_images_of_several_sizes_need_one_and_are_cropped_at_their_centre(tmp_path):
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12] = 200  # the centre square
    folder = parquet(tmp_path / "set", train=[wide, np.full((4, 4, 3), 100, np.uint8)])
    with pytest.raises(StudyError, match=r"images of 4 x 4 and of 16 x 8 pixels; set task.size to one side"):
        decoding.load(Task(folder, 1, 1))
    images = decoding.load(Task(folder, 1, 1, size=4)).train.pixels
    assert images.shape == (2, 3, 4, 4)
    assert (images[0].int() - 200).abs().max() < 15  # of the black beside the square, little at its edge
    assert (images[1] == 100).all()


def test_images_of_sixteen_bits_are_refused(tmp_path):
    deep = np.full((4, 4), 1000, np.uint16)
    with pytest.raises(StudyError, match="images of mode I;16, and only 8 bits per channel are supported"):
        decoding.load(Task(parquet(tmp_path / "set", train=[deep, deep]), 1, 1))


def test_a_damaged_image_is_not_blamed_on_the_cache(tmp_path):
    whole = png(pictures(1, 0, (64, 64, 3))[0])["bytes"]
    for content in (b"no image", whole[: len(whole) // 2]):
        for kind, written in (("cat", whole), ("dog", content)):
            (tmp_path / "set" / kind).mkdir(parents=True, exist_ok=True)
            (tmp_path / "set" / kind / "one.png").write_bytes(written)
        new_process()
        with pytest.raises(StudyError, match=r"contains an unreadable image: dog/one.png: .*; replace or"):
            decoding.load(Task(str(tmp_path / "set"), 1, 1))


def test_a_folder_that_cannot_be_read_is_a_failed_run(tiny, tmp_path, monkeypatch):
    folder = parquet(tmp_path / "set", train=pictures(4, 0))
    setting = dataclasses.replace(tiny.setting("", "sgd"), task=Task(folder, 1, 1))

    def forbidden(source):
        raise PermissionError(13, "Permission denied", str(source))

    monkeypatch.setattr(decoding, "digest", forbidden)
    run = execute(Job("", "sgd", None, 0, setting), lambda epoch, measured: None)
    assert run.status == "failed"
    assert run.message == (
        f"task.data: {tmp_path / 'set'} cannot be read: Permission denied; change its permissions, move it "
        "away, or name another folder"
    )


def test_a_split_without_labels_is_refused(tmp_path):
    parquet(tmp_path / "set", train=pictures(4, 0))
    folder = parquet(tmp_path / "set", test=pictures(2, 1), labels=[-1, -1])
    with pytest.raises(StudyError, match=r"label of the test images holds -1, .* as task.test_split"):
        decoding.load(Task(folder, 1, 1))


@pytest.mark.parametrize(
    ("splits", "options", "message"),
    [
        (("train", "extra"), {}, "has the splits train, extra: name one as task.test_split"),
        (("first", "second"), {}, "name one as task.train_split"),
        (("train", "test"), {"test_split": "tst"}, "task.test_split: .* got 'tst'"),
        (("train", "test"), {"test_split": "train"}, "must differ from the training split"),
    ],
)
def test_splits_that_are_not_clear_are_asked_for(splits, options, message):
    with pytest.raises(StudyError, match=message):
        choice.choose_splits(Task("set", 1, 1, **options), splits)


def test_the_cache_serves_without_datasets_and_pillow(tmp_path, monkeypatch, cached):
    folder, _ = numbered(tmp_path / "set")
    task = Task(folder, 8, 4)
    first = data.load(task, seed=0)
    (entry,) = cached.iterdir()
    assert sorted(p.name for p in entry.iterdir()) == [
        "about.json",
        "test-images.npy",
        "test-labels.npy",
        "train-images.npy",
        "train-labels.npy",
    ]
    for module in ("datasets", "PIL", "PIL.Image"):
        monkeypatch.setitem(sys.modules, module, None)
    assert torch.equal(data.load(task, seed=0).train.images(), first.train.images())
    with pytest.raises(
        StudyError, match=r"is not in the cache .*: in a clone of cdgrad, run pip install '\.\[data\]'"
    ):
        data.load(Task(folder, 8, 4, size=4), seed=0)


def test_a_changed_folder_is_decoded_anew(tmp_path):
    folder = parquet(tmp_path / "set", train=pictures(4, 0))
    before = decoding.load(Task(folder, 1, 1)).train.pixels
    parquet(tmp_path / "set", train=pictures(4, 9))
    new_process()
    after = decoding.load(Task(folder, 1, 1)).train.pixels
    assert not torch.equal(before, after)


def test_a_record_says_which_images_it_had(tmp_path):
    folder = parquet(tmp_path / "set", train=pictures(40, 0))
    text = f"""
    baseline = "sgd"
    seeds = 1
    task = {{ data = "{folder}", train = 20, validation = 10 }}
    model = {{ name = "small-cnn", width = 2 }}
    schedule = {{ epochs = 1, batch = 10 }}
    optimizer = {{ name = "torch.optim:SGD", lr = 0.1 }}
    arms.sgd = {{}}
    """
    job = Job("", "sgd", None, 0, parse(text, "study").setting("", "sgd"))
    identities = []
    for seed in (0, 9):
        parquet(tmp_path / "set", train=pictures(40, seed))
        new_process()
        run = execute(job, lambda epoch, measured: None)
        assert run.status == "ok"
        identities.append(run.environment["data"])
    assert identities[0] != identities[1]
    assert all(name.startswith("set-") for name in identities)


def test_a_copy_of_the_folder_is_recognized_by_its_contents(tmp_path):
    numbered(tmp_path / "set")
    first = files.digest(tmp_path / "set")
    (tmp_path / "elsewhere").mkdir()
    for file in (tmp_path / "set").iterdir():
        (tmp_path / "elsewhere" / file.name).write_bytes(file.read_bytes())
    assert files.digest(tmp_path / "elsewhere") == first


def test_a_large_folder_is_recognized_by_the_times_of_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "READ_WHOLE", 3)
    (tmp_path / "set").mkdir()
    file = tmp_path / "set" / "file"
    file.write_bytes(b"four")
    os.utime(file, ns=(1, 1))
    first = files.digest(tmp_path / "set")
    new_process()
    os.utime(file, ns=(2, 2))
    assert files.digest(tmp_path / "set") != first


def test_two_processes_may_build_the_same_entry(cached):
    both_build = threading.Barrier(2, timeout=30)

    def build(entry):
        both_build.wait()
        for part in ("train", "test"):
            np.save(cache.images_file(entry, part), np.zeros((2, 1, 2, 2), np.uint8))
            np.save(cache.labels_file(entry, part), np.arange(2))
        cache.describe(entry, cache.Description({"train": "train", "test": "test"}, 2))

    loaded = []
    threads = [threading.Thread(target=lambda: loaded.append(cache.load("set", build))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 2
    assert torch.equal(loaded[0].train.pixels, loaded[1].train.pixels)
    assert len(list(cached.iterdir())) == 1


def test_a_build_that_fails_leaves_nothing(cached):
    def build(entry):
        (entry / "half").write_text("written")
        raise StudyError("no")

    with pytest.raises(StudyError, match="no"):
        cache.load("set", build)
    assert list(cached.iterdir()) == []


def test_a_full_or_forbidden_cache_is_explained(tmp_path, monkeypatch):
    def build(entry):
        raise OSError(28, "No space left on device")

    with pytest.raises(
        StudyError, match=r"set in the cache .*: No space left on device; free some space there"
    ):
        cache.load("set", build)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CDGRAD_CACHE", str(tmp_path / "file"))
    with pytest.raises(StudyError, match=r"set CDGRAD_CACHE to another folder"):
        cache.load("set", build)


def test_a_damaged_entry_is_named(tmp_path, cached):
    folder, _ = numbered(tmp_path / "set")
    decoding.load(Task(folder, 1, 1))
    (entry,) = cached.iterdir()
    (entry / "train-images.npy").write_bytes(b"cut")
    with pytest.raises(StudyError, match=f"{entry} is damaged .*; delete it"):
        decoding.load(Task(folder, 1, 1))


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder() == tmp_path / "cache"
    monkeypatch.delenv("CDGRAD_CACHE")
    assert cache.folder() == tmp_path / "xdg" / "cdgrad"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.folder() == tmp_path / ".cache" / "cdgrad"


@pytest.mark.parametrize("name", ["./nowhere", "~/nowhere", "a/b/c"])
def test_a_missing_folder_is_named_with_the_place(name):
    with pytest.raises(StudyError, match=f"there is no folder {name} .looked for /"):
        data.load(Task(name, 1, 1), seed=0)


def test_an_unknown_name_says_where_it_was_looked_for(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(StudyError, match="'mnost' cannot be loaded from the Hugging Face hub: ") as caught:
        data.load(Task("hub:mnost", 1, 1), seed=0)
    assert "check the name and the network, or name a local folder" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_on_the_hub_is_asked_for_once(monkeypatch, tmp_path, cached):
    folder, pixels = numbered(tmp_path / "set")
    local, asked = datasets.load_dataset, []

    def load_dataset(name):
        asked.append(name)
        return local(folder, cache_dir=str(tmp_path / "arrow"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for _ in range(2):
        assert np.array_equal(
            decoding.load(Task("hub:owner/set", 1, 1)).train.pixels.numpy().transpose(0, 2, 3, 1),
            pixels["train"],
        )
    assert asked == ["owner/set"]
    assert [entry.name.rpartition("-")[0] for entry in cached.iterdir()] == ["owner--set"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        (
            "digit",
            "; did you mean 'digits'?; a data set of that name on the Hugging Face hub is \"hub:digit\"",
        ),
        ("owner/set", '; a data set of that name on the Hugging Face hub is "hub:owner/set"'),
        (
            "phtos",
            "; did you mean 'photos'?; a data set of that name on the Hugging Face hub is \"hub:phtos\"",
        ),
        ("./phtos", "; did you mean 'photos'?"),
        ("photos/trian", "; did you mean 'photos/train'?; a data set of that name"),
        ("cifar10", '; a data set of that name on the Hugging Face hub is "hub:cifar10"'),
    ],
)
def test_nothing_is_asked_of_the_hub_unless_the_user_says_so(monkeypatch, tmp_path, name, meant):
    (tmp_path / "photos" / "train").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(StudyError) as caught:
        data.load(Task(name, 1, 1), seed=0)
    assert str(caught.value).startswith(
        f"task.data: there is no folder {name} (looked for {tmp_path / name}){meant}"
    )


def test_a_file_is_told_from_a_missing_folder(tmp_path):
    (tmp_path / "arrays.npz").touch()
    with pytest.raises(StudyError, match=r"arrays.npz is a file; name the folder that"):
        data.load(Task(str(tmp_path / "arrays.npz"), 1, 1), seed=0)


def test_what_datasets_logs_does_not_reach_the_studys_display(monkeypatch, tmp_path, cached):
    folder, _ = numbered(tmp_path / "set")
    local, before, shown = datasets.load_dataset, datasets.logging.get_verbosity(), []

    def load_dataset(name):
        shown.append(datasets.logging.get_logger("datasets.load").isEnabledFor(logging.WARNING))
        return local(folder, cache_dir=str(tmp_path / "arrow"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    decoding.load(Task("hub:owner/set", 1, 1))
    assert shown == [False]
    assert datasets.logging.get_verbosity() == before


def test_a_folder_that_is_no_data_set_is_explained(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "notes.md").write_text("nothing")
    with pytest.raises(StudyError, match=r"is not a folder that datasets.load_dataset reads"):
        decoding.load(Task(str(tmp_path / "set"), 1, 1))


def test_a_folder_is_read_where_the_hub_is_switched_off(tmp_path):
    folder, _ = numbered(tmp_path / "set")
    code = (
        "from cdgrad.study import data\nfrom cdgrad.study.spec import Task\n"
        f"print(data.load(Task({folder!r}, 8, 4), 0).image_shape)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("(3, 6, 8)\n", "", 0)


@pytest.mark.parametrize(
    ("name", "counts", "classes", "image_shape"),
    [
        ("cifar10-jpeg", (50_000, 10_000), 10, (3, 32, 32)),
        ("tiny-imagenet-50", (25_000, 2_500), 50, (3, 64, 64)),
    ],
)
def test_the_shared_folders_load_with_their_official_splits(
    name, counts, classes, image_shape, monkeypatch, cached
):
    if not (SHARED / name).is_dir():
        pytest.skip(f"{name} is not in ../shared/data")
    every = images._each  # of 60,000 images each is read as the others are: one in 100 is looked at
    monkeypatch.setattr(
        images, "_each", lambda task, files, use: every(task, lambda: islice(files(), None, None, 100), use)
    )
    task = Task(str(SHARED / name), 1000, 500)
    decoded = decoding.load(task)
    assert (len(decoded.train.labels), len(decoded.test.labels)) == counts
    for split in (decoded.train, decoded.test):
        assert split.labels.bincount().tolist() == [len(split.labels) // classes] * classes
    monkeypatch.setitem(sys.modules, "datasets", None)
    parts = data.load(task, seed=0)
    assert (parts.image_shape, parts.classes) == (image_shape, classes)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (1000, 500, counts[1])
    assert len(list(cached.iterdir())) == 1


def test_a_column_of_paths_is_one_of_images_and_a_column_of_numbers_is_not(tmp_path):
    folder = tmp_path / "table"
    folder.mkdir()
    rows = ["file,label"]
    for k in range(4):
        file = tmp_path / f"{k}.png"
        pillow.fromarray(pictures(1, k)[0]).save(file)
        rows.append(f"{file},{k % 2}")
    (folder / "train.csv").write_text("\n".join(rows))
    with pytest.warns(UserWarning, match="the 4 images outside the folder are not part of its hash"):
        assert len(data.load(Task(str(folder), 2, 1, image="file"), 0).train) == 2
    with pytest.raises(
        StudyError, match="column label holds values of type int64, neither images nor the paths"
    ):
        data.load(Task(str(folder), 2, 1, image="label", label="label"), 0)
