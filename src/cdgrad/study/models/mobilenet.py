"""MobileNetV2 (Sandler et al., 2018, arXiv 1801.04381), with the strides of small images."""

from __future__ import annotations

from torch import Tensor, nn

from cdgrad.study.models.layers import Classifier, ImageShape, at_least, conv

# The paper's table 2: expansion, channels, blocks, stride; the first of its two early strides is 1 here.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_LAST = 1280


class InvertedResidual(nn.Module):
    """1 x 1 to more channels, 3 x 3 depthwise, 1 x 1 to few; added to the input where shapes agree."""

    def __init__(self, into: int, out: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = expansion * into
        expand = _conv_norm_relu6(into, inner, 1) if expansion > 1 else []
        depthwise = [conv(inner, inner, 3, stride, groups=inner), nn.BatchNorm2d(inner), nn.ReLU6()]
        self.layers = nn.Sequential(*expand, *depthwise, conv(inner, out, 1), nn.BatchNorm2d(out))
        self.adds = stride == 1 and into == out

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, out, height / stride, width / stride) of features (n, into, height, width)."""
        return x + self.layers(x) if self.adds else self.layers(x)


class MobileNetV2(Classifier):
    """The paper's table 2 with strides 1 in the stem and the second stage: three halvings, not five.

    3.50 million parameters for 1000 classes at width 1, where the paper says 3.4, and 2.24 million for
    10. The strides change no parameter.

    Args:
        image_shape: (channels, height, width), of at least 8 x 8 pixels.
        classes: number of outputs.
        width: factor on all channels, which are rounded to multiples of 8; the last layer's never shrink.

    Raises:
        StudyError: smaller images.
    """

    def __init__(self, image_shape: ImageShape, classes: int, width: float = 1.0) -> None:
        at_least(image_shape, 8, "mobilenet-v2")
        into = _eights(32 * width)
        layers = _conv_norm_relu6(image_shape[0], into, 3)
        for expansion, channels, blocks, first_stride in _STAGES:
            out = _eights(channels * width)
            for block in range(blocks):
                layers.append(InvertedResidual(into, out, expansion, 1 if block else first_stride))
                into = out
        last = _eights(_LAST * max(width, 1.0))
        super().__init__([*layers, *_conv_norm_relu6(into, last, 1)], last, classes)


def _conv_norm_relu6(into: int, out: int, kernel: int) -> list[nn.Module]:
    return [conv(into, out, kernel), nn.BatchNorm2d(out), nn.ReLU6()]


def _eights(channels: float) -> int:
    """The nearest multiple of 8 that is at least 8 and at least nine tenths of `channels`."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest
