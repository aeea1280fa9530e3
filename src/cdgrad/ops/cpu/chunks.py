"""The launch of `cdgrad.ops.cpu.tall`: which tensors it takes, how they are divided, and its weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cdgrad.metrics import Array, MeanSobolev, Metric, Sobolev, is_periodic
from cdgrad.ops import sobolev_weights
from cdgrad.ops.byte_cache import cached_by_bytes
from cdgrad.ops.memory_layout import Columns

# Of up to 2,048 channels, blocks of whole columns are several pages wide, and read memory once. A row should
# be a few cache lines at least.
CHANNELS, _LEAST_COLUMNS = 2048, 128
CHUNK_BYTES = 384 * 2**10  # half of what a core's second cache holds, or less
WIDEST = 2560  # columns of a chunk: carried values of more would crowd the caches

Run = Callable[[NDArray[np.int64], object], None]
"""Runs the compiled function on a job; holds what it is given meanwhile."""


def takes(columns: Columns) -> bool:
    """Whether a float32 tensor of these columns is divided into chunks."""
    return (
        columns.n > CHANNELS
        and len(columns.axes) == 1
        and columns.axes[0][1] == 1
        and columns.axes[0][0] >= _LEAST_COLUMNS
    )


def directed_(
    grad: Tensor,
    columns: Columns,
    metric: Metric,
    scale: float,
    start: Array,
    threads: int,
    thread: int,
    run: Run,
) -> None:
    """The operator in place, in three phases.

    Args:
        grad: what `takes` takes.
        columns: its columns.
        metric: not `L2`.
        scale: as the kernels of blocks take it.
        start: weights of the mean-weighted metric, as those kernels take them, (4, n).
        threads: how many run the job.
        thread: the address of a C function that returns the number of the thread that calls it, or 0.
        run: runs a job.
    """
    from cdgrad.ops.cpu import tall

    number = columns.axes[0][0]
    vectors = -(-number // tall.LANES)
    parts = -(-number // WIDEST)
    height = max(CHUNK_BYTES // (4 * tall.LANES * -(-vectors // parts)) // tall.ROWS, 1) * tall.ROWS
    chunks = -(-columns.n // height)
    weights, factors = _weights(metric, columns.n, height)
    if isinstance(metric, MeanSobolev):
        weights = np.zeros((tall.WEIGHT_ROWS, chunks * height))
        weights[tall.START, : columns.n], weights[tall.WRAP, : columns.n] = start[:2]
    carried = _memory((chunks + 1) * tall.CARRIES * vectors * tall.LANES)
    counters, factor = np.zeros(threads + 1, np.int64), np.array([scale])
    job = np.array(
        [
            grad.data_ptr(),
            columns.n,
            columns.step * 4,
            number,
            parts,
            height,
            chunks,
            is_periodic(metric),
            weights.ctypes.data,
            factors.ctypes.data,
            factor.ctypes.data,
            carried.ctypes.data,
            counters.ctypes.data,
            threads,
            thread,
            tall.SUMS,
        ],
        np.int64,
    )
    held = (grad, weights, factors, carried, factor, counters, job)
    for phase in (tall.SUMS, tall.CARRY, tall.SOLVE):
        job[tall.PHASE], counters[:] = phase, 0
        run(job, held)
    _spare[:] = [carried]


def _memory(size: int) -> Array:
    """So many float64. Those of the last call are used again: new memory is cleared by the system first."""
    try:
        memory = _spare.pop()
    except IndexError:
        return np.empty(size)
    return memory[:size] if len(memory) >= size else np.empty(size)


_spare: list[Array] = []


@cached_by_bytes(32 * 2**20)
def _weights(metric: Metric, n: int, height: int) -> tuple[Array, Array]:
    """Weights of every channel and factors of every chunk; all 0 but for Sobolev.

    With y_m = g_m + before_m y_{m-1} and x_m = inverse_m y_m + ratio_m x_{m+1}, for a chunk alone y at its
    last channel is sum_m to_last_m g_m, and x at its first sum_m to_first_m g_m. What enters is multiplied by
    the factors: y before it on the way to its last channel, x behind it to x at its first, and y before it to
    x at its first.
    """
    from cdgrad.ops.cpu import tall

    chunks = -(-n // height)
    weights, factors = np.zeros((tall.WEIGHT_ROWS, chunks * height)), np.zeros((3, chunks))
    if not isinstance(metric, Sobolev):
        return weights, factors
    solve = sobolev_weights.sobolev(n, metric.lam)
    weights[tall.BEFORE, 1:n] = solve.ratio[:-1]
    rows = {tall.INVERSE: solve.inverse_pivot, tall.RATIO: solve.ratio, tall.WRAP: solve.wrap}
    for row, values in rows.items():
        weights[row, :n] = values
    by_chunk = weights.reshape(tall.WEIGHT_ROWS, chunks, height)
    before, ratio = by_chunk[tall.BEFORE], by_chunk[tall.RATIO]
    to_last, to_first = by_chunk[tall.TO_LAST], by_chunk[tall.TO_FIRST]
    down: Array = np.ones((chunks, height))  # of inverse_m y_m in x at the first channel
    down[:, 1:] = np.cumprod(ratio[:, :-1], axis=1)
    to_last[:, -1] = 1.0
    to_first[:] = down * by_chunk[tall.INVERSE]
    for m in range(height - 2, -1, -1):
        to_last[:, m] = to_last[:, m + 1] * before[:, m + 1]
        to_first[:, m] += to_first[:, m + 1] * before[:, m + 1]
    factors[0] = before[:, 0] * to_last[:, 0]
    factors[1] = down[:, -1] * ratio[:, -1]
    factors[2] = before[:, 0] * to_first[:, 0]
    return weights, factors
