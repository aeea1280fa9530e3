"""The operator on GPUs, in place: one launch for all tensors of a dtype (cdgrad.ops.triton.kernels).

A launch reads three small arrays that stay on the device: a table of shapes, strides and programs, the
weights of the metric, and the tensors' addresses. Each is written when its contents are first needed, so
a training loop whose gradients keep their memory writes nothing, and nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdgrad.metrics import Array, MeanSobolev, Metric, ReweightedL2, Sobolev
from cdgrad.ops import sobolev_weights
from cdgrad.ops.memory_layout import MOST_AXES, Columns, columns_of
from cdgrad.ops.triton import kernels

# Shape, strides, dtype, device, channel axis and groups of each gradient.
Signature = tuple[tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device, int, int], ...]


class Tile(NamedTuple):
    """What a program holds at once. Chosen from the compiler's output; not measured on a GPU."""

    rows: int
    columns: int
    warps: int


TILES = {
    ReweightedL2.family: Tile(128, 32, 4),  # only sums cross the warps
    Sobolev.family: Tile(32, 32, 1),  # 255 registers; 64 rows spill 1.4 kB per thread
    MeanSobolev.family: Tile(32, 32, 1),  # 168 registers; 64 rows spill 0.5 kB
}


def refusal(grad: Tensor, dim: int, groups: int) -> str | None:
    """Why `directed_` cannot take this gradient, as a sentence; None if it can."""
    if grad.device.type != "cuda" and not (grad.device.type == "cpu" and kernels.INTERPRETED):
        return f"the Triton kernels run on CUDA devices, and this gradient is on {grad.device}"
    if grad.dtype not in kernels.DTYPES:
        return f"the Triton kernels know no {grad.dtype}"
    columns = columns_of(grad.shape, grad.stride(), dim, groups)
    if columns is None:
        return None
    if len(columns.axes) > MOST_AXES:
        return (
            f"its columns lie along {len(columns.axes)} axes in memory, the Triton kernels follow {MOST_AXES}"
        )
    if max(columns.n, columns.number) >= 2**30:
        return f"the Triton kernels count in 32 bits, and shape {tuple(grad.shape)} is beyond them"
    return None


def directed_(jobs: Sequence[tuple[Tensor, int, int]], metric: Metric) -> None:
    """The operator in place, on (gradient, dim, groups) that `refusal` does not refuse.

    On one device and for one dtype it is one launch, on the current stream.

    Extra memory for H1: a float64 per 32 elements and 32 per program; else none that grows with the tensors.

    Raises:
        RuntimeError: a graph is being captured, and these shapes or this metric have not run before.
    """
    signature = tuple([(g.shape, g.stride(), g.dtype, g.device, dim, groups) for g, dim, groups in jobs])
    for batch in _batches(signature, metric.family):
        _launch(batch, tuple([jobs[i][0].data_ptr() for i in batch.members]), metric)


@dataclass(frozen=True, eq=False)
class _Batch:
    """What a launch needs of shapes and strides; compared by identity, so it is a cheap key."""

    device: torch.device
    dtype: torch.dtype
    members: tuple[int, ...]  # which of the gradients
    table: NDArray[np.int64]
    programs: int
    channels: tuple[int, ...]  # the distinct channel counts, in the order of their weights
    scratch: int  # float64 values


@lru_cache(maxsize=64)
def _batches(signature: Signature, family: str) -> tuple[_Batch, ...]:
    members: dict[tuple[torch.device, torch.dtype], dict[int, Columns]] = {}
    for i, (shape, stride, dtype, device, dim, groups) in enumerate(signature):
        columns = columns_of(shape, stride, dim, groups)
        if columns:
            members.setdefault((device, dtype), {})[i] = columns
    return tuple(_batch(device, dtype, family, some) for (device, dtype), some in members.items())


