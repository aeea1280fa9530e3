"""The moving average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from cdgrad._torch_private import foreach_lerp_


class MovingAverage:
    """The average w <- d w + (1 - d) v over the values v that the weights take, step by step.

    The decay of step t, from 0, is d = min(decay, (1 + t) / (10 + t)), so that a short run does not keep
    its initialization. The running statistics of batch norm, like all floating-point buffers, are averaged
    with the same decay, because they belong to the weights; other buffers, such as counters, are copied.
    `torch.optim.swa_utils.AveragedModel` reads its counter from the device in every update; this one counts
    on the host, and `update` reads 1 - d from the device, so that a CUDA graph can hold it.

    Attributes:
        module: the averaged network.
        steps: how many updates were begun.

    Cost of an update: one read and one write of each weight.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.steps = 0
        self._decay = decay
        device = next(model.parameters()).device
        self._weight = torch.zeros((), dtype=torch.float64, device=device)  # 1 - d of the step

    def begin_step(self) -> None:
        """Set the decay of the next update, from the host."""
        self._weight.fill_(1 - min(self._decay, (1 + self.steps) / (10 + self.steps)))
        self.steps += 1

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights of `model`; reads nothing from the host that changes from step to step."""
        values = [*model.parameters(), *model.buffers()]
        pairs = list(zip([*self.module.parameters(), *self.module.buffers()], values, strict=True))
        weights: dict[torch.dtype, Tensor] = {}
        averages: list[Tensor] = []
        moved: list[Tensor] = []
        for average, value in pairs:
            if average.is_floating_point():
                if average.dtype not in weights:  # a conversion is a kernel on a GPU
                    weights[average.dtype] = self._weight.to(average.dtype)
                averages.append(average)
                moved.append(value.detach())
            else:
                average.copy_(value)
        foreach_lerp_(averages, moved, [weights[average.dtype] for average in averages])
