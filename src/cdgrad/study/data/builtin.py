"""Data sets that need no download: handwritten digits, and noise for smoke tests."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdgrad.study.data.cache import Arrays, Decoded, Description


@lru_cache(maxsize=1)
def digits() -> Decoded:
    """1,797 handwritten digits of 8 x 8 pixels with values 0 to 16, embedded in scikit-learn."""
    datasets: Any = import_module("sklearn.datasets")  # it ships no types
    bunch = datasets.load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32)
    return _unsplit(images[:, None], bunch.target)


@lru_cache(maxsize=1)
def fake() -> Decoded:
    """400 noisy copies of 4 random 8 x 8 patterns, for smoke tests: nothing to download or import."""
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 4
    images = rng.normal(size=(4, 1, 8, 8))[labels] + rng.normal(size=(400, 1, 8, 8))
    return _unsplit(torch.tensor(images, dtype=torch.float32), labels)


def _unsplit(images: Tensor, labels: NDArray[np.integer[Any]]) -> Decoded:
    arrays = Arrays(images, torch.tensor(labels, dtype=torch.int64))
    return Decoded(arrays, None, Description({"train": "train"}, int(arrays.labels.max()) + 1))


SOURCES = {"digits": digits, "fake": fake}
