"""One step of training, on memory that stays where it is: the same function alone and in a CUDA graph.

All that changes from step to step is read from tensors on the device: the rows of the batch, the learning
rates and the weight of the moving average. The host writes them before the step. The step itself waits for
nothing and reads no counter of the host, so that a graph of it can be replayed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from cdgrad.study import data as datasets
from cdgrad.study.train.arms import direct_and_sum
from cdgrad.study.train.evaluate import mistakes
from cdgrad.study.train.schedule import step_with_rounding

if TYPE_CHECKING:
    from cdgrad.study.train.state import TrainingState


class Buffers:
    """What steps read and write besides network and optimizer, always at the same addresses.

    Attributes:
        loss, wrong: sums of the losses and of the mistakes over an epoch's training images so far.
        products: of the last gradient g of an epoch: g . P g, g . g and P g . P g.
        evaluated: mistakes on the split that was evaluated last.
    """

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.wrong = torch.zeros((), dtype=torch.int64, device=device)
        self.products = torch.ones(3, dtype=torch.float64, device=device)
        self.evaluated = torch.zeros((), dtype=torch.int64, device=device)
        self._rows: dict[int, Tensor] = {}

    def start_epoch(self) -> None:
        """Begin new sums."""
        self.loss.zero_()
        self.wrong.zero_()

    def write_rows(self, rows: Tensor) -> None:
        """Set the rows of the next step."""
        size = len(rows)
        if size not in self._rows:
            self._rows[size] = torch.zeros_like(rows)
        self._rows[size].copy_(rows)

    def rows(self, size: int) -> Tensor:
        """The rows of a step with a batch of `size` images."""
        return self._rows[size]


def training_step(state: TrainingState, size: int, *, compare: bool) -> None:
    """One update of the weights, by the batch in ``state.buffers``.

    Args:
        state: the run.
        size: number of images in the batch.
        compare: whether to store what the operator does to this gradient in ``state.buffers.products``.
    """
    _backward(state, state.buffers.rows(size))
    match_strides(state.optimizer)
    if compare and state.handle is not None:
        state.buffers.products.copy_(direct_and_sum(state.handle))
    elif state.handle is not None and state.schedule.clip:
        state.handle.apply()  # before clipping; `apply` directs a gradient anew whenever it is called
    if state.schedule.clip:
        clip_grad_norm_(state.model.parameters(), state.schedule.clip)
    step_with_rounding(state.optimizer, state.setting.rounding)
    if state.average:
        state.average.update(state.model)


def match_strides(optimizer: torch.optim.Optimizer) -> None:
    """Give the gradients of a fused optimizer the strides of their weights, without a copy.

    PyTorch lets the two differ along axes of one entry, as in 1 x 1 kernels in the format channels last, and
    fused CUDA kernels refuse that.
    """
    for group in optimizer.param_groups:
        for weight in group["params"] if group.get("fused") else ():
            grad = weight.grad
            if grad is None or grad.stride() == weight.stride():
                continue
            if all(
                n == 1 or a == b for n, a, b in zip(grad.shape, grad.stride(), weight.stride(), strict=True)
            ):
                weight.grad = grad.as_strided(weight.shape, weight.stride())


def _backward(state: TrainingState, rows: Tensor) -> None:
    """Compute the gradient of the mean loss over a batch; add its losses and mistakes to the sums."""
    state.optimizer.zero_grad()
    for micro_batch in _micro_batches(state, rows):
        images, labels, count = state.ranks.share(*micro_batch)
        with state.precision():
            logits = state.wrapped(images)
            loss = cross_entropy(logits, labels, label_smoothing=state.schedule.label_smoothing)
        # The mean over the batch of all ranks, whose gradients the backward pass averages.
        weight = state.ranks.size * count / len(rows)
        (loss if weight == 1 else loss * weight).backward()
        state.buffers.loss += loss.detach() * count
        state.buffers.wrong += mistakes(logits.detach(), labels, count)


def _micro_batches(state: TrainingState, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    task = state.setting.tables()[0]
    images = datasets.augment(state.training.images(rows), task.augment, state.augmentation)
    labels, parts = state.training.labels[rows], state.schedule.accumulate
    if parts == 1:
        yield images, labels
    else:
        yield from zip(images.chunk(parts), labels.chunk(parts), strict=True)
