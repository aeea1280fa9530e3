"""Folders as people have them: cameras, damaged files, desktops, splits by name; nothing dropped unsaid."""

import errno
import hashlib
import io
import os
import struct
import unicodedata
import warnings
import zlib
from dataclasses import replace
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import torch

from cdgrad.study import StudyError, data
from cdgrad.study.data import cache, decoding, files
from cdgrad.study.data.images import common_shape
from cdgrad.study.spec import Task

pytest.importorskip("datasets", reason="the extra data is not installed")
from parquet_folder import datasets, new_process, pillow, png

pytestmark = pytest.mark.usefixtures("cached")


def draw(seed, shape=(8, 8, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def images(folder, names):
    """Images of the given names in a folder."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        pillow.fromarray(draw(seed)).save(Path(folder) / f"{name}.png")


def table(path, labels, names=None, rows=None):
    """A Parquet file of images with labels."""
    rows = rows if rows is not None else [png(draw(i)) for i in range(len(labels))]
    dataset = datasets.Dataset.from_dict({"image": rows, "label": labels}).cast_column(
        "image", datasets.Image()
    )
    if names:
        dataset = dataset.cast_column("label", datasets.ClassLabel(names=names))
    Path(path).parent.mkdir(exist_ok=True)
    dataset.to_parquet(str(path))


def load(folder, **options):
    return decoding.load(Task(str(folder), 1, 1, **options))


def test_images_that_lie_in_no_folder_of_a_class_are_named_so():
    images("flat", ["a", "b", "c"])
    with pytest.raises(StudyError, match="flat has images without classes; put each image into a folder"):
        load("flat")


# Cameras.


def test_an_image_is_turned_as_its_exif_orientation_says():
    for kind in ("cat", "dog"):
        Path("set", kind).mkdir(parents=True)
        for orientation in range(1, 9):
            image = pillow.fromarray(draw(orientation, (6, 8, 3) if orientation < 5 else (8, 6, 3)))
            exif = image.getexif()
            exif[0x0112] = orientation
            image.save(f"set/{kind}/{orientation}.png", exif=exif)
    expected = [np.asarray(i) for i in datasets.load_dataset("set", split="train", cache_dir="hf")["image"]]
    decoded = load("set")
    assert np.array_equal(decoded.train.pixels.numpy().transpose(0, 2, 3, 1), expected)
    assert decoded.description.turned == 14
    assert decoding.identity(Task("set", 1, 1)).endswith("-upright")


def test_the_name_of_images_that_nothing_turns_is_that_of_the_first_records():
    table("set/train.parquet", [0, 1])
    with Path("set/train.parquet").open("rb") as file:
        assert file.read(4) == b"PAR1"
    source = files.digest(Path("set").resolve())
    keys = {"source": source, "train_split": "", "test_split": "", "image": "", "label": "", "size": 0}
    assert decoding.identity(Task("set", 1, 1)) == decoding.cache.entry_name("set", keys, layout=1)


# Files that cannot be read.


def with_text_chunk(image):
    text = b"zTXtComment\0\0" + zlib.compress(b"x" * 2**21)
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    return image[:33] + chunk + image[33:]


def enormous():
    buffer = io.BytesIO()
    pillow.new("1", (20000, 10000)).save(buffer, "PNG")
    return buffer.getvalue()


BAD = {
    "truncated": lambda: png(draw(0, (64, 64, 3)))["bytes"][:6000],
    "empty": lambda: b"",
    "no image": lambda: b"<html>404</html>",
    "large text": lambda: with_text_chunk(png(draw(0))["bytes"]),
    "enormous": enormous,
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_cannot_be_read_is_named(kind):
    for name in ("cat", "dog"):
        images(f"set/{name}", range(4))
    Path("set/dog/2.png").write_bytes(BAD[kind]())
    with pytest.raises(StudyError, match=r"unreadable image: dog/2.png: .+; replace or remove it$") as caught:
        load("set", size=8)
    assert "\n" not in str(caught.value)


def test_all_files_that_cannot_be_read_are_counted():
    for name in ("cat", "dog"):
        images(f"set/{name}", range(4))
        Path(f"set/{name}/9.png").write_bytes(b"")
    with pytest.raises(StudyError, match=r"contains 2 unreadable images: cat/9.png, dog/9.png; the first: "):
        load("set")


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tif"])
def test_only_the_first_frame_of_several_is_read_and_that_is_said(kind):
    for name in ("cat", "dog"):
        images(f"set/{name}", range(4))
    first, second = (pillow.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (200, 10))
    first.save(f"set/dog/moving.{kind}", save_all=True, append_images=[second])
    with pytest.warns(UserWarning, match=r"only the first frame of 1 images is read \(dog/moving"):
        decoded = load("set")
    assert (decoded.train.pixels[-1].float().mean() - 200).abs() < 3


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
def test_a_pipe_that_a_table_names_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(StudyError, match="row 0 of split train: it is not a regular file"):
        common_shape(Task("x", 2, 1), [lambda: iter([("row 0 of split train", str(tmp_path / "pipe.png"))])])


@pytest.mark.parametrize(
    ("bad", "reason"),
    [(None, "there is no image"), ({"bytes": b"GIF", "path": None}, "Pillow does not recognize it")],
)
def test_a_row_that_cannot_be_read_is_named(bad, reason):
    good = png(draw(0))
    table("set/train.parquet", [0, 1] * 10, rows=[good] * 17 + [bad] + [good] * 2)
    with pytest.raises(StudyError, match=f"unreadable image: row 17 of split train: .*{reason}"):
        load("set")


# What is no data.


def test_what_desktops_and_tools_leave_in_a_folder_changes_nothing():
    for name in ("cat", "dog"):
        images(f"set/{name}", range(3))
    before = decoding.identity(Task("set", 1, 1))
    for name in (".DS_Store", "cat/.DS_Store", "cat/Thumbs.db", "dog/desktop.ini", "cat/._0.png", "Icon\r"):
        Path("set", name).write_bytes(b"\0")
    images("set/.thumbnails", range(2))
    images("set/__MACOSX/cat", range(2))
    new_process()
    assert decoding.identity(Task("set", 1, 1)) == before
    assert len(load("set").train.labels) == 6


@pytest.mark.parametrize("out", ["runs/s", "."])
def test_the_figures_of_a_study_beside_its_images_are_no_images(out):
    for name in ("cat", "dog"):
        images(name, range(3))
    before = decoding.identity(Task(".", 1, 1))
    Path(out).mkdir(parents=True, exist_ok=True)
    Path(out, "study.sqlite").write_bytes(b"")
    Path(out, "runs.csv").write_text("arm\n")
    images(out, ["differences", "epochs"])
    new_process()
    assert decoding.identity(Task(".", 1, 1)) == before
    assert len(load(".").train.labels) == 6


def test_the_records_of_a_study_beside_tables_are_no_rows():
    table("train.parquet", [0, 1, 0])
    Path("runs/s").mkdir(parents=True)
    Path("runs/s/study.sqlite").write_bytes(b"")
    table("runs/s/train-runs.parquet", [5])
    assert load(".").train.labels.tolist() == [0, 1, 0]


# Splits and classes.


def test_a_file_name_decides_nothing():
    for name in ("cat", "dog"):
        images(f"set/{name}", [*range(5), "lab test 1", "test", "val_3"])
    decoded = load("set")
    assert (len(decoded.train.labels), decoded.test, dict(decoded.description.titles)) == (
        16,
        None,
        {"train": "train"},
    )


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Training", "Testing"),
        ("seg_train", "seg_test"),
        ("train", "val"),
        ("TRAIN", "dev-1"),
    ],
)
def test_folders_named_like_splits_are_splits(train, test):
    for name in ("cat", "dog"):
        images(f"set/{train}/{name}", range(4))
        images(f"set/{test}/{name}", range(3))
    options = {"test_split": "dev-1"} if test == "dev-1" else {}
    decoded = load("set", **options)
    assert (len(decoded.train.labels), len(decoded.test.labels), decoded.classes) == (8, 6, 2)


def test_a_class_may_be_called_like_a_split():
    for name in ("bus", "car", "train"):
        images(f"set/{name}", range(4))
    decoded = load("set")
    assert (decoded.train.labels.bincount().tolist(), decoded.test) == ([4, 4, 4], None)


def test_a_linked_folder_is_a_folder(tmp_path):
    images("elsewhere/fox", range(4))
    images("set/cat", range(4))
    os.symlink(tmp_path / "elsewhere" / "fox", "set/fox")
    os.symlink(tmp_path / "set", "set/cat/around")  # no end of it
    assert load("set").train.labels.tolist() == [0] * 4 + [1] * 4
    images("elsewhere/fox", range(5))
    before = decoding.identity(Task("set", 1, 1))
    new_process()
    assert decoding.identity(Task("set", 1, 1)) != before


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    images("set/cat", range(2))
    os.symlink(tmp_path / "gone.png", "set/cat/7.png")
    with pytest.raises(StudyError, match=r"cat/7.png is a link that leads nowhere; repair or remove it"):
        load("set")


def test_an_image_outside_the_class_folders_is_named():
    for name in ("cat", "dog"):
        images(f"set/{name}", range(4))
    images("set", ["cover"])
    with pytest.raises(StudyError, match=r"set: cover.png does not lie in a class folder as cat/0.png does"):
        load("set")


def test_splits_without_class_folders_are_explained():
    for name in ("train", "test"):
        images(f"set/{name}", range(4))
    with pytest.raises(
        StudyError, match="has the folders test, train, and their images are in no folders of"
    ):
        load("set")


def test_a_folder_beside_the_splits_must_be_named_or_moved():
    for split in ("train", "test", "extra"):
        for name in ("cat", "dog"):
            images(f"set/{split}/{name}", range(2))
    with pytest.raises(StudyError, match=r"folders extra, test, train: .* or move extra elsewhere"):
        load("set")
    with pytest.warns(UserWarning, match="set: the 4 images of split extra are not read"):
        decoded = load("set", train_split="train", test_split="test")
    assert (len(decoded.train.labels), len(decoded.test.labels)) == (4, 4)


def test_two_folders_for_one_split_are_not_pooled():
    for split in ("train", "val", "valid"):
        images(f"set/{split}/cat", range(2))
    with pytest.raises(StudyError, match=r"several splits for validation, the folders val, valid"):
        load("set")


def test_what_is_not_read_is_said_once():
    for name in ("cat", "dog"):
        for split in ("train", "test", "val"):
            images(f"set/{split}/{name}", range(2))
    Path("set/train/cat/notes.txt").write_text("sharp")
    Path("set/train/dog/IMG_1.HEIC").write_bytes(b"")
    Path("set/README.md").write_text("# Pets")
    Path("set/labels.csv").write_text("a,b")
    with pytest.warns(UserWarning, match="the 4 images of split validation are not read; 3 files") as caught:
        load("set")
    assert "(labels.csv, train/cat/notes.txt, train/dog/IMG_1.HEIC)" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load("set")


def test_tables_that_belong_to_no_split_are_named():
    table("set/train.parquet", [0, 1])
    table("set/test.parquet", [0, 1])
    table("set/lab.parquet", [0, 1])
    with pytest.warns(UserWarning, match=r"1 files are not read: no split has their names \(lab.parquet\)"):
        load("set")


def test_tables_of_several_folders_that_are_read_as_one_split_are_named():
    for folder in ("a", "b"):
        Path("set", folder).mkdir(parents=True)
        table(f"set/{folder}/rows.parquet", [0, 1])
    with pytest.warns(UserWarning, match=r"set: split train is read from the tables of 2 folders \(a, b\)"):
        assert len(load("set").train.labels) == 4


def test_images_that_a_table_names_outside_the_folder_are_named(tmp_path):
    images("elsewhere", range(2))
    rows = [{"bytes": None, "path": str(tmp_path / "elsewhere" / f"{i}.png")} for i in range(2)]
    table("set/train.parquet", [0, 1], rows=rows)
    with pytest.warns(UserWarning, match=r"the 2 images outside the folder are not part of its hash"):
        decoded = load("set")
    assert torch.equal(decoded.train.pixels[1], torch.tensor(draw(1)).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("folders", "classes", "named"),
    [
        (("2019", "2020"), ("cat", "dog"), "2019, 2020"),
        (("pets", "wild"), ("cat", "dog"), "pets, wild"),
        (("all/2019", "all/2020"), ("cat", "dog"), "all/2019, all/2020"),
        (("train/2019", "train/2020", "test/2020"), ("cat", "dog"), "train/2019, train/2020"),
        (("site1/train", "site2/train", "site1/test"), ("cat", "dog"), "site1/train, site2/train"),
    ],
)
def test_classes_in_several_folders_that_are_no_splits_are_not_pooled(folders, classes, named):
    for folder in folders:
        for name in classes:
            images(f"set/{folder}/{name}", range(2))
    with pytest.raises(
        StudyError, match=rf"folders of classes \(cat, dog\) in {named}, which are no"
    ) as caught:
        load("set")
    assert "expected are CLASS/IMAGE or SPLIT/CLASS/IMAGE: move" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_folder_around_the_classes_of_a_split_is_none():
    for name in ("cat", "dog"):
        images(f"set/archive/train/train_images/{name}", range(2))
        images(f"set/archive/test/test_images/{name}", range(1))
    decoded = load("set")
    assert (decoded.train.labels.tolist(), decoded.test.labels.tolist()) == ([0, 0, 1, 1], [0, 1])


def test_folders_of_other_names_are_splits_where_the_specification_says_so():
    for folder, count in (("2019", 3), ("2020", 2)):
        for name in ("cat", "dog"):
            images(f"set/{folder}/{name}", range(count))
    decoded = load("set", train_split="2019", test_split="2020")
    assert (len(decoded.train.labels), len(decoded.test.labels)) == (6, 4)


def test_images_of_one_class_are_refused():
    images("set/train/images", range(3))
    images("set/test/images", range(3))
    with pytest.raises(
        StudyError, match="column folder of the training images holds one class, 'images', and"
    ):
        load("set")


@pytest.mark.parametrize("name", ["__background__", "__none"])
def test_a_class_whose_name_begins_with_underscores_is_read(name):
    for each in (name, "cat"):
        images(f"set/{each}", range(3))
    assert len(load("set").train.labels) == 6


# Names.


def test_accents_are_one_class_however_they_are_written():
    for split, form in (("train", "NFC"), ("test", "NFD")):
        for name in ("café", "zoo"):
            images(f"set/{split}/{unicodedata.normalize(form, name)}", range(2))
    decoded = load("set")
    assert (decoded.train.labels.tolist(), decoded.test.labels.tolist()) == ([0, 0, 1, 1], [0, 0, 1, 1])


def test_names_that_are_no_utf_8_are_read_and_shown():
    latin = os.fsdecode("caf\xe9".encode("latin-1"))
    images(f"set/{latin}", range(2))
    images("set/zoo", range(2))
    assert load("set").train.labels.tolist() == [0, 0, 1, 1]
    Path("set", latin, "9.png").write_bytes(b"")
    new_process()
    with pytest.raises(StudyError, match=r"unreadable image: caf.*9\.png") as caught:
        load("set")
    str(caught.value).encode()


# Labels.


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([0, 1, None, 1], "no label"),
        (["a", "b", None, "b"], "no label"),
        ([0.0, 1.0, float("nan"), 1.0], "no label"),
        ([0.0, 1.0, 0.37, 1.0], "0.37, and a class is an integer or a word"),
        ([[0], [1], [0], [1]], "a list, and a class is an integer or a word"),
        ([{"x": 0}, {"x": 1}, {"x": 0}, {"x": 1}], "a dict, and a class"),
    ],
)
def test_labels_that_are_no_classes_are_named_by_split_and_row(labels, reason):
    table("set/train.parquet", labels)
    row = 0 if isinstance(labels[0], list | dict) else 2
    with pytest.raises(StudyError, match=rf"column label of the train images holds {reason}.* \(row {row}, "):
        load("set")


def test_numbers_with_gaps_are_classes_in_order():
    table("set/train.parquet", [7.0, 0.0, 3.0, 7.0])
    decoded = load("set")
    assert (decoded.train.labels.tolist(), decoded.classes) == ([2, 0, 1, 2], 3)


@pytest.mark.parametrize("other", [["dog", "cat"], ["cat", "dog", "fox"]])
def test_splits_that_number_their_classes_differently_are_refused(other):
    table("set/train.parquet", [0, 1], ["cat", "dog"])
    table("set/test.parquet", [0, 1], other)
    with pytest.raises(
        StudyError, match=r"differently in (train|test).parquet \(.*\) and (train|test).parquet"
    ):
        load("set")


def test_a_class_that_training_images_lack_is_named():
    images("set/train/cat", range(2))
    images("set/train/dog", range(2))
    images("set/test/fox", range(2))
    with pytest.raises(StudyError, match="of the test images holds 'fox', which is no class of the training"):
        load("set")


def test_a_split_without_images_is_named():
    table("set/train.parquet", [0, 1])
    none = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict({"image": [], "label": []}, none).to_parquet("set/test.parquet")
    with pytest.raises(StudyError, match='"test" corresponds to no data'):
        load("set")


# Paths.


@pytest.mark.parametrize("name", ["photos/cats", "photos/", "spec.toml", "set/train/cat"])
def test_a_mistyped_folder_is_not_looked_for_on_the_hub(name):
    Path("photos").mkdir()
    Path("spec.toml").write_text("")
    Path(name.rstrip("/")).is_dir() and Path(name.rstrip("/")).rmdir()
    missing = f"{name} is a file; name the folder" if name == "spec.toml" else f"there is no folder {name}"
    with pytest.raises(StudyError, match=missing):
        data.load(Task(name, 1, 1), seed=0)


def test_a_folder_has_one_identity_on_every_system(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x.png").write_bytes(b"1")
    posix = files.digest.__wrapped__(tmp_path)
    listing = replace(files.contents(tmp_path), data=(PureWindowsPath("a/b/x.png"),))
    monkeypatch.setattr(files, "contents", lambda _: listing)
    assert files.digest.__wrapped__(tmp_path) == posix
    # What the first records have: of the name in bytes, the size and the hash of the content.
    content = b"a/b/x.png\x001\x00" + hashlib.sha256(b"1").digest()
    assert posix == hashlib.sha256(content).hexdigest()


def test_a_disk_without_space_for_the_arrays_is_an_error_and_no_killed_process(tmp_path, monkeypatch):
    """The file of a map has holes, and the first write into one would be SIGBUS."""
    asked = []

    def full(descriptor, start, size):
        asked.append(size)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match="No space left"):
        cache.new_images(tmp_path / "images.npy", (10, 3, 8, 8))
    assert asked == [(tmp_path / "images.npy").stat().st_size]
    assert asked[0] > 10 * 3 * 8 * 8


@pytest.mark.parametrize(("color", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_color_images_of_sixteen_bits_are_refused_as_gray_ones_are(color, channels):
    """Pillow opens them as images of eight bits, whose lower ones would be lost unsaid."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 2, 2, 16, color, 0, 0, 0)
    rows = zlib.compress(2 * (b"\0" + bytes(4 * channels)))
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    with pytest.raises(StudyError, match=r"images of mode (RGB|LA|RGBA);16B, and only 8 bits per channel"):
        common_shape(Task("deep", 1, 1), [lambda: iter([("x.png", io.BytesIO(file))])])


def test_a_home_of_nobody_is_a_missing_folder():
    with pytest.raises(StudyError, match="there is no folder ~nobody-of-that-name/images"):
        decoding.load(Task("~nobody-of-that-name/images", 1, 1))
