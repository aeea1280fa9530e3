"""Densely connected networks (Huang et al., 2016, arXiv 1608.06993)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cdgrad.study import StudyError
from cdgrad.study.models.layers import Classifier, ImageShape, at_least, conv, norm_relu


class Layer(nn.Module):
    """A bottleneck of four times `growth` channels, then `growth` new ones, appended to the input's."""

    def __init__(self, into: int, growth: int) -> None:
        super().__init__()
        self.new = nn.Sequential(
            *norm_relu(into),
            conv(into, 4 * growth, 1),
            *norm_relu(4 * growth),
            conv(4 * growth, growth, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, into + growth, height, width) of features (n, into, height, width)."""
        return torch.cat([x, self.new(x)], 1)


class DenseNetBC(Classifier):
    """Three dense blocks of (depth - 4) / 6 layers, with half of the channels kept between them.

    0.8 million parameters at depth 100, growth 12 and 10 classes, as in the paper's table 2.

    Args:
        image_shape: (channels, height, width), of at least 4 x 4 pixels.
        classes: number of outputs.
        depth: 6 n + 4 weighted layers, such as 40, 100, 190.
        growth: channels that each layer adds: the paper's k.

    Raises:
        StudyError: no such depth, or smaller images.
    """

    def __init__(self, image_shape: ImageShape, classes: int, depth: int = 100, growth: int = 12) -> None:
        if depth < 10 or (depth - 4) % 6:
            raise StudyError(f"the depth of densenet-bc must be 6 n + 4, such as 40 or 100; got {depth}")
        at_least(image_shape, 4, "densenet-bc")
        channels = 2 * growth
        layers: list[nn.Module] = [conv(image_shape[0], channels, 3)]
        for block in range(3):
            if block:
                layers += [*norm_relu(channels), conv(channels, channels // 2, 1), nn.AvgPool2d(2)]
                channels //= 2
            for _ in range((depth - 4) // 6):
                layers.append(Layer(channels, growth))
                channels += growth
        super().__init__([*layers, *norm_relu(channels)], channels, classes)
