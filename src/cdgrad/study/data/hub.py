"""Image classification sets by the package ``datasets``: from a local folder, or by name from the hub.

A local folder never asks the network. What comes out is arrays in the cache; only building them needs
``datasets`` and Pillow.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from cdgrad.study import StudyError
from cdgrad.study.data import cache
from cdgrad.study.spec import DATA, Task

_TEST_SPLITS = ("test", "validation", "valid", "val")
_LABELS = ("label", "labels", "fine_label")  # CIFAR-100 has a coarse_label, too
_GRAY = {"1", "L"}
_EIGHT_BIT = {*_GRAY, "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}


def load(task: Task) -> cache.Decoded:
    """The splits of ``task.data`` from the cache, or decoded into it.

    Raises:
        StudyError: no such folder or name, no network, no ``datasets``, or contents that do not fit;
            the message says what was looked for.
    """
    folder = _folder(task)
    if folder is None and _is_path(task.data):
        looked_for = Path(task.data).expanduser().absolute()
        raise StudyError(f"task.data: there is no folder {task.data} (looked for {looked_for})")
    return cache.load(identity(task), lambda entry: _decode(task, folder, entry))


def identity(task: Task) -> str:
    """The name of the cache entry: it changes with a folder's contents, and with all that picks from them."""
    folder = _folder(task)
    decides = {
        "source": cache.digest(folder) if folder else task.data,
        **{key: getattr(task, key) for key in ("train_split", "test_split", "image", "label", "size")},
    }
    return cache.entry_name(folder.name if folder else task.data.replace("/", "--"), decides)


def _folder(task: Task) -> Path | None:
    """The local folder that is meant, or None for a name on the hub."""
    folder = Path(task.data).expanduser()
    return folder.resolve() if task.data and folder.is_dir() else None


def _is_path(data: str) -> bool:
    """Whether `data` cannot be a name on the hub, which is ``name`` or ``owner/name``."""
    return data.startswith((".", "~", os.sep)) or data.count("/") > 1 or "\\" in data


def _decode(task: Task, folder: Path | None, entry: Path) -> None:
    """Write the arrays of a task into the folder of its cache entry."""
    library = _import("datasets", task)
    _import("PIL.Image", task)
    found = _open(library, task, folder, entry / "arrow")
    parts = {part: found[name] for part, name in _choose_splits(task, found).items()}
    image, label = _choose_columns(task, parts["train"].features)
    labels, classes = _labels(task, {part: split[label][:] for part, split in parts.items()}, parts, label)
    files = {
        part: split.select_columns([image]).cast_column(image, library.Image(decode=False))
        for part, split in parts.items()
    }
    every = chain.from_iterable(_rows(split, image) for split in files.values())
    channels, height, width = _shape(task, every)
    for part, split in files.items():
        np.save(cache.labels_file(entry, part), labels[part])
        arrays: Any = np.lib.format.open_memmap(
            cache.images_file(entry, part), "w+", np.uint8, (len(split), channels, height, width)
        )
        for row, file in enumerate(_rows(split, image)):
            arrays[row] = _pixels(task, file, channels, height, width)
        arrays.flush()
    cache.describe(entry, list(parts), classes)
    shutil.rmtree(entry / "arrow", ignore_errors=True)


def _import(module: str, task: Task) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise StudyError(
            f"task.data {task.data!r} is not in the cache {cache.folder()}, and decoding it needs "
            f"{error.name}: pip install 'cdgrad[data]', or copy the cache from a machine that has it"
        ) from error


def _open(library: Any, task: Task, folder: Path | None, arrow: Path) -> dict[str, Any]:
    """The data set's splits by name."""
    shown = library.is_progress_bar_enabled()
    library.disable_progress_bars()  # they would break the study's own display
    try:
        if folder is not None:
            return dict(library.load_dataset(str(folder), cache_dir=str(arrow)))
        return dict(library.load_dataset(task.data))
    except Exception as error:  # whatever the files or the network lead it to
        reason = (" ".join(str(error).split()) or type(error).__name__).rstrip(".")
        if folder is not None:
            raise StudyError(
                f"task.data: {folder} is not a folder that datasets.load_dataset reads, of Parquet files or "
                f"of images in a folder per class: {reason}"
            ) from error
        raise StudyError(
            f"task.data {task.data!r} is neither {' nor '.join(DATA)} nor a folder here, and the Hugging "
            f"Face hub did not give it: {reason}; check the name and the network, or name a local folder"
        ) from error
    finally:
        if shown:
            library.enable_progress_bars()


