"""Decoded data sets on disk: plain arrays that are memory-mapped, so that two workers share one copy.

An entry is a folder of .npy files that appears complete or not at all: it is built under another name
and renamed. Two processes may build the same one; the second to finish discards its own.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdgrad.study import StudyError

LAYOUT = 2  # of entries; 1 had images as they were stored, not turned as their EXIF orientation says
_ABOUT = "about.json"
_NOT_SUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}  # by the file system, for musl's libc
_READ_WHOLE = 1 << 30  # bytes of a file, up to which its checksum is compared, once a process


@dataclass(frozen=True)
class Description:
    """What an entry holds and how it came about.

    Attributes:
        titles: what the data set calls the split that serves as ``train`` and, where there is one, ``test``.
        classes: how many there are.
        turned: how many images were turned or mirrored, as their EXIF orientation says.
        notes: what was found in the data set and is not read, or not covered by its hash; a clause each.
    """

    titles: Mapping[str, str]
    classes: int
    turned: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Arrays:
    """Pixels, uint8 or float32 of shape (n, channels, height, width), and labels, int64 of shape (n,).

    `source` is a name that no other arrays have, or empty.
    """

    pixels: Tensor
    labels: Tensor
    source: str = ""


@dataclass(frozen=True)
class Decoded:
    """A data set as arrays. `test` is None where there is no official test split."""

    train: Arrays
    test: Arrays | None
    description: Description

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return self.description.classes


def folder() -> Path:
    """``$CDGRAD_CACHE``, or ``cdgrad`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Raises:
        StudyError: none of them is set, and the user has no home folder.
    """
    if chosen := os.environ.get("CDGRAD_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "cdgrad"
    except RuntimeError:  # HOME is unset, and the user has no entry in the system
        raise StudyError("there is no home folder for the cache; set CDGRAD_CACHE to a folder") from None


def entry_name(name: str, identity: Mapping[str, object], layout: int = LAYOUT) -> str:
    """A folder's name, which begins with `name`; `identity` is all that decides the arrays, JSON-able."""
    key = hashlib.sha256(json.dumps([layout, identity], sort_keys=True).encode()).hexdigest()[:16]
    return f"{name}-{key}"


def load(name: str, build: Callable[[Path], None]) -> Decoded:
    """The entry of a name; where there is none, `build` first fills an empty folder with it.

    Args:
        name: from `entry_name`.
        build: writes `images_file`, `labels_file` and `describe` into the folder it is given.

    Raises:
        StudyError: the cache folder cannot be written, or `build` explains why it cannot.
    """
    entry = folder() / name
    if not entry.is_dir():
        try:
            _build(entry, build)
        except OSError as error:
            raise StudyError(
                f"cannot store {name} in the cache {folder()}: {error.strerror or error}; "
                f"free some space there, or set CDGRAD_CACHE to another folder"
            ) from error
    return _read(entry)


def _build(entry: Path, build: Callable[[Path], None]) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{entry.name}-", dir=entry.parent))
    try:
        build(unfinished)
        # mkdtemp's folders are private, and a umask may make files so; a cache may be shared.
        for file in unfinished.iterdir():
            file.chmod(0o644)
        unfinished.chmod(0o755)
        try:
            unfinished.rename(entry)
        except OSError:
            if not entry.is_dir():  # otherwise another process was faster, and its entry is the same
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def describe(entry: Path, description: Description) -> None:
    """Write what an entry holds, with a checksum of each file; after its arrays."""
    content: dict[str, Any] = asdict(description)
    content["checksums"] = {file.name: _checksum(file) for file in sorted(entry.glob("*.npy"))}
    content["checksum"] = _checksum_of(content)
    (entry / _ABOUT).write_text(json.dumps(content), encoding="utf-8")


def images_file(entry: Path, split: str) -> Path:
    """Where the images of a split are, uint8 of shape (n, channels, height, width)."""
    return entry / f"{split}-images.npy"


def new_images(file: Path, shape: tuple[int, int, int, int]) -> Any:
    """A new file of images as an array in memory, with all the space that it takes of the disk.

    Raises:
        OSError: the disk has less. Without that space, a later write to the array would kill the process.
    """
    images: Any = np.lib.format.open_memmap(file, "w+", np.uint8, shape)
    if allocate := getattr(os, "posix_fallocate", None):
        with file.open("r+b") as opened:
            try:
                allocate(opened.fileno(), 0, file.stat().st_size)
            except OSError as error:
                if error.errno not in _NOT_SUPPORTED:
                    raise
    return images


def labels_file(entry: Path, split: str) -> Path:
    """Where the labels of a split are, int64 of shape (n,)."""
    return entry / f"{split}-labels.npy"


def _read(entry: Path) -> Decoded:
    try:
        content = json.loads((entry / _ABOUT).read_text(encoding="utf-8"))
        _check(entry, content)
        description = Description(**content | {"notes": tuple(content["notes"])})
        arrays = {role: _arrays(entry, role) for role in description.titles}
        return Decoded(arrays["train"], arrays.get("test"), description)
    except PermissionError as error:
        raise StudyError(
            f"the cache entry {entry} may not be read by this user; ask its owner to run "
            f"chmod -R a+rX on it, or set CDGRAD_CACHE to another folder"
        ) from error
    except Exception as error:  # whatever damaged bytes lead the readers to
        raise StudyError(f"the cache entry {entry} is damaged ({error}); delete it to rebuild it") from error


def _check(entry: Path, content: dict[str, Any]) -> None:
    """Compare checksums, which entries of earlier versions lack; removes them from `content`."""
    own, files = content.pop("checksum", None), content.pop("checksums", None)
    if own is None and files is None:
        return
    if own != _checksum_of(content | {"checksums": files}):
        raise ValueError(f"{_ABOUT} differs from its checksum")
    for name, checksum in files.items():
        stat = (entry / name).stat()
        if stat.st_size <= _READ_WHOLE and checksum != _known(entry / name, stat.st_size, stat.st_mtime_ns):
            raise ValueError(f"{name} differs from its checksum")


def _checksum_of(content: Mapping[str, object]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


@lru_cache
def _known(path: Path, _size: int, _changed: int) -> int:
    return _checksum(path)


def _checksum(path: Path) -> int:
    """CRC-32, at about 1 GB/s: it finds every flipped bit, and is not meant against forgery."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _arrays(entry: Path, name: str) -> Arrays:
    # Copy-on-write, because torch warns of arrays that it could not write to.
    file = images_file(entry, name)
    images = torch.as_tensor(np.load(file, mmap_mode="c"))
    labels = torch.as_tensor(np.load(labels_file(entry, name)))
    return Arrays(images, labels, f"{file.absolute()} of {file.stat().st_mtime_ns}")
