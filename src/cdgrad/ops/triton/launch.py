"""The operator on GPUs, in place: one launch for all tensors of a dtype (cdgrad.ops.triton.kernels).

A launch reads small arrays that stay on the device: the programs' records, the weights of the metric, and
the tensors' addresses. Each is written when its contents are first needed, so a training loop whose
gradients keep their memory writes nothing, and nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cdgrad.metrics import Array, MeanSobolev, Metric, ReweightedL2, Sobolev
from cdgrad.ops.graphs import capturing_on
from cdgrad.ops.memory_layout import Columns, columns_of
from cdgrad.ops.triton import kernels, tables
from cdgrad.ops.triton.tables import TILES, Tile
from cdgrad.ops.versions import wrote_behind_autograd

FAMILIES: dict[type[Metric], int] = {ReweightedL2: 0, Sobolev: 1, MeanSobolev: 2}
Job = tuple[Tensor, int, int]  # gradient, channel axis, groups


def refusal(grad: Tensor, dim: int, groups: int) -> str | None:
    """Why `directed_` cannot take this gradient, as a sentence; None if it can."""
    if grad.device.type != "cuda" and not (grad.device.type == "cpu" and kernels.INTERPRETED):
        return f"the Triton kernels run on CUDA and ROCm devices, and this gradient is on {grad.device}"
    if grad.layout is not torch.strided or grad.is_neg():
        return "sparse, packed and lazily negated tensors are not plain memory"
    if grad.dtype not in kernels.DTYPES:
        return f"the Triton kernels do not support {grad.dtype}"
    columns = columns_of(grad.shape, grad.stride(), dim, groups)
    if columns is not None and len(columns.axes) > kernels.AXES:
        return (
            f"its columns span {len(columns.axes)} axes in memory; the Triton kernels support {kernels.AXES}"
        )
    return None


class Plan:
    """The operator on gradients of given shapes, strides, dtypes and devices, in place.

    `run` takes gradients of the same forms any number of times. What depends on the forms and on the metric
    is found once; new addresses are uploaded, or inside a CUDA graph written by a kernel of it.

    Args:
        jobs: (gradient, dim, groups) that `refusal` does not refuse.
        metric: not `L2`.
        tiles: by bytes of an element.
    """

    def __init__(self, jobs: Sequence[Job], metric: Metric, tiles: dict[int, Tile] | None = None) -> None:
        self._batches: list[_Batch] = []
        self._metric = metric
        members: dict[tuple[torch.device, torch.dtype], dict[int, Columns]] = {}
        for i, (grad, dim, groups) in enumerate(jobs):
            columns = columns_of(grad.shape, grad.stride(), dim, groups)
            if columns:
                members.setdefault((grad.device, grad.dtype), {})[i] = columns
        for (device, dtype), of_batch in members.items():
            tile = (tiles or TILES)[dtype.itemsize]
            self._batches.append(_Batch(device, dtype, metric, tile, of_batch))

    @property
    def metric(self) -> Metric:
        """The metric. One of the same family and boundary condition can be set; captured graphs follow."""
        return self._metric

    @metric.setter
    def metric(self, metric: Metric) -> None:
        if type(metric) is not type(self._metric) or _periodic(metric) != _periodic(self._metric):
            raise ValueError(
                f"only lam can change: {self._metric} cannot become {metric}; prepare a new plan"
            )
        if any(batch.capturing for batch in self._batches):
            raise RuntimeError(
                "a CUDA graph is being captured, and lam cannot change within it; set it before the capture, "
                "or between two replays"
            )
        self._metric = metric
        for batch in self._batches:
            batch.set_metric(metric)

    def run(self, grads: Sequence[Tensor]) -> None:
        """The operator in place, one launch per device and dtype, on the current stream.

        Raises:
            RuntimeError: a graph is being captured, and the plan has not run before.
        """
        self.run_at([grad.data_ptr() for grad in grads])
        wrote_behind_autograd(grads)

    def run_at(self, pointers: list[int]) -> None:
        """`run` on gradients at these addresses, without counting the write for autograd."""
        for batch in self._batches:
            batch.run(
                pointers if len(batch.members) == len(pointers) else [pointers[i] for i in batch.members]
            )
            if batch.capturing:
                _captured.add(self)  # a replay reads its arrays whenever it runs


class _Arrays(NamedTuple):
    """What a launch reads on the device, besides the addresses."""

    table: Tensor
    weights: Tensor
    scratch: Tensor


class _Batch:
    """The tensors of one launch."""

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        metric: Metric,
        tile: Tile,
        members: dict[int, Columns],
    ) -> None:
        self.members = tuple(members)
        self._columns = tuple(members.values())
        self._device, self._dtype, self._metric, self._tile = device, dtype, metric, tile
        self._pointers: list[int] | None = None
        self._all_aligned = (True,) * len(members)
        self._aligned: tuple[bool, ...] | None = None
        self._stream: int | None = None
        self._tables: dict[tuple[int, ...], Tensor] = {}  # of the last addresses, which often return
        self._launch: Any = None
        # Captured graphs read them whenever they are replayed: they stay, and lam is written to all of them.
        self._graphs: list[_Arrays] = []
        self._addresses_of_graphs: list[Tensor] = []

    @property
    def capturing(self) -> bool:
        """Whether a graph is being captured."""
        return capturing_on(self._device)

    def set_metric(self, metric: Metric) -> None:
        self._metric = metric
        if self._aligned is None:
            return
        weights = _host(self._weights(), self._device)
        # A replay may be under way on any stream; otherwise the copies are in the order of the launches.
        wait = self._device.type == "cuda" and (bool(self._graphs) or self._current_stream() != self._stream)
        if wait:
            torch.cuda.synchronize(self._device)
        for arrays in {id(each): each for each in (self._arrays, *self._graphs)}.values():
            arrays.weights.copy_(weights, non_blocking=True)
        if wait:
            torch.cuda.synchronize(self._device)

    def run(self, pointers: list[int]) -> None:
        with torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext():
            if capturing_on(self._device):
                self._run_in_graph(pointers)
                return
            stream = self._current_stream()
            if pointers == self._pointers and stream == self._stream:
                self._launch(self._addresses)
                return
            key = tuple(pointers)
            if stream == self._stream and key in self._tables:
                self._pointers, self._addresses = pointers, self._tables[key]
                self._launch(self._addresses)
                return
            aligned = self._alignment(pointers)
            if aligned != self._aligned or stream != self._stream:
                # Another stream may not have finished writing its arrays.
                self._upload(aligned)
                self._stream = stream
                self._tables.clear()
                _prepare_captures(pointers, self._device)
            if len(self._tables) == _TABLES:
                del self._tables[next(iter(self._tables))]
            self._pointers = pointers
            self._addresses = self._tables[key] = _upload(np.array(pointers, np.int64), self._device)
            self._launch(self._addresses)

    def _run_in_graph(self, pointers: list[int]) -> None:
        if self._alignment(pointers) != self._aligned:
            raise RuntimeError(
                "a CUDA graph is being captured, and channel_directed_ has not yet met these shapes, "
                "strides and this metric; run one step before the capture"
            )
        if not any(arrays is self._arrays for arrays in self._graphs):
            self._graphs.append(self._arrays)
        if pointers == self._pointers:
            self._addresses_of_graphs.append(self._addresses)
            self._launch(self._addresses)
            return
        # A graph keeps its gradients in memory of its own: their addresses are written within it.
        self._launch(_write(pointers, self._device))

    def _current_stream(self) -> int:
        return torch.cuda.current_stream(self._device).cuda_stream if self._device.type == "cuda" else 0

    def _alignment(self, pointers: list[int]) -> tuple[bool, ...]:
        """Of each tensor, whether it begins at a multiple of 16 bytes."""
        if not int(np.bitwise_or.reduce(np.array(pointers, np.int64))) & 15:
            return self._all_aligned
        return tuple([not pointer & 15 for pointer in pointers])

    def _weights(self) -> Array:
        return tables.weights(self._records.channels, self._metric, self._tile)

    def _upload(self, aligned: tuple[bool, ...]) -> None:
        sobolev = isinstance(self._metric, Sobolev)
        self._records = tables.records(
            list(zip(self._columns, aligned, strict=True)), sobolev, self._dtype.itemsize, self._tile
        )
        self._aligned = aligned
        table, weights = (_upload(array, self._device) for array in (self._records.table, self._weights()))
        scratch = torch.empty(max(self._records.scratch, 1), dtype=torch.float64, device=self._device)
        arrays = self._arrays = _Arrays(table, weights, scratch)
        constants = constants_of(self._metric, self._dtype, self._records.used, self._tile)
        grid, warps = (len(self._records.table),), self._tile.warps
        options = options_of(self._device)

        def launch(addresses: Tensor) -> None:
            _kernel("directed")[grid](addresses, *arrays, **constants, num_warps=warps, **options)

        self._launch = launch


def constants_of(metric: Metric, dtype: torch.dtype, used: int, tile: Tile) -> dict[str, Any]:
    """The compile-time arguments of the kernel."""
    return {
        "DTYPE": kernels.DTYPES[dtype],
        "FAMILY": FAMILIES[type(metric)],
        "USED": used,
        "KINDS": tile.kinds,
        "R": tile.rows,
        "W": tile.segments,
        "C": tile.columns,
        "VECTOR": tables.vector(dtype.itemsize),
    }


def options_of(device: torch.device) -> dict[str, Any]:
    """The compiler's options: two programs on a multiprocessor need at most 128 registers."""
    return {"maxnreg": 128} if device.type == "cuda" and torch.version.hip is None else {}


