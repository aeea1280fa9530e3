"""The rows of the contract suite: every implementation of the operator, on numpy arrays."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

import cdgrad
from cdgrad import Metric

Operator = Callable[[NDArray[np.floating], Metric, int, int], NDArray[np.floating]]


def torch_out_of_place(x, metric, dim=0, groups=1):
    return cdgrad.channel_directed(torch.from_numpy(x), metric, dim, groups).numpy()


def torch_in_place(backend):
    def run(x, metric, dim=0, groups=1):
        grad = torch.from_numpy(x.copy())
        cdgrad.channel_directed_([grad], metric, dim, groups, backend=backend)
        return grad.numpy()

    return run


BACKENDS: dict[str, Operator] = {
    "channel_directed": torch_out_of_place,
    "eager": torch_in_place("eager"),
}
