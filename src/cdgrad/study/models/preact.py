"""Residual networks that normalize and rectify before each convolution, deep or wide.

He et al., Identity Mappings in Deep Residual Networks, 2016, arXiv 1603.05027; Zagoruyko and
Komodakis, Wide Residual Networks, 2016, arXiv 1605.07146.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from cdgrad.study import StudyError
from cdgrad.study.models.layers import Classifier, ImageShape, at_least, conv, norm_relu


class Unit(nn.Module):
    """A residual branch on the rectified input, around which the input passes unchanged.

    Where the shape changes, a 1 x 1 convolution of the rectified input takes the input's place.
    """

    def __init__(self, into: int, branch: list[nn.Module], out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(*norm_relu(into))
        self.residual = nn.Sequential(*branch)
        self.projection = conv(into, out, 1, stride) if into != out or stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, out, height / stride, width / stride) of features (n, into, height, width)."""
        rectified = self.first(x)
        shortcut = self.projection(rectified) if self.projection is not None else x
        return shortcut + self.residual(rectified)


def bottleneck(into: int, out: int, stride: int) -> Unit:
    """1 x 1 to a quarter of the output's channels, 3 x 3 among those, 1 x 1 back."""
    inner = out // 4
    branch = [conv(into, inner, 1), *norm_relu(inner), conv(inner, inner, 3, stride)]
    return Unit(into, [*branch, *norm_relu(inner), conv(inner, out, 1)], out, stride)


def basic(into: int, out: int, stride: int) -> Unit:
    """Two 3 x 3 convolutions."""
    return Unit(into, [conv(into, out, 3, stride), *norm_relu(out), conv(out, out, 3)], out, stride)


class PreActResNet(Classifier):
    """Three stages of (depth - 2) / 9 bottleneck units, of 4, 8 and 16 times the width.

    With depth 164, width 16 and 10 classes: 1.7 million parameters, as Huang et al. (arXiv
    1608.06993, table 2) count them. Images of at least 4 x 4 pixels.

    Args:
        image_shape: (channels, height, width).
        classes: number of outputs.
        depth: 9 n + 2 weighted layers, such as 164; 29 trains on a CPU.
        width: channels of the stem.

    Raises:
        StudyError: no such depth, or smaller images.
    """

    def __init__(self, image_shape: ImageShape, classes: int, depth: int = 164, width: int = 16) -> None:
        if depth < 11 or (depth - 2) % 9:
            raise StudyError(f"the depth of preact-resnet must be 9 n + 2, such as 29 or 164; got {depth}")
        at_least(image_shape, 4, f"preact-resnet{depth}")
        widths = (width, 4 * width, 8 * width, 16 * width)
        super().__init__(_stages(image_shape[0], widths, (depth - 2) // 9, bottleneck), widths[-1], classes)


class WideResNet(Classifier):
    """Three stages of (depth - 4) / 6 basic units, of 16, 32 and 64 times `width` channels.

    For 10 classes 36.5 million parameters at depth 28 and width 10, as in the paper's table 4, and 2.7
    million at 16 and 4. Without dropout. Images of at least 4 x 4 pixels.

    Args:
        image_shape: (channels, height, width).
        classes: number of outputs.
        depth: 6 n + 4 weighted layers, such as 16, 28, 40.
        width: the paper's widening factor k.

    Raises:
        StudyError: no such depth, or smaller images.
    """

    def __init__(self, image_shape: ImageShape, classes: int, depth: int = 28, width: int = 10) -> None:
        if depth < 10 or (depth - 4) % 6:
            raise StudyError(f"the depth of wide-resnet must be 6 n + 4, such as 16 or 28; got {depth}")
        at_least(image_shape, 4, f"wide-resnet{depth}-{width}")
        widths = (16, 16 * width, 32 * width, 64 * width)
        super().__init__(_stages(image_shape[0], widths, (depth - 4) // 6, basic), widths[-1], classes)


def _stages(
    channels: int, widths: tuple[int, ...], units: int, unit: Callable[[int, int, int], nn.Module]
) -> list[nn.Module]:
    """A stem and stages of `units` units each, the stem's width first; all but the first halve the image."""
    into, *stages = widths
    layers: list[nn.Module] = [conv(channels, into, 3)]
    for stage, out in enumerate(stages):
        for number in range(units):
            layers.append(unit(into, out, 2 if stage and not number else 1))
            into = out
    return [*layers, *norm_relu(into)]
