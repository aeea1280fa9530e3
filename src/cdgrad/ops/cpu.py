"""The operator on CPU tensors: one list of blocks over all tensors, shared by a few threads.

Plans (which blocks, which weights) depend on shapes, strides and the metric alone and are remembered;
a call fills in the addresses. Threads come from a pool of our own and run compiled code without the
interpreter lock. Why not numba's parallel loops: its portable threading layer aborts the process when
two Python threads enter it, and its OpenMP layer hangs after a fork.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdgrad.metrics import Array, MeanSobolev, Metric, ReweightedL2, Sobolev
from cdgrad.ops import coefficients
from cdgrad.ops.columns import Columns, columns_of

# A block is this many bytes, half of a common second-level cache, but as wide as the first bound below
# as long as the second still holds it: wide rows are what memory is fast at, and of 16,384 channels
# nothing useful fits the second level.
_BLOCK_BYTES = 512 * 1024
_WIDEST, _WIDE_ENOUGH, _NARROWEST, _STRIDED = 512, 256, 64, 64
_FIELDS = 13
_SHARED_CACHE_BYTES = 8 * 1024 * 1024
_WORTH_A_THREAD = 1 << 17  # elements: below, waking a thread takes as long as the work

# The dtype numba sees, and the one of intermediate results. numpy has no bfloat16; numba's half is for GPUs.
_STORED: dict[torch.dtype, tuple[Any, Any]] = {
    torch.float32: (np.float32, np.float32),
    torch.float64: (np.float64, np.float64),
    torch.bfloat16: (np.uint16, np.float32),
    torch.float16: (np.int16, np.float32),
}
# The functions of `cdgrad.ops.sweeps`, which is imported on first use: numba takes half a second.
_ENTRIES: dict[type[Metric], str] = {
    ReweightedL2: "reweighted",
    Sobolev: "sobolev",
    MeanSobolev: "mean_sobolev",
}
_Form = tuple[torch.Size, tuple[int, ...], int, int]  # shape, strides, channel axis, groups


def refusal(grad: Tensor, metric: Metric, dim: int, groups: int) -> str | None:
    """Why the kernels cannot take this gradient, as a sentence; None if they can."""
    if grad.device.type != "cpu":
        return f"the fused CPU kernels cannot reach a tensor on {grad.device.type}"
    if type(grad) is not Tensor and type(grad) is not torch.nn.Parameter:
        return f"a {type(grad).__name__} may not be plain memory"
    if grad.layout is not torch.strided or grad.is_neg():
        return "sparse, packed and lazily negated tensors are not plain memory"
    if grad.dtype not in _STORED:
        return f"the fused CPU kernels have no {grad.dtype}"
    if type(metric) not in _ENTRIES:
        return f"the fused CPU kernels have nothing to do for {metric}"
    return _unfit((grad.shape, grad.stride(), dim, groups)) or _unavailable(type(metric), grad.dtype)


def directed_(jobs: Sequence[tuple[Tensor, int, int]], metric: Metric) -> None:
    """The operator in place, on (gradient, dim, groups) that `refusal` does not refuse."""
    by_dtype: dict[torch.dtype, list[tuple[Tensor, int, int]]] = {}
    for job in jobs:
        by_dtype.setdefault(job[0].dtype, []).append(job)
    for dtype, same in by_dtype.items():
        plan = _plan(tuple((grad.shape, grad.stride(), *axis) for grad, *axis in same), dtype.itemsize)
        if plan.tensors:
            _run([same[i][0] for i in plan.tensors], dtype, plan, metric)
    # The kernels write behind autograd's back.
    torch.autograd.graph.increment_version([grad for grad, *_ in jobs if not grad.is_inference()])


class _Plan(NamedTuple):
    table: NDArray[np.int64]  # (tensors, FIELDS) without addresses, see `cdgrad.ops.sweeps`
    tensors: tuple[int, ...]  # which gradient each row is; those with nothing to smooth have none
    channels: tuple[int, ...]  # per row
    elements: int


def _run(grads: list[Tensor], dtype: torch.dtype, plan: _Plan, metric: Metric) -> None:
    sweep = getattr(import_module("cdgrad.ops.sweeps"), _ENTRIES[type(metric)])
    weights, scale = _weights(metric, plan.channels)
    table = plan.table.copy()
    table[:, 0] = [grad.data_ptr() for grad in grads]
    like, wide = (np.empty(0, kind) for kind in _STORED[dtype])
    counter = np.zeros(1, np.int64)
    periodic = getattr(metric, "boundary", "free") == "periodic"

    def work(_: list[Tensor]) -> None:
        sweep(like, wide, table, weights, scale, periodic, counter)

    blocks = int(table[-1, -1])
    helpers = min(torch.get_num_threads(), blocks) - 1 if plan.elements >= _WORTH_A_THREAD else 0
    # Each helper holds the gradients, should this call be interrupted while it still writes.
    futures = [_pool().submit(work, grads) for _ in range(helpers)]
    work(grads)
    for future in futures:
        # A helper that did not wake in time has nothing left to do.
        if not future.cancel():
            future.result()


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="cdgrad")


if hasattr(os, "register_at_fork"):  # absent on Windows, which has no fork
    # A child inherits the pool without its threads.
    os.register_at_fork(after_in_child=_pool.cache_clear)


@lru_cache(maxsize=64)
def _plan(forms: tuple[_Form, ...], itemsize: int) -> _Plan:
    """The blocks of tensors of these forms, in the order in which they will be claimed."""
    found = [(i, columns) for i, form in enumerate(forms) if (columns := columns_of(*form)) is not None]
    sizes = [columns.n for _, columns in found]
    starts = np.cumsum([0, *sizes]).tolist()
    rows: list[list[int]] = []
    end = 0
    for (_, columns), start in zip(found, starts, strict=False):
        row, blocks = _blocks(columns, itemsize)
        end += blocks
        rows.append([0, *row, start, end])
    table = np.array(rows, dtype=np.int64).reshape(-1, _FIELDS)
    elements = sum(columns.n * columns.number for _, columns in found)
    return _Plan(table, tuple(i for i, _ in found), tuple(sizes), elements)


def _blocks(columns: Columns, itemsize: int) -> tuple[list[int], int]:
    """One tensor's fields of the work table from CHANNELS to FAR_STRIDE, and its number of blocks."""
    n = columns.n
    axes = list(columns.axes)
    # Along the inner axis loops vectorise: the densest, or if that is short the longest.
    inner = max(axes) if axes and axes[0][0] < 8 else axes[0] if axes else (1, 1)
    if axes:
        axes.remove(inner)
    (near, near_stride), (far, far_stride) = [*axes, (1, 0), (1, 0)][:2]
    number, stride = inner
    bytes_per_column = n * max(itemsize, 4)
    fitting = max(_BLOCK_BYTES, min(_WIDE_ENOUGH * bytes_per_column, _SHARED_CACHE_BYTES)) // bytes_per_column
    most = min(max(fitting, _NARROWEST), _WIDEST) if stride == 1 else _STRIDED
    across = -(-number // most)
    block = -(-number // across // 16) * 16 if across > 1 else number  # whole cache lines, evenly
    across = -(-number // block)
    outer_block = max(1, _BLOCK_BYTES // (bytes_per_column * block))
    outer = near * far
    row = [n, columns.step, number, stride, block, outer, outer_block, near, near_stride, far_stride]
    return row, across * -(-outer // outer_block)


@lru_cache(maxsize=64)
def _weights(metric: Metric, channels: tuple[int, ...]) -> tuple[Array, Array]:
    """float64 weights (3, channels of all tensors), and a scalar per tensor."""
    weights = np.zeros((3, sum(channels)))
    scale = np.ones(len(channels))
    each = np.split(weights, np.cumsum(channels)[:-1], axis=1)
    for i, (n, w) in enumerate(zip(channels, each, strict=True)):
        match metric:
            case ReweightedL2(lam=lam):
                scale[i] = 1 / lam
            case Sobolev(lam=lam):
                solve = coefficients.sobolev(n, lam)
                w[:] = solve.ratio, solve.inverse_pivot, solve.wrap
            case MeanSobolev(lam=lam, boundary=boundary):
                scale[i] = 1 / (lam * float(n) ** 2)
                w[:2] = _integrals(n, scale[i], boundary == "periodic")
            case _:
                raise TypeError(f"no fused operator is known for {metric!r}")
    return weights, scale


def _integrals(n: int, scale: float, periodic: bool) -> tuple[Array, Array]:
    """Weights whose products with g are g~_0 - mean(g), and the slope before channel 0.

    The solution is g~_m = g~_0 - scale sum_{j<m} q_j with the flux q_j = sum_{r<=j} (g_r - mean g) - k,
    where k is 0 for free ends and the mean of the sums for periodic ones. g~ keeps the mean, so
    g~_0 - mean(g) = scale / n sum_j (n - 1 - j) q_j; exchanging the sums gives the weight of g_r. Both
    are centred, so that a large mean drops out in float64. The slope before channel 0 is scale k.
    """
    r = np.arange(n, dtype=np.float64)
    first = (n - r) * (n - 1 - r) / (2 * n)
    wrap = (n - r) / n if periodic else np.zeros(n)
    wrap -= wrap.mean()
    first -= wrap * ((n - 1) / 2)
    return (first - first.mean()) * scale, wrap * scale


@lru_cache(maxsize=1024)
def _unfit(form: _Form) -> str | None:
    """Why the kernels cannot take tensors of this form."""
    columns = columns_of(*form)
    if columns is None:
        return None
    axes = sorted((*columns.axes, (columns.n, columns.step)), key=lambda axis: axis[1])
    reach = 0
    for size, stride in axes:
        if stride <= reach:
            return "its elements overlap in memory"
        reach += (size - 1) * stride
    if len(columns.axes) > 3:
        return "its elements lie along more than three axes in memory"
    return None


@lru_cache(maxsize=32)
def _unavailable(family: type[Metric], dtype: torch.dtype) -> str | None:
    """Why the sweeps of this family and dtype do not run here; compiles them if they are not cached."""
    try:
        sweep = getattr(import_module("cdgrad.ops.sweeps"), _ENTRIES[family])
        like, wide = (np.empty(0, kind) for kind in _STORED[dtype])
        nothing = np.zeros((1, _FIELDS), np.int64)
        sweep(like, wide, nothing, np.zeros((3, 0)), np.zeros(1), False, np.zeros(1, np.int64))
    # Whatever numba, LLVM or the cache directory raise: eager is there, and the reason is told.
    except Exception as error:
        return f"numba cannot compile here ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
    return None
