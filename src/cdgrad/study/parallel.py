"""How several processes train one network: what the training loop asks of them."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn


class Parallel(Protocol):
    """The processes that train one network together, each on its share of every batch.

    Gradients are averaged over the processes in the backward pass, by what `wrap` puts around the
    network. Every process evaluates all images; the first one, of `rank` 0, keeps the checkpoint.
    """

    rank: int
    size: int

    def wrap(self, model: nn.Module) -> nn.Module:
        """The network to call in training; its parameters are those of `model`."""
        ...

    def share(self, rows: Tensor) -> Tensor:
        """Which of a batch's images this process takes."""
        ...

    def total(self, value: Tensor) -> Tensor:
        """The sum of `value` over the processes."""
        ...


class Alone:
    """One process."""

    rank, size = 0, 1

    def wrap(self, model: nn.Module) -> nn.Module:
        return model

    def share(self, rows: Tensor) -> Tensor:
        return rows

    def total(self, value: Tensor) -> Tensor:
        return value