def _periodic(metric: Metric) -> bool:
    return getattr(metric, "boundary", "free") == "periodic"


_TABLES = 16
# Plans by forms and metric. The oldest leave, except those that graphs read.
_PLANS = 64
_plans: dict[Any, Plan] = {}
_captured: set[Plan] = set()


def directed_(jobs: Sequence[Job], metric: Metric) -> None:
    """The operator in place, on (gradient, dim, groups) that `refusal` does not refuse.

    On one device and for one dtype it is one launch, on the current stream.

    Extra memory: the records, 136 bytes per 8,192 elements; for Sobolev a byte per row of each distinct
    channel count and 200 more, and beyond 1,024 channels a float64 per 256 elements.

    Raises:
        RuntimeError: a graph is being captured, and these shapes or this metric have not run before.
    """
    grads = [grad for grad, *_ in jobs]
    key = (metric, tuple([(g.shape, g.stride(), g.dtype, g.device, *axis) for g, *axis in jobs]))
    plan = _plans.get(key)
    if plan is None:
        plan = _plans[key] = Plan(jobs, metric)
        while len(_plans) > _PLANS:
            del _plans[next(iter(_plans))]
    plan.run(grads)


def _kernel(name: str) -> Any:
    return getattr(kernels, name)


def _upload(array: Any, device: torch.device) -> Tensor:
    return _host(array, device).to(device, non_blocking=True)


def _host(array: Any, device: torch.device) -> Tensor:
    """A tensor whose copy to the device joins the stream: from other than pinned memory the host waits."""
    tensor = torch.as_tensor(array)
    return tensor.pin_memory() if device.type == "cuda" else tensor


_prepared_for_captures: set[torch.device] = set()


def _prepare_captures(pointers: list[int], device: torch.device) -> None:
    """Launch once what a capture launches: compiled code cannot be loaded while one is in progress."""
    if device not in _prepared_for_captures:
        _write(pointers, device)
        _prepared_for_captures.add(device)


def _write(pointers: list[int], device: torch.device) -> Tensor:
    """The addresses as an array on the device, by kernels whose arguments they are."""
    table = torch.empty(-(-len(pointers) // 16) * 16, dtype=torch.int64, device=device)
    padded = pointers + pointers[-1:] * (len(table) - len(pointers))
    for first in range(0, len(table), 16):
        _kernel("write16")[(1,)](table[first:], *padded[first : first + 16], num_warps=1)
    return table
