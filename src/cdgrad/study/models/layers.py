"""What the networks are made of: convolutions without bias, He's initialization, the sizes they refuse."""

from __future__ import annotations

import math

from torch import Tensor, nn

from cdgrad.study import StudyError

ImageShape = tuple[int, int, int]
"""(channels, height, width)."""


def conv(into: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size at stride 1. Batch norm follows or precedes it: no bias."""
    return nn.Conv2d(into, out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


def conv_norm_relu(into: int, out: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """Convolution, batch norm, rectifier."""
    return [conv(into, out, kernel, stride), *norm_relu(out)]


def norm_relu(channels: int) -> list[nn.Module]:
    """Batch norm, rectifier: what stands before a convolution in networks that pre-activate."""
    return [nn.BatchNorm2d(channels), nn.ReLU()]


def he_normal(model: nn.Module) -> None:
    """Normal weights of variance gain / fan-in, in place; biases are 0.

    The gain is 2 for convolutions, whose outputs are rectified, and 1 for linear layers, which here
    give logits (He et al., Delving Deep into Rectifiers, 2015, arXiv 1502.01852, equation 10). The
    fan-in of a grouped convolution is that of one of its groups.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            gain = 2 if isinstance(module, nn.Conv2d) else 1
            nn.init.normal_(module.weight, std=math.sqrt(gain / module.weight[0].numel()))
            if module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]  torch's types say it never is
                nn.init.zeros_(module.bias)


class Classifier(nn.Module):
    """Layers, the mean of their outputs over the image, and a linear head."""

    def __init__(self, layers: list[nn.Module], channels: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)
        he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape (n, classes) of images (n, channels, height, width)."""
        return self.head(self.features(images).mean((2, 3)))


def at_least(image_shape: ImageShape, side: int, name: str) -> None:
    """Refuse images that a network would halve to nothing.

    Raises:
        StudyError: the height or width is below `side`.
    """
    _, height, width = image_shape
    if min(height, width) < side:
        raise StudyError(
            f"{name} takes images of at least {side} x {side} pixels, got {height} x {width}; "
            f"set task.size = {side}, or choose a network with fewer strides"
        )
