"""Networks of these studies that are too small to be in the package."""

from __future__ import annotations

from torch import nn


def plain(image_shape: tuple[int, int, int], classes: int, width: int = 16) -> nn.Sequential:
    """Five 3 x 3 convolutions with batch norm, in three stages around two poolings; a linear head.

    The pattern of VGG (Simonyan and Zisserman, 2015), for images of 8 x 8 pixels: the last stage, of 4
    times the width, is flattened at 2 x 2.
    """
    channels, height, image_width = image_shape
    return nn.Sequential(
        *_block(channels, width),
        *_block(width, width),
        nn.MaxPool2d(2),
        *_block(width, 2 * width),
        *_block(2 * width, 2 * width),
        nn.MaxPool2d(2),
        *_block(2 * width, 4 * width),
        nn.Flatten(),
        nn.Linear(4 * width * (height // 4) * (image_width // 4), classes),
    )


def _block(channels_in: int, channels_out: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    ]
