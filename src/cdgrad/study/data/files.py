"""The files of a folder that are data, and a hash of them.

Hidden files, those of desktops and the output of a study are ignored without a warning: a study whose data is
its own folder must not find its figures among the images.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from cdgrad.study import StudyError

# fmt: off
IMAGES = frozenset((
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".ico", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe",
    ".jpeg", ".jpf", ".jpg", ".jpx", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".sgi",
    ".tga", ".tif", ".tiff", ".webp",
))
TABLES = frozenset((
    ".parquet", ".arrow", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".lance", ".h5", ".hdf5",
))
ARCHIVES = frozenset((".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"))
# fmt: on
_METADATA = frozenset(f"metadata{suffix}" for suffix in (".csv", ".jsonl", ".parquet"))
_CARDS = frozenset(("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"))
_DESKTOP = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "__pycache__"))
_RECORDS = "study.sqlite"  # a folder that holds this is a study's
READ_WHOLE = 2**30  # bytes of a folder up to which its files are read to recognize it


@dataclass(frozen=True)
class Contents:
    """The data files below `folder`, sorted, by their paths relative to it.

    Attributes:
        folder: the folder.
        data: images where `of_images`, else all files but hidden ones.
        others: where `of_images`, the files that are no images by their names.
        of_images: whether the data are images in folders, and no table describes them.
    """

    folder: Path
    data: tuple[Path, ...]
    others: tuple[Path, ...]
    of_images: bool


@lru_cache
def contents(folder: Path) -> Contents:
    """What lies below a folder, once a process; links to folders are followed.

    Raises:
        StudyError: a link leads nowhere.
    """
    visible = tuple(sorted(_visible(folder), key=normalized))
    images = [path for path in visible if path.suffix.lower() in IMAGES]
    tables = [p for p in visible if p.suffix.lower() in TABLES and p.name.lower() not in _CARDS]
    described = any(map(describes_images, visible))
    if described or len(images) <= len(tables) or not any(path.parent.parts for path in images):
        return Contents(folder, visible, (), of_images=False)
    others = tuple(path for path in visible if path.suffix.lower() not in IMAGES)
    return Contents(folder, tuple(images), others, of_images=True)


def normalized(path: Path) -> tuple[str, ...]:
    """The parts of a path, composed: macOS decomposes accents, other systems keep what they are given."""
    return tuple(unicodedata.normalize("NFC", part) for part in path.parts)


def describes_images(path: Path) -> bool:
    """Whether a table names the images beside it."""
    return path.name.lower() in _METADATA


def is_data(path: Path) -> bool:
    """Whether a file looks like data by its name, so that leaving it out must be said."""
    known = IMAGES | TABLES | ARCHIVES
    return path.suffix.lower() in known and path.name.lower() not in _CARDS


def printable(path: Path | str) -> str:
    """A path as text that can be printed: bytes that are no UTF-8 become escapes."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def listed(paths: Iterable[Path | str], most: int = 3) -> str:
    """The first few paths, and how many there are beyond them."""
    every = [printable(path) for path in paths]
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")


@lru_cache
def digest(folder: Path) -> str:
    """A hash of the names, sizes and contents of the data below a folder, once a process.

    Names are hashed with ``/`` between their parts on every system.

    Beyond 1 GiB the times of the last changes stand for the contents, which would take minutes to read.
    """
    facts = [(path, (folder / path).stat()) for path in contents(folder).data]
    whole = sum(stat.st_size for _, stat in facts) <= READ_WHOLE
    hasher = hashlib.sha256()
    for path, stat in facts:
        hasher.update(os.fsencode(path.as_posix()) + f"\0{stat.st_size}\0".encode())
        if whole:
            with (folder / path).open("rb") as file:
                hasher.update(hashlib.file_digest(file, "sha256").digest())
        else:
            hasher.update(str(stat.st_mtime_ns).encode())
    return hasher.hexdigest()


def _visible(folder: Path) -> Iterator[Path]:
    """Files below the folder, relative to it, without hidden ones and those of studies."""
    is_of_study = any(entry.name == _RECORDS for entry in folder.iterdir())
    stat = folder.stat()
    for path in _walk(folder, Path(), frozenset({(stat.st_dev, stat.st_ino)})):
        if is_of_study and not path.parent.parts and _is_output(path):
            continue
        yield path


def _walk(root: Path, below: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    """`above` holds the folders that lead to `below`: a link back to one of them ends there."""
    entries = sorted((root / below).iterdir())
    if below.parts and any(entry.name == _RECORDS for entry in entries):
        return
    for entry in entries:
        path, name = below / entry.name, entry.name
        if name.startswith(".") or name.lower() in _DESKTOP:
            continue
        try:
            # `is_dir` and `is_file` are false, in some versions, where this is not permitted.
            stat = entry.stat()
        except OSError as error:
            if isinstance(error, PermissionError) or not entry.is_symlink():
                raise
            raise StudyError(
                f"{printable(root / path)} is a link that leads nowhere; repair or remove it"
            ) from error
        inode = stat.st_dev, stat.st_ino
        if S_ISDIR(stat.st_mode) and inode not in above:
            yield from _walk(root, path, above | {inode})
        elif S_ISREG(stat.st_mode):
            yield path


def _is_output(path: Path) -> bool:
    """Whether a file beside a study's records is one that a report writes."""
    return path.name.startswith((_RECORDS, "report.", "runs.", "trials.")) or path.suffix in (".png", ".svg")
