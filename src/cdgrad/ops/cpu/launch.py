"""The operator on CPU tensors: one list of blocks over all tensors, shared by a few threads.

Plans (which blocks, which weights) depend on shapes, strides and the metric alone and are remembered;
a call fills in the addresses.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdgrad.messages import brief
from cdgrad.metrics import Array, MeanSobolev, Metric, ReweightedL2, Sobolev, is_periodic
from cdgrad.ops import sobolev_weights
from cdgrad.ops.addresses import without_address
from cdgrad.ops.byte_cache import cached_by_bytes
from cdgrad.ops.cpu import chunks, threads
from cdgrad.ops.memory_layout import Columns, columns_of
from cdgrad.ops.versions import wrote_behind_autograd

# A block is at most 6 MiB, which a core's share of the last cache holds where this was measured: there the
# second sweep finds what the first has read. Wide rows are what memory is fast at: with blocks of 768 KiB,
# the second level's size, ResNet-18's sweeps took 1.4 times as long.
_BLOCK_BYTES, LEAST_BYTES = 6 * 2**20, 768 * 2**10
# Several blocks per thread let threads finish at about the same time; fewer where blocks would become
# smaller than LEAST_BYTES or _NARROWEST.
_BLOCKS_PER_THREAD = 8
_WIDEST, _NARROWEST, _STRIDED = 8192, 64, 64  # columns; running values of more would crowd the caches
_LANES = 16  # columns are divided between blocks by so many
_WORTH_A_THREAD = 1 << 15  # elements: below, waking a thread takes as long as the work

# The dtype numba sees. numpy has no bfloat16; numba's half is for GPUs.
_STORED: dict[torch.dtype, str] = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "uint16",
    torch.float16: "int16",
}
_FAMILIES: tuple[type[Metric], ...] = (ReweightedL2, Sobolev, MeanSobolev)
_Form = tuple[torch.Size, tuple[int, ...], int, int]  # shape, strides, channel axis, groups


def refusal(grad: Tensor, metric: Metric, dim: int, groups: int) -> str | None:
    """Why the kernels cannot take this gradient, as a sentence; None if they can."""
    if grad.device.type != "cpu":
        return f"the fused CPU kernels cannot reach a tensor on {grad.device.type}"
    if (reason := without_address(grad)) is not None:
        return reason
    if grad.dtype not in _STORED:
        return f"the fused CPU kernels do not support {grad.dtype}"
    if type(metric) not in _FAMILIES:
        return f"the fused CPU kernels have nothing to do for {metric}"
    return _unfit((grad.shape, grad.stride(), dim, groups)) or unavailable(metric.family, grad.dtype)


def directed_(jobs: Sequence[tuple[Tensor, int, int]], metric: Metric) -> None:
    """The operator in place, on (gradient, dim, groups) that `refusal` does not refuse."""
    by_dtype: dict[torch.dtype, list[tuple[Tensor, int, int]]] = {}
    for job in jobs:
        by_dtype.setdefault(job[0].dtype, []).append(job)
    for dtype, same in by_dtype.items():
        if dtype == torch.float32:
            same = [job for job in same if not _directed_in_chunks(job, metric)]
        forms = tuple((grad.shape, grad.stride(), *axis) for grad, *axis in same)
        plan = make_plan(forms, dtype.itemsize, torch.get_num_threads())
        if plan.tensors:
            _run([same[i][0] for i in plan.tensors], dtype, plan, metric)
    wrote_behind_autograd([grad for grad, *_ in jobs])


def _directed_in_chunks(job: tuple[Tensor, int, int], metric: Metric) -> bool:
    """Direct a float32 gradient of very many channels; False if it is to be divided into blocks instead."""
    grad, *axis = job
    columns = columns_of(grad.shape, grad.stride(), *axis)
    if columns is None or not chunks.takes(columns):
        return False
    weights, scale = weights_for(metric, (columns.n,), False)
    worker = compiled_worker(metric.family, grad.dtype, "cdgrad.ops.cpu.tall")
    count = torch.get_num_threads()

    def run(phase: NDArray[np.int64], held: object) -> None:
        threads.fork_join(worker, phase, count, held)

    number = threads.thread_number(count)
    chunks.directed_(grad, columns, metric, float(scale[0]), weights, count, number, run)
    return True


class _Plan(NamedTuple):
    table: NDArray[np.int64]  # (tensors, fields) without addresses, see `cdgrad.ops.cpu.kernels`
    tensors: tuple[int, ...]  # which gradient each row is; those with nothing to smooth have none
    channels: tuple[int, ...]  # per row
    threads: int
    bounds: NDArray[np.int64]  # the range of blocks of each thread is from its bound to the next
    scratch: int  # bytes that each of them needs


def _run(grads: list[Tensor], dtype: torch.dtype, plan: _Plan, metric: Metric) -> None:
    weights, scale = weights_for(metric, plan.channels, dtype == torch.float64)
    table = plan.table.copy()
    table[:, 0] = [grad.data_ptr() for grad in grads]
    counters = np.zeros(plan.threads + 1, np.int64)
    scratch = np.empty(plan.threads * plan.scratch // 8)
    job = np.array(
        [
            table.ctypes.data,
            len(table),
            weights.ctypes.data,
            weights.shape[1],
            scale.ctypes.data,
            is_periodic(metric),
            plan.bounds.ctypes.data,
            counters.ctypes.data,
            scratch.ctypes.data,
            plan.scratch,
            plan.threads,
            threads.thread_number(plan.threads),
        ],
        np.int64,
    )
    # Each thread's call holds what it works on, should this one be interrupted while another still writes.
    held = (grads, plan, table, weights, scale, counters, scratch)
    threads.fork_join(compiled_worker(metric.family, dtype), job, plan.threads, held)


@lru_cache(maxsize=32)
def compiled_worker(family: str, dtype: torch.dtype, module: str = "cdgrad.ops.cpu.kernels") -> Any:
    """The compiled function of the module, which is imported on first use.

    Importing numba takes half a second. Where its cache on disk is damaged or has no writable place,
    the function is compiled for this process alone, with a warning.
    """
    worker = import_module(module).worker
    try:
        return worker(family, _STORED[dtype], cache=True)
    # The cache can raise what pickle, the file system or numba raise; without it, an error is the compiler's.
    except Exception as error:
        compiled = worker(family, _STORED[dtype], cache=False)
        warnings.warn(
            f"numba's cache cannot be used ({brief(error)}), so cdgrad compiles its CPU kernels again in "
            "every process, some seconds each; set NUMBA_CACHE_DIR to an empty, writable folder",
            stacklevel=2,
        )
        return compiled


@lru_cache(maxsize=64)
def make_plan(forms: tuple[_Form, ...], itemsize: int, most_threads: int) -> _Plan:
    """The blocks of tensors of these forms, in the order in which they will be taken."""
    smoothed = [(i, columns) for i, form in enumerate(forms) if (columns := columns_of(*form)) is not None]
    sizes = [columns.n for _, columns in smoothed]
    elements = sum(columns.n * columns.number for _, columns in smoothed)
    if elements < _WORTH_A_THREAD:
        most_threads = 1
    share = elements * _bytes_per_element(itemsize) // (_BLOCKS_PER_THREAD * most_threads)
    block_bytes = max(LEAST_BYTES, min(_BLOCK_BYTES, share))
    starts = np.cumsum([0, *sizes]).tolist()
    rows: list[list[int]] = []
    end = scratch = 0
    for (_, columns), start in zip(smoothed, starts, strict=False):
        row, blocks, widest = _blocks(columns, itemsize, block_bytes)
        end += blocks
        scratch = max(scratch, _scratch_bytes(columns.n, widest, itemsize))
        rows.append([0, *row, start, end])
    table = np.array(rows, dtype=np.int64).reshape(len(rows), len(rows[0]) if rows else 0)
    count = min(most_threads, end)
    # Ranges of about equally many elements, each of whole blocks.
    shares = np.linspace(0, elements, count + 1)
    done = np.cumsum([0, *(columns.n * columns.number for _, columns in smoothed)])
    bounds = np.round(np.interp(shares, done, [0, *(row[-1] for row in rows)])).astype(np.int64)
    return _Plan(table, tuple(i for i, _ in smoothed), tuple(sizes), count, bounds, scratch)


def _bytes_per_element(itemsize: int) -> int:
    """What an element takes in cache: the Sobolev sweeps keep 16-bit ones as float32, too."""
    return itemsize if itemsize >= 4 else itemsize + 4


def _scratch_bytes(n: int, width: int, itemsize: int) -> int:
    """Three float64 per column of a block; a float32 per element where what is stored is narrower."""
    width = -(-width // 64) * 64
    return width * (3 * 8 + (4 * n if itemsize < 4 else 0))


def _blocks(columns: Columns, itemsize: int, block_bytes: int) -> tuple[list[int], int, int]:
    """One tensor's fields of the work table from CHANNELS to FAR_STRIDE, its blocks, most columns of one."""
    n = columns.n
    axes = list(columns.axes)
    # Along the inner axis loops vectorise: the densest, or if that is short the longest.
    inner = max(axes) if axes and axes[0][0] < 8 else axes[0] if axes else (1, 1)
    if axes:
        axes.remove(inner)
    (near, near_stride), (far, far_stride) = [*axes, (1, 0), (1, 0)][:2]
    number, stride = inner
    bytes_per_column = n * _bytes_per_element(itemsize)
    most = min(max(block_bytes // bytes_per_column, _NARROWEST), _WIDEST) if stride == 1 else _STRIDED
    vectors = -(-number // _LANES)
    across = min(-(-number // most), vectors)
    block = min(-(-vectors // across) * _LANES, number)
    outer_block = max(1, block_bytes // (bytes_per_column * block))
    outer = near * far
    row = [n, columns.step, number, stride, across, outer, outer_block, near, near_stride, far_stride]
    return row, across * -(-outer // outer_block), block


@cached_by_bytes(32 * 2**20)
def weights_for(metric: Metric, channels: tuple[int, ...], double: bool) -> tuple[Array, Array]:
    """float64 weights (4, channels of all tensors), and a scalar per tensor.

    The scalar stays finite in the dtype computed in, so that a deviation of 0 stays 0 for the smallest lam.
    For float64 the sums of the Sobolev metrics are smaller by a power of two: the scalar, or weights[2, 0] of
    a tensor where the scalar is a factor.
    """
    largest = 1e300 if double else 1e37
    weights = np.zeros((4, sum(channels)))
    scale = np.ones(len(channels))
    each = np.split(weights, np.cumsum(channels)[:-1], axis=1)
    for i, (n, w) in enumerate(zip(channels, each, strict=True)):
        match metric:
            case ReweightedL2(lam=lam):
                scale[i] = min(1 / lam, largest)
            case Sobolev(lam=lam):
                solve = sobolev_weights.sobolev(n, lam)
                w[0, 1:] = solve.ratio[:-1]
                scale[i] = _headroom(n) if double else 1.0
                w[1:] = solve.inverse_pivot / scale[i], solve.wrap, solve.ratio
            case MeanSobolev(lam=lam, boundary=boundary):
                scale[i] = min(1 / lam / float(n) ** 2, largest)
                w[:2] = _integrals(n, scale[i], boundary == "periodic")
                w[2] = _headroom(n * max(1.0, scale[i], float(np.abs(w[:2]).max())))
            case _:
                raise TypeError(f"no fused operator is known for {metric!r}")
    return weights, scale


def _headroom(bound: float) -> float:
    """A power of two by which a sum stays below the largest float; `bound` times a gradient bounds the sum.

    At least 2^-128: where more is needed, rounding errors exceed the largest float, too. Gradients below
    1e-269 lose digits by it.
    """
    return 2.0 ** -min(int(np.ceil(np.log2(bound))) + 3, 128)


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
def unavailable(family: str, dtype: torch.dtype) -> str | None:
    """Why the kernels of this family and dtype cannot run; compiles them if they are not cached."""
    try:
        compiled_worker(family, dtype)
    # Whatever numba or LLVM raise: the eager backend works everywhere, and `select_backend` gives the reason.
    except Exception as error:
        reason = f"numba cannot compile the CPU kernels ({brief(error)})"
        warnings.warn(f"{reason}; the eager backend replaces them and is several times slower", stacklevel=2)
        return reason
    return None
