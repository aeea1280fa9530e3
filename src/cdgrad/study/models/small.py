"""The network of the quickstart: three convolutions, seconds to train on a CPU."""

from __future__ import annotations

from torch import Tensor, nn

from cdgrad.study.models.layers import ImageShape, at_least, conv_norm_relu


class SmallCNN(nn.Module):
    """Three 3 x 3 convolutions with batch norm, the later two after halving the image; a linear head.

    Args:
        image_shape: (channels, height, width).
        classes: number of outputs.
        width: channels of the first convolution; the later two have twice as many.

    Raises:
        StudyError: images below 2 x 2 pixels.
    """

    def __init__(self, image_shape: ImageShape, classes: int, width: int = 16) -> None:
        super().__init__()
        at_least(image_shape, 2, "small-cnn")
        self.features = nn.Sequential(
            *conv_norm_relu(image_shape[0], width, 3),
            *conv_norm_relu(width, 2 * width, 3),
            nn.MaxPool2d(2),
            *conv_norm_relu(2 * width, 2 * width, 3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(2 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape (n, classes) of images (n, channels, height, width)."""
        return self.head(self.features(images))
