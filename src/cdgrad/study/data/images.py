"""Image files to arrays of one shape, upright, with a message that names each file that cannot be read."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdgrad.study import StudyError
from cdgrad.study.data.files import listed
from cdgrad.study.data.source import ImageFile, Images
from cdgrad.study.shown import one_line
from cdgrad.study.spec import Task

_GRAY = {"1", "L"}
_EIGHT_BIT = {*_GRAY, "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
_SIXTEEN_BIT = re.compile(r"\w+;16[BLN]\b")  # in Pillow's names; BGR;16 has 16 bits per pixel
_ORIENTATION = 0x0112  # the EXIF tag: how to turn what a camera stored
_SIDEWAYS = range(5, 9)  # its values that exchange width and height


def common_shape(task: Task, splits: Iterable[Images]) -> tuple[tuple[int, int, int], tuple[str, ...]]:
    """(channels, height, width) that all images get, gray if all are, and notes on what is not read.

    Reads the files' headers only.

    Raises:
        StudyError: an image cannot be read or has more than 8 bits per channel, or sizes differ without
            ``task.size``.
    """
    modes: dict[str, str] = {}  # and where each was seen first
    several: list[str] = []  # with several frames or pages
    sizes: dict[tuple[int, int], str] = {}

    def look(where: str, image: Any) -> None:
        width, height = image.size
        if width != height and image.getexif().get(_ORIENTATION) in _SIDEWAYS:
            width, height = height, width
        modes.setdefault(_mode(image), where)
        sizes.setdefault((width, height), where)
        if _has_several_frames(image):
            several.append(where)

    for images in splits:
        _each(task, images, look)
    if strange := modes.keys() - _EIGHT_BIT:
        mode = min(strange)
        raise StudyError(
            f"{task.data} has images of mode {mode}, and only 8 bits per channel are supported; convert "
            f"{modes[mode]}"
        )
    channels = 1 if modes.keys() <= _GRAY else 3
    notes = (f"only the first frame of {len(several)} images is read ({listed(several)})",) if several else ()
    if task.size:
        return (channels, task.size, task.size), notes
    if len(sizes) > 1:
        (w, h), (v, g) = sorted(sizes)[:2]
        raise StudyError(
            f"{task.data} has images of {w} x {h} and of {v} x {g} pixels; set task.size to "
            f"one side ({sizes[w, h]} and {sizes[v, g]} differ)"
        )
    ((width, height),) = sizes
    return (channels, height, width), notes


def _mode(image: Any) -> str:
    """Pillow's mode; the one of the file where that has 16 bits per channel, of which Pillow would keep 8."""
    if image.mode not in _EIGHT_BIT:
        return image.mode
    raw = " ".join(str(arguments) for _, _, _, arguments in image.tile)
    match = _SIXTEEN_BIT.search(raw)
    return match[0] if match else image.mode


def _has_several_frames(image: Any) -> bool:
    """Whether an image is animated, or has pages; cameras put previews into MPO files."""
    try:
        animated = getattr(image, "is_animated", None)
        return image.format != "MPO" and bool(
            getattr(image, "n_frames", 1) > 1 if animated is None else animated
        )
    except Exception:  # a later frame is damaged, and only the first one is read
        return False


def decode(task: Task, images: Images, out: NDArray[np.uint8]) -> int:
    """Fill `out`, uint8 of shape (n, channels, height, width); an image of another shape is cropped.

    Returns:
        How many images were turned or mirrored, as their EXIF orientation says.

    Raises:
        StudyError: some images cannot be read; the message names the first of them.
    """
    _, channels, height, width = out.shape
    pillow, ops = import_module("PIL.Image"), import_module("PIL.ImageOps")
    rows, turned = iter(range(len(out))), 0

    def fill(where: str, image: Any) -> None:
        nonlocal turned
        row = next(rows)
        if image.getexif().get(_ORIENTATION, 1) != 1:
            image, turned = ops.exif_transpose(image), turned + 1
        image = image.convert("L" if channels == 1 else "RGB")
        if image.size != (width, height):
            image = ops.fit(image, (width, height), pillow.Resampling.BICUBIC)
        out[row] = np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)

    _each(task, images, fill)
    return turned


def _each(task: Task, images: Images, use: Callable[[str, Any], None]) -> None:
    """Call `use` with each image, opened; those that cannot be read are collected and named together."""
    reasons: dict[str, str] = {}
    for where, file in images():
        try:
            with _opened(file) as image:
                use(where, image)
        except _UnreadableError as error:
            reasons[where] = str(error)
    if reasons:
        several = f"contains {len(reasons)} unreadable images: {listed(reasons)}; the first"
        problem = several if len(reasons) > 1 else f"contains an unreadable image: {next(iter(reasons))}"
        raise StudyError(f"{task.data} {problem}: {next(iter(reasons.values()))}; replace or remove it")


class _UnreadableError(Exception):
    """An image is missing or damaged."""


@contextmanager
def _opened(file: ImageFile) -> Generator[Any]:
    """An image's file. Whatever the decoder raises is the file's fault, and not, say, the cache's."""
    if file is None:
        raise _UnreadableError("there is no image")
    # Opening a pipe that a table names would wait for a writer.
    if isinstance(file, str | Path) and os.path.exists(file) and not os.path.isfile(file):
        raise _UnreadableError("it is not a regular file")
    try:
        with import_module("PIL.Image").open(file) as image:
            yield image
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise many kinds: struct.error, zlib.error, ValueError ...
        reason = "Pillow does not recognize it as an image" if "cannot identify" in str(error) else str(error)
        if isinstance(error, OSError) and isinstance(file, str | Path) and error.strerror:
            reason = error.strerror
        raise _UnreadableError(one_line(reason).rstrip(".") or type(error).__name__) from error