def _batch(device: torch.device, dtype: torch.dtype, family: str, members: dict[int, Columns]) -> _Batch:
    """The table: where the programs begin; per tensor n, step, columns, weights and axes; per program
    tensor, first column and slot. The longest programs come first, so that none is left over at the end.
    """
    tile = TILES[family]
    columns = list(members.values())
    channels = tuple(sorted({each.n for each in columns}))
    chunks = [-(-each.n // tile.rows) for each in columns]
    places, place = {}, 0
    for n in channels:
        places[n] = place
        place += _weight_count(n, family)
    tensors = np.zeros((len(columns), 4 + 2 * MOST_AXES), np.int64)
    tensors[:, 4::2] = 1
    for row, each in zip(tensors, columns, strict=True):
        row[:4] = each.n, each.step, each.number, places[each.n]
        row[4 : 4 + 2 * len(each.axes)] = np.ravel(each.axes)
    programs: list[tuple[int, int, int]] = []
    slot = 0
    for index in sorted(range(len(columns)), key=lambda index: -chunks[index]):
        for first in range(0, columns[index].number, tile.columns):
            programs.append((index, first, slot))
            slot += (chunks[index] + 1) * tile.columns if family == Sobolev.family else 0
    table = np.concatenate([[1 + tensors.size], tensors.ravel(), np.ravel(programs)]).astype(np.int64)
    return _Batch(device, dtype, tuple(members), table, len(programs), channels, slot)


def _weight_count(n: int, family: str) -> int:
    rows = TILES[family].rows
    return 5 * rows * -(-n // rows) if family == Sobolev.family else 0


def _weights(channels: tuple[int, ...], metric: Metric) -> Array:
    match metric:
        case ReweightedL2(lam=lam) | MeanSobolev(lam=lam):
            return np.array([1 / lam])
        case Sobolev(lam=lam):
            return np.concatenate([_sobolev_weights(n, lam) for n in channels])
        case _:
            raise TypeError(f"no kernel is known for {metric!r}")


def _sobolev_weights(n: int, lam: float) -> Array:
    """Of each channel: ratio[m-1], ratio[n-2-m], the weight of g_m in f at its chunk's last row, green
    and wrap; each padded with zeros to whole chunks.
    """
    rows = TILES[Sobolev.family].rows
    weights = sobolev_weights.sobolev(n, lam)
    ratio = np.zeros(rows * -(-n // rows))
    ratio[:n] = weights.ratio
    onward = np.ones((len(ratio) // rows, rows))
    onward[:, :-1] = np.cumprod(ratio.reshape(-1, rows)[:, -2::-1], axis=1)[:, ::-1]
    arrays = np.zeros((5, len(ratio)))
    before = np.concatenate([[0.0], weights.ratio[:-1]])
    arrays[[0, 1, 3, 4], :n] = before, before[::-1], weights.green, weights.wrap
    arrays[2] = onward.ravel()
    return arrays.ravel()


def _kernel(name: str) -> Any:
    return getattr(kernels, name)


def _launch(batch: _Batch, pointers: tuple[int, ...], metric: Metric) -> None:
    tile = TILES[metric.family]
    with torch.cuda.device(batch.device) if batch.device.type == "cuda" else nullcontext():
        if _capturing(batch.device):
            # A graph keeps its gradients in memory of its own: their addresses are written within it.
            addresses = _write(pointers, batch.device)
        else:
            addresses = _resident(pointers, batch.device, lambda: _write(pointers, batch.device))
        table = _resident(batch, batch.device, lambda: _upload(batch.table, batch.device))
        weights = _resident(
            (batch, metric), batch.device, lambda: _upload(_weights(batch.channels, metric), batch.device)
        )
        _kernel(metric.family.replace("-", "_"))[(batch.programs,)](
            addresses,
            table,
            weights,
            torch.empty(batch.scratch, dtype=torch.float64, device=batch.device),
            DTYPE=kernels.DTYPES[batch.dtype],
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            PERIODIC=getattr(metric, "boundary", "free") == "periodic",
            num_warps=tile.warps,
            enable_fp_fusion=True,
        )


# What is on the devices, with the stream that wrote it. The oldest leave, except what graphs read.
_RESIDENTS = 64
_residents: dict[tuple[Any, torch.device], tuple[int, Tensor]] = {}
_captured: set[Tensor] = set()


def _resident(key: Any, device: torch.device, write: Callable[[], Tensor]) -> Tensor:
    """The array of that key on the device, written on the current stream if it was not yet.

    Raises:
        RuntimeError: it would have to be uploaded inside a graph, to be uploaded again at every replay.
    """
    stream, array = _residents.get((key, device), (None, None))
    if _capturing(device):
        if array is None:
            raise RuntimeError(
                "a CUDA graph is being captured, and channel_directed_ has not yet met these shapes, strides "
                "and this metric; run one step before the capture"
            )
        _captured.add(array)  # a replay reads this memory whenever it runs
        return array
    current = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    if array is None or stream != current:
        # Another stream may not have finished writing its array.
        array = write()
        _residents[key, device] = current, array
        while len(_residents) > _RESIDENTS:
            del _residents[next(iter(_residents))]
    return array


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _upload(array: NDArray[Any], device: torch.device) -> Tensor:
    host = torch.as_tensor(array)
    # From pinned memory the copy joins the stream; from other memory the host would wait for it.
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


def _write(pointers: tuple[int, ...], device: torch.device) -> Tensor:
    """The addresses as an array on the device, by kernels whose arguments they are."""
    table = torch.empty(-(-len(pointers) // 16) * 16, dtype=torch.int64, device=device)
    padded = pointers + pointers[-1:] * (len(table) - len(pointers))
    for first in range(0, len(table), 16):
        _kernel("write16")[(1,)](table[first:], *padded[first : first + 16], num_warps=1)
    return table
