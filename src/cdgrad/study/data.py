"""Images and labels of a task, split by a seed and normalized by the training part."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdgrad.study import StudyError
from cdgrad.study.spec import Task


@dataclass(frozen=True)
class Part:
    """Images, float32 of shape (n, channels, height, width), and labels, int64 of shape (n,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Data:
    """Three disjoint parts. Training never looks at `test`; it is read once, when a run is over."""

    train: Part
    validation: Part
    test: Part
    classes: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width


def load(task: Task, seed: int) -> Data:
    """The images of `task`, split by `seed`; the test part is all that is left over.

    Raises:
        StudyError: the data set has too few images for the parts.
    """
    images, labels = SOURCES[task.data]()
    used = task.train + task.validation
    if used >= len(labels):
        raise StudyError(
            f"{task.data} has {len(labels)} images: task.train + task.validation = {used} leaves none to "
            f"test on; make them smaller"
        )
    order = np.random.default_rng([seed, _SPLIT_STREAM]).permutation(len(labels))
    train, validation, test = map(torch.tensor, np.split(order, [task.train, used]))
    mean, std = images[train].mean(), images[train].std()
    normalized = (images - mean) / std
    parts = [Part(normalized[rows], labels[rows]) for rows in (train, validation, test)]
    return Data(*parts, classes=int(labels.max()) + 1)


# Separate random streams of one seed: the split must not move when, say, the initialization does.
_SPLIT_STREAM = 1


@lru_cache(maxsize=1)
def _digits() -> tuple[Tensor, Tensor]:
    """1,797 hand-written digits of 8 x 8 pixels with values 0 to 16, embedded in scikit-learn."""
    datasets: Any = import_module("sklearn.datasets")  # it ships no types
    bunch = datasets.load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32)
    return images[:, None], torch.tensor(bunch.target, dtype=torch.int64)


@lru_cache(maxsize=1)
def _fake() -> tuple[Tensor, Tensor]:
    """400 noisy copies of 4 random 8 x 8 patterns, for smoke tests: nothing to download or import."""
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 4
    images = rng.normal(size=(4, 1, 8, 8))[labels] + rng.normal(size=(400, 1, 8, 8))
    return torch.tensor(images, dtype=torch.float32), torch.tensor(labels, dtype=torch.int64)


SOURCES = {"digits": _digits, "fake": _fake}
