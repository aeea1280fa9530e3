"""The images of a split as batches: kept as they were decoded, normalized when they are read.

Decoded images are uint8 and memory-mapped: two workers share one copy, an epoch never copies the data
set, and normalizing a batch of 128 takes well below 1 % of a step of the smallest ResNet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdgrad.study.data.cache import Arrays
from cdgrad.study.data.resident import resident

_AT_ONCE = 2048  # images whose values are counted together


@dataclass(frozen=True)
class Split:
    """Rows of the data set's arrays: the training, validation or test split of a run.

    Attributes:
        pixels: all images of the arrays, uint8 or float32 of shape (N, channels, height, width).
        rows: which of them are the split's, int64 of shape (n,).
        labels: of the split, int64 of shape (n,).
        mean, std: of the training split's pixels, float32 of shape (channels, 1, 1).
        layout: memory format of the batches.
        source: a name of the arrays that no others have; empty where there is none.
    """

    pixels: Tensor
    rows: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    layout: torch.memory_format = torch.contiguous_format
    source: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Where the batches are."""
        return self.pixels.device

    def images(self, chosen: Tensor | slice = slice(None)) -> Tensor:
        """The `chosen` images of the split, normalized: float32 of shape (count, channels, height, width)."""
        images = self.pixels.index_select(0, self.rows[chosen]).to(torch.float32)
        return images.sub_(self.mean).div_(self.std).contiguous(memory_format=self.layout)

    def to(self, device: torch.device, layout: torch.memory_format = torch.contiguous_format) -> Split:
        """The split on a device; the same arrays where they are there already.

        Pixels of the cache stay on the device for the next run; others are copied, those of the split alone.
        """
        if device == self.device:
            return replace(self, layout=layout)
        pixels = resident(self.source, self.pixels, device)
        whole = pixels is not None
        return Split(
            pixels if whole else self.pixels.index_select(0, self.rows).to(device),
            self.rows.to(device) if whole else torch.arange(len(self), device=device),
            self.labels.to(device),
            self.mean.to(device),
            self.std.to(device),
            layout,
        )


def take(arrays: Arrays, rows: Any, mean: Tensor, std: Tensor) -> Split:
    """The split of the rows whose numbers `rows`, an array of integers, holds."""
    chosen = torch.tensor(rows)
    return Split(arrays.pixels, chosen, arrays.labels[chosen], mean, std, source=arrays.source)


def with_label_noise(split: Split, share: float, classes: int, random: np.random.Generator) -> Split:
    """The split with wrong labels for `share` of its images, rounded to whole images.

    The images are drawn without replacement; each gets one of the other classes, all equally likely. With
    one class there is no other one, and the split is returned as it is.
    """
    count = round(share * len(split))
    if count == 0 or classes < 2:
        return split
    wrong = torch.tensor(random.permutation(len(split))[:count])
    labels = split.labels.clone()
    labels[wrong] = (labels[wrong] + torch.tensor(random.integers(1, classes, count))) % classes
    return replace(split, labels=labels)


def channel_statistics(pixels: Tensor, rows: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over some images, both of shape (channels, 1, 1).

    uint8 is counted value by value: exact, and ten times as fast as sums over converted images.
    """
    chosen, channels = torch.tensor(rows), range(pixels.shape[1])
    if pixels.dtype == torch.uint8:
        counts = torch.zeros(len(channels), 256, dtype=torch.float64)
        for start in range(0, len(chosen), _AT_ONCE):
            images = pixels.index_select(0, chosen[start : start + _AT_ONCE])
            counts += torch.stack([images[:, c].flatten().bincount(minlength=256) for c in channels])
        values = torch.arange(256, dtype=torch.float64)
        n = counts.sum(1)
        mean = counts @ values / n
        std = ((counts * (values - mean[:, None]).square()).sum(1) / (n - 1)).sqrt()
    else:
        images = pixels.index_select(0, chosen)
        mean = torch.stack([images[:, c].mean() for c in channels])
        std = torch.stack([images[:, c].std() for c in channels])
    std = std.where(std > 0, 1)  # a channel without contrast stays finite
    return mean.float()[:, None, None], std.float()[:, None, None]
