"""The data set of a task, from the cache or decoded into it, with a name that changes with its contents.

Only decoding needs Pillow and, where it is neither images in folders nor plain Parquet files, ``datasets``.
"""

from __future__ import annotations

import difflib
import re
import shutil
import warnings
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from cdgrad.study import StudyError
from cdgrad.study.data import cache, image_folder, images, parquet_files, tables
from cdgrad.study.data.choice import number_classes
from cdgrad.study.data.files import contents, digest, printable
from cdgrad.study.data.source import HUB, Source, hub_name
from cdgrad.study.spec import DATA, Task


def load(task: Task) -> cache.Decoded:
    """The splits of ``task.data`` from the cache, or decoded into it.

    Raises:
        StudyError: no such folder or name, no network, no ``datasets``, or contents that do not fit;
            the message says what was looked for.

    Warns:
        UserWarning: something that was found is not read; once a process.
    """
    folder = _folder(task)
    if folder is None and not hub_name(task.data):
        raise StudyError(_missing(task.data))
    decoded = cache.load(_entry(task, cache.LAYOUT), lambda entry: _decode(task, folder, entry))
    if decoded.description.notes:
        warn_once(f"{task.data}: {'; '.join(decoded.description.notes)}")
    return decoded


def identity(task: Task) -> str:
    """What a record says of its images: a name that changes with their contents and with the task."""
    turned = load(task).description.turned
    return _entry(task, 1) + ("-upright" if turned else "")


def _entry(task: Task, layout: int) -> str:
    """The name of a cache entry of a layout. Layout 1, of the first records, did not turn images upright."""
    folder = _folder(task)
    try:
        source = digest(folder) if folder else hub_name(task.data)
    except OSError as error:
        place = printable(error.filename or task.data)
        raise StudyError(
            f"task.data: {place} cannot be read: {error.strerror or error}; change its permissions, move it "
            "away, or name another folder"
        ) from error
    decides: dict[str, object] = {
        "source": source,
        **{key: getattr(task, key) for key in ("train_split", "test_split", "image", "label", "size")},
    }
    if folder and contents(folder).of_images:
        decides["reader"] = "image folder"
    title = printable(folder.name) if folder else hub_name(task.data).replace("/", "--")
    return cache.entry_name(title, decides, layout)


def _folder(task: Task) -> Path | None:
    """The local folder that is meant, or None for a name on the hub."""
    if hub_name(task.data):
        return None
    folder = _expanded(task.data)
    return folder.resolve() if task.data and folder.is_dir() else None


def _expanded(data: str) -> Path:
    try:
        return Path(data).expanduser()
    except RuntimeError:  # no user of that name, or no home folder
        return Path(data)


def _missing(data: str) -> str:
    """What to do where `data` is neither built in nor a folder: a mistyped name is not asked of the hub."""
    path = _expanded(data)
    if path.is_file():
        return (
            f"task.data: {data} is a file; name the folder that holds images or Parquet files; other files "
            'are for training code of your own (entry = "module:function")'
        )
    try:
        beside = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    except OSError:
        beside = []
    names = {name: str(Path(data).with_name(name)) for name in beside if path.name}
    names |= {name: name for name in DATA} if len(Path(data).parts) == 1 else {}
    message = f"task.data: there is no folder {data} (looked for {path.absolute()})"
    if close := difflib.get_close_matches(path.name, names, 1, 0.7):
        message += f"; did you mean {names[close[0]]!r}?"
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", data) and not data.startswith("."):
        message += f'; a data set of that name on the Hugging Face hub is "{HUB}{data}"'
    return message


@lru_cache
def warn_once(message: str) -> None:
    """Warn of a message that this process has not had yet."""
    warnings.warn(message, stacklevel=3)


def _decode(task: Task, folder: Path | None, entry: Path) -> None:
    """Write the arrays of a task into the folder of its cache entry."""
    _import("PIL.Image", task)
    source = _source(task, folder, entry / "arrow")
    for role, split in source.splits.items():
        if not len(split.labels):
            raise StudyError(
                f"{task.data}: split {source.titles[role]} has no images; name another as task.{role}_split"
            )
    labels, classes = number_classes(task, source.splits)
    every = [split.images for split in source.splits.values()]
    (channels, height, width), notes = images.common_shape(task, every)
    turned = 0
    for role, split in source.splits.items():
        np.save(cache.labels_file(entry, role), labels[role])
        shape = (len(split.labels), channels, height, width)
        arrays = cache.new_images(cache.images_file(entry, role), shape)
        turned += images.decode(task, split.images, arrays)
        arrays.flush()
    cache.describe(entry, cache.Description(source.titles, classes, turned, (*source.notes, *notes)))
    shutil.rmtree(entry / "arrow", ignore_errors=True)


def _source(task: Task, folder: Path | None, arrow: Path) -> Source:
    listing = contents(folder) if folder else None
    if listing and listing.of_images:
        return image_folder.read(task, listing)
    if listing and find_spec("datasets") is None and parquet_files.are_named_by_split(listing):
        return parquet_files.read(task, listing)
    return tables.read(task, _import("datasets", task), listing, arrow)


def _import(module: str, task: Task) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise StudyError(
            f"task.data {task.data!r} is not in the cache {cache.folder()}, and decoding it needs "
            f"{error.name}: in a clone of cdgrad, run pip install '.[data]', or copy the cache from elsewhere"
        ) from error
