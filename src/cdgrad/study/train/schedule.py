"""The steps of a schedule: the order of the images, the learning rate, the update and its rounding."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from cdgrad.study.spec import Schedule


def batches(n: int, size: int, order: np.random.Generator, device: torch.device) -> Iterator[Tensor]:
    """The rows of one epoch's batches: a permutation of n images, cut into pieces of `size`."""
    rows = torch.tensor(order.permutation(n)).to(device)
    yield from (rows[start : start + size] for start in range(0, n, size))


def rate_factor(schedule: Schedule, step: int, steps: int) -> float:
    """The learning rate of a step over its initial value; `step` counts from 0, an epoch has `steps`."""
    warmup, total = schedule.warmup * steps, schedule.epochs * steps
    if step < warmup:
        return (step + 1) / warmup
    if schedule.decay == "none":
        return 1.0
    if schedule.decay == "steps":
        return schedule.step_factor ** (step // (schedule.step_epochs * steps))
    return (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


class Rates:
    """The learning rates of an optimizer's parameter groups: on the host, or on the device for a CUDA graph.

    Attributes:
        initial: of each group.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.initial = [float(group["lr"]) for group in optimizer.param_groups]
        self._optimizer = optimizer
        self._on_device: list[Tensor] = []

    def move_to(self, device: torch.device) -> None:
        """From now on, the optimizer reads its rates from float32 tensors that `set` writes."""
        self._on_device = [torch.zeros((), device=device) for _ in self.initial]
        for group, rate in zip(self._optimizer.param_groups, self._on_device, strict=True):
            group["lr"] = rate

    def set(self, factor: float, rounding: int = 1) -> None:
        """Give each group `factor` times its initial rate, times the k of an arm's rounding."""
        for i, (group, initial) in enumerate(zip(self._optimizer.param_groups, self.initial, strict=True)):
            rate = initial * factor * rounding
            group["lr"] = self._on_device[i].fill_(rate) if self._on_device else rate


@torch.no_grad()
def step_with_rounding(optimizer: torch.optim.Optimizer, k: int) -> None:
    """One step of `optimizer`, whose learning rates are k times the intended ones, with its updates divided
    by k.

    w + (w' - w) / k, with w' the weights after the step: the step of the intended learning rate in exact
    arithmetic, if the update is proportional to the learning rate. Costs a copy of the weights where k > 1.
    """
    if k == 1:
        optimizer.step()
        return
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in weights]
    optimizer.step()
    for weight, old in zip(weights, before, strict=True):
        weight.sub_(old).div_(k).add_(old)
