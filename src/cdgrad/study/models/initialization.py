"""Initializations other than a network's own."""

from __future__ import annotations

import math

import torch
from torch import nn

_CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
)  # fmt: skip


@torch.no_grad()
def initialize_fan_out(model: nn.Module) -> None:
    """Draw every convolution's weight from N(0, 2 / (k k O)), k x k its kernel and O its output channels.

    Biases of convolutions become 0; all other parameters stay. The draws come from the global random state.

    Source: K. He, X. Zhang, S. Ren, J. Sun, "Delving deep into rectifiers", 2015, arXiv 1502.01852, equation
        14.
    """
    for layer in model.modules():
        if isinstance(layer, _CONVOLUTIONS):
            fan = math.prod(layer.kernel_size) * layer.out_channels
            layer.weight.normal_(0, math.sqrt(2 / fan))
            if layer.bias is not None:
                layer.bias.zero_()
