"""Plain stacks of convolutions (Simonyan and Zisserman, 2014, arXiv 1409.1556), with batch norm."""

from __future__ import annotations

from torch import nn

from cdgrad.study import StudyError
from cdgrad.study.models.layers import Classifier, ImageShape, at_least, conv_norm_relu

# Convolutions before each of the five poolings: configurations A, B, D and E of the paper's table 1.
_CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(Classifier):
    """The convolutions of the paper, each with batch norm, and one linear layer in place of its three.

    Those three hold 123.6 of the 138 million parameters of the paper's VGG-16 and suit 224 x 224
    pixels; the convolutions are its own, 14.7 million.

    Args:
        image_shape: (channels, height, width), of at least 32 x 32 pixels: five poolings halve them.
        classes: number of outputs.
        depth: 11, 13, 16 or 19.
        width: channels of the first stage; later ones have 2, 4, 8 and 8 times as many.

    Raises:
        StudyError: no such depth, or smaller images.
    """

    def __init__(self, image_shape: ImageShape, classes: int, depth: int = 16, width: int = 64) -> None:
        if depth not in _CONVOLUTIONS:
            known = ", ".join(map(str, _CONVOLUTIONS))
            raise StudyError(f"the depth of a VGG must be one of {known}; got {depth}")
        at_least(image_shape, 32, f"vgg{depth}-bn")
        layers: list[nn.Module] = []
        into = image_shape[0]
        for count, factor in zip(_CONVOLUTIONS[depth], (1, 2, 4, 8, 8), strict=True):
            for _ in range(count):
                layers += conv_norm_relu(into, factor * width, 3)
                into = factor * width
            layers.append(nn.MaxPool2d(2))
        super().__init__(layers, into, classes)
