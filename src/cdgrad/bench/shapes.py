"""The convolution weights of well-known networks, as tables of shapes: no model, no download."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

# The elements of the wide layer, whatever its number of output channels.
WIDE_ELEMENTS = 9 * 2**20
WIDE_CHANNELS = (64, 256, 1024, 4096, 16384)
# Output and input channels of 1 x 1 layers whose rows are no multiple of a cache line.
UNALIGNED = {1024: 10742, 16384: 671}


class Conv(NamedTuple):
    """A convolution: output channels, input channels, kernel size, groups, and the order in memory."""

    out: int
    into: int
    kernel: int
    groups: int = 1
    channels_last: bool = False

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the weight."""
        return self.out, self.into // self.groups, self.kernel, self.kernel

    def gradient(self) -> Tensor:
        """Noise of the weight's shape, of the size that gradients have."""
        import torch  # here, so that the names of the networks need no torch

        grad = torch.randn(self.shape) * 1e-3
        return grad.to(memory_format=torch.channels_last) if self.channels_last else grad


def resnet18_imagenet() -> list[Conv]:
    """With the 7 x 7 stem: 20 convolutions, 11.2 million weights."""
    layers, width = [Conv(64, 3, 7)], 64
    for stage, out in enumerate((64, 128, 256, 512)):
        layers += [Conv(out, width, 3), *[Conv(out, out, 3)] * 3]
        layers += [Conv(out, width, 1)] if stage else []
        width = out
    return layers


def resnet18_channels_last() -> list[Conv]:
    """The same, each position's input channels side by side in memory."""
    return [layer._replace(channels_last=True) for layer in resnet18_imagenet()]


def resnet50() -> list[Conv]:
    """53 convolutions, 23.5 million weights."""
    layers, width = [Conv(64, 3, 7)], 64
    for inner, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            layers += [Conv(inner, width, 1), Conv(inner, inner, 3), Conv(4 * inner, inner, 1)]
            layers += [] if block else [Conv(4 * inner, width, 1)]
            width = 4 * inner
    return layers


def densenet121() -> list[Conv]:
    """Growth 32, compression 1/2: 120 convolutions, 6.9 million weights."""
    layers, width = [Conv(64, 3, 7)], 64
    for stage, blocks in enumerate((6, 12, 24, 16)):
        if stage:
            layers.append(Conv(width // 2, width, 1))
            width //= 2
        for _ in range(blocks):
            layers += [Conv(128, width, 1), Conv(32, 128, 3)]
            width += 32
    return layers


def mobilenet_v2() -> list[Conv]:
    """52 convolutions, 17 of them depthwise, 2.2 million weights."""
    layers, width = [Conv(32, 3, 3)], 32
    stages = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
    for expansion, out, blocks in stages:
        for _ in range(blocks):
            inner = expansion * width
            layers += [Conv(inner, width, 1)] if expansion > 1 else []
            layers += [Conv(inner, inner, 3, groups=inner), Conv(out, inner, 1)]
            width = out
    return [*layers, Conv(1280, width, 1)]


def _wide(out: int) -> Callable[[], list[Conv]]:
    return lambda: [Conv(out, WIDE_ELEMENTS // 9 // out, 3)]


def _unaligned(out: int) -> Callable[[], list[Conv]]:
    return lambda: [Conv(out, UNALIGNED[out], 1)]


NETWORKS: dict[str, Callable[[], list[Conv]]] = {
    "resnet18-imagenet": resnet18_imagenet,
    "resnet18-channels-last": resnet18_channels_last,
    "resnet50": resnet50,
    "densenet121": densenet121,
    "mobilenet-v2": mobilenet_v2,
    **{f"wide-{out}": _wide(out) for out in WIDE_CHANNELS},
    **{f"wide-{out}-unaligned": _unaligned(out) for out in UNALIGNED},
}
