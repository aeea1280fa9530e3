"""The GPU kernels, interpreted, on random shapes, strides, dtypes, metrics and means.

CDGRAD_TRITON_CASES=2000 runs as many cases; without it a sample. A case is found again by its number.
"""

import os

import numpy as np
import pytest
import torch

from cdgrad import MeanSobolev, ReweightedL2, Sobolev
from cdgrad.ops import eager
from cdgrad.ops.local import as_channels

pytest.importorskip("triton")
from cdgrad.ops.triton.launch import Plan, refusal
from cdgrad.ops.triton.tables import Tile

CASES = int(os.environ.get("CDGRAD_TRITON_CASES", "30"))
BOUNDS = {torch.float32: 1e-6, torch.float64: 1e-8, torch.bfloat16: 2**-7, torch.float16: 2**-9}
# Small: one, two or four groups of columns beside each other, and several tiles beyond 32 channels.
TILES = {size: Tile(8, 4, 4, 1) for size in (2, 4, 8)}


def case(number):
    """Gradient, channel axis, groups and metric."""
    rng = np.random.default_rng(number)
    groups = int(rng.choice([1, 1, 1, 2, 3]))
    n = int(rng.integers(2, 130)) if number % 50 else int(2 ** rng.uniform(7, 14))
    others = rng.integers(1, 4, size=rng.integers(0, 4)).tolist()
    dim = int(rng.integers(0, len(others) + 1))
    shape = [*others[:dim], groups * n, *others[dim:]]
    if n > 130:
        groups, shape, dim = 1, [n, 2], 0
    order = rng.permutation(len(shape)).tolist()
    gap = [int(rng.integers(1, 3)) for _ in shape]
    memory = torch.empty([shape[axis] * gap[axis] for axis in order])
    x = memory[tuple(slice(None, None, gap[axis]) for axis in order)].permute(*np.argsort(order).tolist())
    mean = float(rng.choice([0.0, 1.0, 100.0]))
    x.copy_(torch.as_tensor(rng.standard_normal(shape)) + mean)
    dtype = list(BOUNDS)[int(rng.choice(4, p=[0.55, 0.15, 0.2, 0.1]))]
    grad = torch.empty_strided(x.shape, x.stride(), dtype=dtype).copy_(x)
    lam = float(10 ** rng.uniform(-6, 3))
    metrics = [ReweightedL2(lam), *(f(lam, b) for f in (Sobolev, MeanSobolev) for b in ("free", "periodic"))]
    metric = metrics[int(rng.integers(5))]
    if dtype == torch.float16 and not isinstance(metric, Sobolev):
        metric = Sobolev(lam)  # the others amplify: 1e6 is more than float16 holds
    return grad, dim, groups, metric


@pytest.mark.parametrize("first", range(0, CASES, 10))
def test_random_gradients(first):
    for number in range(first, min(first + 10, CASES)):
        grad, dim, groups, metric = case(number)
        if refusal(grad, dim, groups):
            continue
        exact = eager.directed(as_channels(grad.double(), dim, groups), metric)
        Plan([(grad, dim, groups)], metric, TILES).run([grad])
        difference = as_channels(grad.double(), dim, groups) - exact
        error = float(difference.norm() / exact.norm())
        assert error <= BOUNDS[grad.dtype], (number, tuple(grad.shape), grad.stride(), dim, groups, metric)