def _choose_splits(task: Task, found: Iterable[str]) -> dict[str, str]:
    """Which split serves as ``train``, and as ``test`` where there is one."""
    names = list(found)
    for key in ("train_split", "test_split"):
        if (named := getattr(task, key)) and named not in names:
            raise StudyError(f"task.{key}: {task.data} has the splits {', '.join(names)}; got {named!r}")
    train = task.train_split or (names[0] if len(names) == 1 else "train")
    if train not in names:
        raise StudyError(f"{task.data} has the splits {', '.join(names)}: name one as task.train_split")
    others = [name for name in names if name != train]
    test = task.test_split or next((name for name in _TEST_SPLITS if name in others), "")
    if others and not test:
        raise StudyError(f"{task.data} has the splits {', '.join(names)}: name one as task.test_split")
    if test == train:
        raise StudyError(f"task.test_split must differ from the training split; both are {train!r}")
    return {"train": train, "test": test} if test else {"train": train}


def _choose_columns(task: Task, features: dict[str, Any]) -> tuple[str, str]:
    """The columns of the images and the labels."""
    images = [name for name, kind in features.items() if type(kind).__name__ == "Image"]
    classes = [name for name, kind in features.items() if type(kind).__name__ == "ClassLabel"]
    labels = [name for name in _LABELS if name in features] or classes
    chosen: list[str] = []
    for key, named, candidates in (("image", task.image, images), ("label", task.label, labels)):
        if named and named not in features:
            raise StudyError(f"task.{key}: {task.data} has the columns {', '.join(features)}; got {named!r}")
        if not named and (not candidates or (key == "image" and len(candidates) > 1)):
            raise StudyError(f"{task.data} has the columns {', '.join(features)}: name one as task.{key}")
        chosen.append(named or candidates[0])
    return chosen[0], chosen[1]


def _labels(
    task: Task, values: dict[str, list[Any]], parts: dict[str, Any], column: str
) -> tuple[dict[str, Any], int]:
    """Class numbers from 0 of every part, and how many classes there are."""
    names = getattr(parts["train"].features[column], "names", None)
    order: Sequence[Any] = range(len(names)) if names else sorted(set(values["train"]))
    number = {value: index for index, value in enumerate(order)}
    for part, given in values.items():
        if strange := sorted({repr(value) for value in given if value not in number}):
            raise StudyError(
                f"{task.data}: column {column} of the {part} images holds {strange[0]}, which is no class of "
                f"the training images; where a split has no labels, name another as task.{part}_split"
            )
    arrays = {part: np.array([number[value] for value in given]) for part, given in values.items()}
    return arrays, len(order)


def _rows(split: Any, column: str) -> Iterable[Any]:
    """Each image's file: its bytes, or its path."""
    for row in split:
        file = row[column]
        yield io.BytesIO(file["bytes"]) if file["bytes"] is not None else file["path"]


def _shape(task: Task, files: Iterable[Any]) -> tuple[int, int, int]:
    """(channels, height, width) that all images get: gray if all are. Reads their headers only."""
    modes: set[str] = set()
    sizes: set[tuple[int, int]] = set()
    for file in files:
        with _opened(task, file) as image:
            modes.add(image.mode)
            sizes.add(image.size)
    if strange := modes - _EIGHT_BIT:
        raise StudyError(f"{task.data} has images of mode {min(strange)}; 8 bits a channel are read")
    channels = 1 if modes <= _GRAY else 3
    if task.size:
        return channels, task.size, task.size
    if len(sizes) > 1:
        (w, h), (v, g) = sorted(sizes)[:2]
        raise StudyError(
            f"{task.data} has images of {w} x {h} and of {v} x {g} pixels; set task.size to one side"
        )
    ((width, height),) = sizes
    return channels, height, width


@contextmanager
def _opened(task: Task, file: Any) -> Generator[Any]:
    """An image's file; one that is damaged is no fault of the cache, whose OSErrors have another remedy."""
    try:
        with import_module("PIL.Image").open(file) as image:
            yield image
    except (OSError, SyntaxError) as error:
        raise StudyError(
            f"{task.data} holds an image that cannot be read: {error}; mend it, or take it out"
        ) from error


def _pixels(task: Task, file: Any, channels: int, height: int, width: int) -> Any:
    """The image, uint8 of shape (channels, height, width); another shape is cropped at its centre."""
    pillow, ops = import_module("PIL.Image"), import_module("PIL.ImageOps")
    with _opened(task, file) as opened:
        image = opened.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = ops.fit(image, (width, height), pillow.Resampling.BICUBIC)
    return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)
