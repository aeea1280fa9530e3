"""Residual networks for small images (He et al., Deep Residual Learning, 2015, arXiv 1512.03385)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from cdgrad.study import StudyError
from cdgrad.study.models.layers import Classifier, ImageShape, at_least, conv, conv_norm_relu


class PaddedShortcut(nn.Module):
    """Every second pixel, and zeros for the new channels: the paper's option A, without parameters."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.stride, self.new = stride, out - into

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, out, height / stride, width / stride) of features (n, into, height, width)."""
        before = self.new // 2
        return functional.pad(
            x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.new - before)
        )


def projection(into: int, out: int, stride: int) -> nn.Sequential:
    """A 1 x 1 convolution with batch norm: the paper's option B."""
    return nn.Sequential(conv(into, out, 1, stride), nn.BatchNorm2d(out))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm, and a shortcut around them."""

    def __init__(self, into: int, out: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *conv_norm_relu(into, out, 3, stride), conv(out, out, 3), nn.BatchNorm2d(out)
        )
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, out, height / stride, width / stride) of features (n, into, height, width)."""
        return functional.relu(self.residual(x) + self.shortcut(x))


class CifarResNet(Classifier):
    """Section 4.2 of the paper: three stages of (depth - 2) / 6 blocks, of 1, 2 and 4 times the width.

    With the width 16 and 10 classes: 0.27 million parameters at depth 20, 0.85 million at 56, as in
    the paper's table 6; depth 8 has 0.08 million, for a CPU. Images of at least 4 x 4 pixels.

    Args:
        image_shape: (channels, height, width).
        classes: number of outputs.
        depth: 6 n + 2 weighted layers, such as 8, 20, 32, 44, 56, 110.
        width: channels of the first stage.
        shortcut: where a stage begins, ``"pad"``: zeros for the new channels (option A, without parameters),
            or ``"projection"``: a 1 x 1 convolution with batch norm (option B).

    Raises:
        StudyError: no such depth or shortcut, or smaller images.
    """

    def __init__(
        self, image_shape: ImageShape, classes: int, depth: int = 20, width: int = 16, shortcut: str = "pad"
    ) -> None:
        if shortcut not in ("pad", "projection"):
            raise StudyError(f'shortcut must be "pad" or "projection"; got {shortcut!r}')
        if depth < 8 or (depth - 2) % 6:
            raise StudyError(f"the depth of a CIFAR ResNet must be 6 n + 2, such as 20 or 56; got {depth}")
        at_least(image_shape, 4, f"resnet{depth}")
        layers = conv_norm_relu(image_shape[0], width, 3)
        into = width
        for out in (width, 2 * width, 4 * width):
            for _ in range((depth - 2) // 6):
                stride = 1 if out == into else 2
                widen = projection if shortcut == "projection" else PaddedShortcut
                around = nn.Identity() if out == into else widen(into, out, stride)
                layers.append(BasicBlock(into, out, stride, around))
                into = out
        super().__init__(layers, into, classes)


class ResNet18(Classifier):
    """The paper's 18 layers of table 1 with a stem for small images: 3 x 3, stride 1, no pooling.

    11.17 million parameters for 10 classes at width 64. The stem aside, the convolutions are those of
    the network for ImageNet: its 11.69 million (torchvision) less 1000 classes and the 7 x 7 stem.

    Args:
        image_shape: (channels, height, width), of at least 8 x 8 pixels.
        classes: number of outputs.
        width: channels of the first of four stages; each later one has twice as many.

    Raises:
        StudyError: smaller images.
    """

    def __init__(self, image_shape: ImageShape, classes: int, width: int = 64) -> None:
        at_least(image_shape, 8, "resnet18")
        layers = conv_norm_relu(image_shape[0], width, 3)
        into = width
        for out in (width, 2 * width, 4 * width, 8 * width):
            stride = 1 if out == into else 2
            shortcut = nn.Identity() if out == into else projection(into, out, stride)
            layers += [BasicBlock(into, out, stride, shortcut), BasicBlock(out, out, 1, nn.Identity())]
            into = out
        super().__init__(layers, into, classes)
