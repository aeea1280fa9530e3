"""The reference implementation: the operator from its definition, dense and in float64.

Every backend is tested against `directed`. It costs O(n^3) time and O(n^2) memory and is never used
in training.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from cdgrad.metrics import L2, Array, Metric


def gram(metric: Metric, n: int) -> Array:
    """The n x n Gram matrix of the channel's unit vectors: ``G[a, b] = <e_a, e_b>``."""
    units = np.eye(n)
    return np.stack([metric.inner_product(unit[:, None], units) for unit in units])


def directed(grad: ArrayLike, metric: Metric, dim: int = 0, groups: int = 1) -> Array:
    """The Riesz representative of `grad`: solves ``<g~, k>_metric = <g, k>_L2`` for every k.

    Args:
        grad: the ordinary gradient, any shape.
        metric: a `cdgrad.Metric`.
        dim: the channel axis.
        groups: the axis is that many consecutive intervals, each a channel axis of its own.

    Returns:
        float64 array of the shape of `grad`.
    """
    columns = np.moveaxis(np.asarray(grad, dtype=np.float64), dim, 0)
    out = np.empty_like(columns)
    n = len(columns) // groups
    for start in range(0, len(columns), n):
        g = columns[start : start + n].reshape(n, -1)
        solution = np.linalg.solve(gram(metric, n), gram(L2(), n) @ g)
        out[start : start + n] = solution.reshape(columns[start : start + n].shape)
    return np.moveaxis(out, 0, dim)
