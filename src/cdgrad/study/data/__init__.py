"""Images and labels of a task, split by a seed and normalized by the training split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cdgrad.study import StudyError, streams
from cdgrad.study.data import decoding
from cdgrad.study.data.augment import TRANSFORMS, augment
from cdgrad.study.data.builtin import SOURCES
from cdgrad.study.data.cache import Decoded
from cdgrad.study.data.copies import repeated_images
from cdgrad.study.data.splits import Split, channel_statistics, take, with_label_noise
from cdgrad.study.spec import Task

__all__ = [
    "SOURCES",
    "TRANSFORMS",
    "Data",
    "Split",
    "augment",
    "has_test_split",
    "identity",
    "load",
    "repeated",
    "split_sizes",
]

_REPEATED: dict[str, int | None] = {}  # by the identity of the data: runs of a process have few data sets


@dataclass(frozen=True)
class Data:
    """Three disjoint splits. Training never looks at `test`; it is read once, when a run is over."""

    train: Split
    validation: Split
    test: Split
    classes: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        _, channels, height, width = self.train.pixels.shape
        return channels, height, width


def load(task: Task, seed: int) -> Data:
    """The images of `task`, split by `seed`, each channel normalized by the training split.

    Where the data set has an official test split, the seed draws training and validation images from
    the other one; otherwise it draws all three splits from all images.

    Raises:
        StudyError: the data set cannot be read, or has too few images for the splits.
    """
    decoded = _decoded(task)
    source, official = decoded.train, decoded.test
    train, validation, test = _sizes(task, len(source.labels), official and len(official.labels))
    order = streams.generator(seed, streams.SPLIT).permutation(len(source.labels))
    rows = np.split(order, [train, train + validation])
    if official:
        rows[2] = streams.generator(seed, streams.TEST).permutation(len(official.labels))
    rows[2] = rows[2][:test]
    mean, std = channel_statistics(source.pixels, rows[0])
    arrays = (source, source, official or source)
    splits = [take(a, r, mean, std) for a, r in zip(arrays, rows, strict=True)]
    noise = streams.generator(seed, streams.LABEL_NOISE)
    splits[0] = with_label_noise(splits[0], task.label_noise, decoded.classes, noise)
    return Data(*splits, classes=decoded.classes)


def has_test_split(task: Task) -> bool:
    """Whether the data set has a test split of its own, or the seed draws the test images."""
    return _decoded(task).test is not None


def split_sizes(task: Task) -> dict[str, Any]:
    """How many images train, validate and test, and what the data set calls the splits that they are of.

    Also, of the images that validation and test are drawn from, the errors in percent of a network that names
    the most frequent class of them for every image.
    """
    decoded = _decoded(task)
    official = decoded.test and len(decoded.test.labels)
    train, validation, test = _sizes(task, len(decoded.train.labels), official)
    titles = dict(decoded.description.titles)
    drawn_from = {"validation": decoded.train, "test": decoded.test or decoded.train}
    counts = {role: images.labels.bincount() for role, images in drawn_from.items()}
    constant = {role: 100 - 100 * int(each.max()) / int(each.sum()) for role, each in counts.items()}
    sizes = {"train": train, "validation": validation, "test": test}
    return sizes | {"titles": titles, "constant_error": constant}


def repeated(task: Task) -> int | None:
    """How many test images are among those that training draws from, too; see `repeated_images`."""
    if (name := identity(task)) not in _REPEATED:
        _REPEATED[name] = repeated_images(_decoded(task))
    return _REPEATED[name]


def identity(task: Task) -> str:
    """What a record says of its images: a built-in name, or a name with a hash of what was decoded."""
    return task.data if task.data in SOURCES else decoding.identity(task)


def _decoded(task: Task) -> Decoded:
    return SOURCES[task.data]() if task.data in SOURCES else decoding.load(task)


def _sizes(task: Task, images: int, official: int | None) -> tuple[int, int, int]:
    """How many images train, validate and test, of `images`, or of those and `official` for the test."""
    validation, counted = task.validation, task.test if isinstance(task.test, int) else 0
    train = task.train if isinstance(task.train, int) else images - validation - (0 if official else counted)
    left = images - train - validation
    test = counted or (left if official is None else official)
    if train < 1 or left < 0 or (official is None and left == 0):
        rest = " for training" if train < 1 else " to test on" if official is None else ""
        used = f"task.train + task.validation = {max(train, 0) + validation}"
        move = "reduce them"
        if task.train == "all" and train > 0:
            move = "there is no test split, so that the seed draws the test images: give task.test a count"
        raise StudyError(f"{task.data} has {images} images: {used} leaves none{rest}; {move}")
    if test > (available := left if official is None else official):
        raise StudyError(
            f"{task.data} has {available} images left to test on, and task.test = {test}; reduce it"
        )
    return train, validation, test
