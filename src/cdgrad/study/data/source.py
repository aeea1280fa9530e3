"""A data set before it is decoded: its splits, each with the labels and the files of its images."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

HUB = "hub:"  # in front of the name of a data set on the Hugging Face hub
ImageFile = str | Path | BinaryIO | None


class EncodedImage(TypedDict):
    """An image in a column of the datasets library: its bytes, or the path of its file."""

    bytes: bytes | None
    path: str | None


Images = Callable[[], Iterator[tuple[str, ImageFile]]]


def image_file(content: EncodedImage | None) -> ImageFile:
    """An image's bytes or its path, of a column of images of the datasets library."""
    if content is None:
        return None
    return io.BytesIO(content["bytes"]) if content["bytes"] is not None else content["path"]


def hub_name(data: str) -> str:
    """The name on the Hugging Face hub that ``task.data`` asks for; empty where it names a folder."""
    return data.removeprefix(HUB) if data.startswith(HUB) else ""


@dataclass(frozen=True)
class SourceSplit:
    """One split.

    Attributes:
        labels: of each image, a number or a word.
        images: a function that iterates over the images in the order of the labels: the place of each,
            in words for a message, and its file, or None where it is missing.
        names: of the classes that the labels number; None where the labels are the classes.
        column: what holds the labels, for a message.
    """

    labels: list[Any]
    images: Images
    names: tuple[str, ...] | None
    column: str


@dataclass(frozen=True)
class Source:
    """The splits that are read, as ``train`` and, where there is one, ``test``.

    Attributes:
        splits: by the role that they play.
        titles: what the data set calls each of them.
        notes: as in `cdgrad.study.data.cache.Description`.
    """

    splits: dict[str, SourceSplit]
    titles: dict[str, str]
    notes: tuple[str, ...]
