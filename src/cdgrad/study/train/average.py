"""An exponential moving average of a network's weights, to evaluate instead of the last ones."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average w <- d w + (1 - d) v over the values v that the weights take, step by step.

    The decay of step t is d = min(decay, (1 + t) / (10 + t)), so that a short run does not remember
    its initialization. The running statistics of batch norm, like all floating-point buffers, are
    averaged with the same decay, because they belong to the weights that made them; other buffers,
    such as counters, are copied.

    Attributes:
        model: a copy of the network that holds the average.
        steps: how many values have been averaged.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.steps = 0
        self._decay = decay
        mine = [*self.model.parameters(), *self.model.buffers()]
        theirs = [*model.parameters(), *model.buffers()]
        pairs = list(zip(mine, theirs, strict=True))
        self._averaged = [(a, b) for a, b in pairs if a.is_floating_point()]
        self._copied = [(a, b) for a, b in pairs if not a.is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present weights. Cost: one read and write of each."""
        decay = min(self._decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        averages: list[Tensor] = [a for a, _ in self._averaged]
        torch._foreach_lerp_(averages, [b for _, b in self._averaged], 1 - decay)  # pyright: ignore
        for a, b in self._copied:
            a.copy_(b)
