"""The Sobolev metrics for axes of very many channels, in log depth: the solve is a cyclic reduction.

Linear in the number of elements, with about ten operations per doubling of the channel count. Up to 16,384
channels `cdgrad.ops.eager` has fewer.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cdgrad.machine import has_float64
from cdgrad.metrics import Array, MeanSobolev, Sobolev
from cdgrad.ops import graphs, sobolev_weights
from cdgrad.ops.byte_cache import cached_by_bytes


def directed(x: Tensor, metric: Sobolev | MeanSobolev) -> Tensor:
    """The operator along axis 1 of `x`, of float32 or float64: a new tensor."""
    # Sums, and sums of sums, may exceed the largest float where the result does not; a power of two is exact.
    power = 2.0 ** -(2 * x.shape[1].bit_length() + 3) if x.dtype == torch.float64 else 1.0
    small = x * power if power < 1 else x
    y = _sobolev(small, metric) if isinstance(metric, Sobolev) else _mean_sobolev(small, metric)
    return y / power if power < 1 else y


def _sobolev(x: Tensor, metric: Sobolev) -> Tensor:
    """(I + lam A)^-1 x."""
    n = x.shape[1]
    mean, deviation = _split(x)
    weights = _weights(n, metric.lam, x.dtype, x.device)
    *levels, (last_pivot, wrap) = (graphs.lent(each, x) for each in weights)
    y = _solve_free(deviation, levels, last_pivot)
    if metric.boundary == "periodic":
        # The wrap-around edge is a rank-one term of A.
        wrap = _column(wrap, y)
        y = y - wrap * (wrap * deviation).sum(1, keepdim=True)
    return _join(mean, y)


def _mean_sobolev(x: Tensor, metric: MeanSobolev) -> Tensor:
    """mean + (lam A)^+ x: the deviation integrated twice, y_{m+1} = y_m - flux_m / (lam n^2).

    All in the running dtype: in float32 the rounding of the deviation alone, twice integrated, would
    be 1e-6 of the result at n = 8192.
    """
    wide = x.to(_running_dtype(x))
    mean = wide.mean(1, keepdim=True)
    flux = (wide - mean).cumsum(1)
    if metric.boundary == "periodic":
        flux = flux - flux.mean(1, keepdim=True)
    y = (flux - flux.cumsum(1)) * (1 / (metric.lam * x.shape[1] ** 2))
    return (y + (mean - y.mean(1, keepdim=True))).to(x.dtype)


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean along axis 1, in float64 where the device has it, and the deviation in x's dtype.

    Every metric passes the mean unchanged, so only the deviation is solved for. Where lam mu is
    large the result is all mean and the system close to singular on it; where it is small, a
    rounding error of the mean is amplified like a deviation. Both need the mean beyond float32.
    """
    mean = _mean(x)
    coarse = mean.to(x.dtype)
    return mean, x - coarse - (mean - coarse).to(x.dtype)


def _join(mean: Tensor, y: Tensor) -> Tensor:
    """y shifted to have that mean along axis 1."""
    return y + (mean - _mean(y)).to(y.dtype)


def _mean(x: Tensor) -> Tensor:
    return x.mean(1, keepdim=True, dtype=_running_dtype(x))


def _running_dtype(x: Tensor) -> torch.dtype:
    """The dtype of sums along the channel: float64, where the device has it."""
    return torch.float64 if has_float64(x.device) else x.dtype


class _Level(NamedTuple):
    """Weights of one step of the cyclic reduction, which eliminates the odd unknowns."""

    left: Array  # between odd j and even j, as a share of the diagonal of odd j; the same either way
    right: Array  # between odd j and even j + 1
    pivot: Array  # 1 / diagonal of odd j


def _solve_free(x: Tensor, levels: list[list[Tensor]], last_pivot: Tensor) -> Tensor:
    """(I + lam A)^-1 x along axis 1 with free ends, by cyclic reduction; about 4 n multiplications."""
    odds: list[Tensor] = []
    for left, right, _ in levels:
        odd = x[:, 1::2]
        odds.append(odd)
        even = x[:, 0::2].clone()
        m, k = even.shape[1], odd.shape[1]
        even[:, :k] += _column(left, x) * odd
        even[:, 1:] += _column(right, x) * odd[:, : m - 1]
        x = even
    x = x * last_pivot
    for (left, right, pivot), odd in zip(reversed(levels), reversed(odds), strict=True):
        m, k = x.shape[1], odd.shape[1]
        solved = odd * _column(pivot, x) + _column(left, x) * x[:, :k]
        solved[:, : m - 1] += _column(right, x) * x[:, 1:]
        both = x.new_empty((x.shape[0], m + k, *x.shape[2:]))
        both[:, 0::2], both[:, 1::2] = x, solved
        x = both
    return x


@cached_by_bytes(32 * 2**20)
def _reduction(n: int, lam: float) -> tuple[list[_Level], Array]:
    """The levels for n unknowns, and the last pivot; computed in float64 without cancellation.

    A row is kept as its sum and its couplings, never as its diagonal: with lam n^2 near 1e11 the
    diagonal 1 + 2 lam n^2 would have lost the 1, which is what makes the matrix invertible. All
    updates add positive numbers.
    """
    row_sum = np.ones(n)
    coupling = np.full(n - 1, min(lam * float(n) ** 2, 1e300))
    levels: list[_Level] = []
    while n > 1:
        left = np.concatenate([[0.0], coupling])
        right = np.concatenate([coupling, [0.0]])
        pivot = 1 / (row_sum + left + right)[1::2]
        left, right, odd_sum = left[1::2], right[1::2], row_sum[1::2]
        m, k = (n + 1) // 2, n // 2
        levels.append(_Level(left * pivot, (right * pivot)[: m - 1], pivot))
        row_sum = row_sum[0::2].copy()
        row_sum[:k] += left * pivot * odd_sum
        row_sum[1:] += (right * pivot * odd_sum)[: m - 1]
        coupling = (left * right * pivot)[: m - 1]
        n = m
    return levels, 1 / row_sum[:1]


@cached_by_bytes(64 * 2**20)
def _weights(n: int, lam: float, dtype: torch.dtype, device: torch.device) -> list[list[Tensor]]:
    """Left, right and pivot of every level, then the last pivot and the wrap, on the device.

    Raises:
        RuntimeError: a CUDA graph is being captured, which cannot hold a copy from the host.
    """
    graphs.refuse_upload(device, f"lam={lam} for {n} channels")
    levels, last_pivot = _reduction(n, lam)
    rest = [last_pivot, sobolev_weights.sobolev(n, lam).wrap]
    return [[torch.tensor(w, dtype=dtype, device=device) for w in each] for each in [*levels, rest]]


def _column(weights: Tensor, like: Tensor) -> Tensor:
    """`weights` along axis 1, broadcastable to `like`."""
    return weights.view(-1, *[1] * (like.ndim - 2))
