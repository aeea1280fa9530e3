"""The operator on GPUs, in place: one launch for all tensors of a dtype (cdgrad.ops.triton.kernels).

A launch reads small arrays that stay on the device: the tensors' records and addresses, which columns each
program has, and the weights of the metric. Each is written when its contents are first needed, so a training
loop whose gradients keep their memory writes nothing.

Order: every stream has arrays of its own, allocated, written and read on that stream, so that no event is
needed, and memory that is freed is not used again before its last reader ran. At new addresses a step costs
one more copy of eight bytes a tensor. Only another lam for a captured graph waits for the device, once, since
a replay may be under way on any stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cdgrad._torch_private import stream_handle
from cdgrad.metrics import Array, MeanSobolev, Metric, ReweightedL2, Sobolev, differ_in_lam_at_most
from cdgrad.ops.addresses import addresses_of, chosen, integers, remember, without_address
from cdgrad.ops.graphs import capturing_on, keep_for_replays
from cdgrad.ops.memory_layout import Columns, columns_of
from cdgrad.ops.triton import kernels, tables
from cdgrad.ops.triton.tables import TILES, Tile
from cdgrad.ops.triton.upload import upload, upload_integers, write
from cdgrad.ops.versions import wrote_behind_autograd

FAMILIES: dict[type[Metric], int] = {ReweightedL2: 0, Sobolev: 1, MeanSobolev: 2}
Job = tuple[Tensor, int, int]  # gradient, channel axis, groups
# A product and its sum are one instruction: Triton 3.9 warns where nobody asks for it, 3.10 does not do it.
FUSED = {"enable_fp_fusion": True}
STREAMS = 4  # of which arrays are kept
MOST_CHANNELS = 2**30  # kernels count them, and those of the last tile, in 32 bits


def refusal(grad: Tensor, dim: int, groups: int) -> str | None:
    """Why `directed_` cannot take this gradient, as a sentence; None if it can."""
    if grad.device.type != "cuda" and not (grad.device.type == "cpu" and kernels.INTERPRETED):
        return f"the Triton kernels run on CUDA and ROCm devices, and this gradient is on {grad.device}"
    if (reason := without_address(grad)) is not None:
        return reason
    if grad.dtype not in kernels.DTYPES:
        return f"the Triton kernels do not support {grad.dtype}"
    columns = columns_of(grad.shape, grad.stride(), dim, groups)
    if columns is not None and len(columns.axes) > kernels.AXES:
        return (
            f"its columns span {len(columns.axes)} axes in memory; the Triton kernels support {kernels.AXES}"
        )
    if columns is not None and columns.n > MOST_CHANNELS:
        return f"it has {columns.n} channels; the Triton kernels support {MOST_CHANNELS}"
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
            tile = (tiles or TILES[type(metric)])[dtype.itemsize]
            self._batches.append(_Batch(device, dtype, metric, tile, of_batch))

    @property
    def metric(self) -> Metric:
        """The metric. One of the same family and boundary condition can be set; captured graphs follow."""
        return self._metric

    @metric.setter
    def metric(self, metric: Metric) -> None:
        if not differ_in_lam_at_most(metric, self._metric):
            raise ValueError(
                f"only lam can change: {self._metric} cannot become {metric}; prepare a new plan"
            )
        if any(batch.capturing for batch in self._batches):
            raise RuntimeError(
                "a CUDA graph is being captured, and lam cannot change within it; run one step between the "
                "change and the capture, or change it between two replays"
            )
        self._metric = metric
        devices = {
            batch.device for batch in self._batches if batch.read_by_graphs and batch.device.type == "cuda"
        }
        for device in devices:  # a replay may be under way on any stream
            torch.cuda.synchronize(device)
        for batch in self._batches:
            batch.set_metric(metric)
        for device in devices:  # and the next one may be on another stream than the new weights
            torch.cuda.current_stream(device).synchronize()

    def run(self, grads: Sequence[Tensor]) -> None:
        """The operator in place, one launch per device and dtype, on the current stream.

        Raises:
            RuntimeError: a graph is being captured, and the plan has not run before.
        """
        self.run_at(addresses_of(grads))
        wrote_behind_autograd(grads)

    def run_at(self, addresses: bytes) -> None:
        """`run` on gradients at these addresses, without counting the write for autograd."""
        for batch in self._batches:
            whole = 8 * len(batch.members) == len(addresses)
            if batch.run(addresses if whole else chosen(addresses, batch.members)):
                keep_for_replays([self])


class _Arrays:
    """What the launches of a batch on one stream read.

    Attributes:
        metric: the metric of the weights.
        aligned: of each tensor, whether it begins at a multiple of 16 bytes.
        addresses: of the last steps, on the device; the oldest first.
    """

    def __init__(self, batch: _Batch, metric: Metric, aligned: tuple[bool, ...]) -> None:
        self._device, self._dtype, self._tile = batch.device, batch.dtype, batch.tile
        self.metric, self.aligned = metric, aligned
        self.addresses: dict[bytes, Tensor] = {}
        tensors = list(zip(batch.columns, aligned, strict=True))
        records = tables.records(tensors, sobolev=isinstance(metric, Sobolev), tile=self._tile)
        self._channels, self._scratch_size = records.channels, max(records.scratch, 1)
        self._tables = upload(records.programs, self._device), upload(records.tensors, self._device)
        self._weights = upload(self._values(metric), self._device)
        self._scratch = self._new_scratch()
        self._grid = (len(records.programs),)
        self._constants = constants_of(metric, self._dtype, records.used, self._tile)
        self._options = {"num_warps": self._tile.warps, **options_of(self._device)}
        self._compiled: Callable[..., None] | None = None

    def write(self, metric: Metric) -> None:
        """Write the weights of another lam, on the current stream."""
        write(self._weights, self._values(metric))
        self.metric = metric

    def launch(self, addresses: Tensor, *, in_graph: bool = False) -> None:
        """The operator. Replays may run while steps on other streams do, so a graph has its own scratch."""
        scratch = self._new_scratch() if in_graph else self._scratch
        arrays = addresses, *self._tables, self._weights, scratch
        if self._compiled is not None:
            self._compiled(*arrays, *self._constants.values())
            return
        kernel = named_kernel("directed")[self._grid](*arrays, **self._constants, **self._options)
        if kernel is not None:  # the interpreter compiles none
            # Otherwise Triton looks for the compiled kernel by its arguments: 9 to 15 microseconds a step.
            self._compiled = kernel[(*self._grid, 1, 1)]

    def _new_scratch(self) -> Tensor:
        return torch.empty(self._scratch_size, dtype=torch.float64, device=self._device)

    def _values(self, metric: Metric) -> Array:
        return tables.weights(self._channels, metric, self._tile)


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
        self.columns = tuple(members.values())
        self.device, self.dtype, self.tile = device, dtype, tile
        self._metric = metric
        self._all_aligned = (True,) * len(members)
        self._low_bits = int.from_bytes(b"\x0f\0\0\0\0\0\0\0" * len(members), "little")
        self._on_stream: dict[int, _Arrays] = {}
        # Captured graphs read them whenever they are replayed: they stay, and lam is written to all of them.
        self._graphs: list[_Arrays] = []
        self._addresses_of_graphs: list[Tensor] = []

    @property
    def capturing(self) -> bool:
        """Whether a graph is being captured."""
        return capturing_on(self.device)

    @property
    def read_by_graphs(self) -> bool:
        """Whether replays of captured graphs read its arrays."""
        return bool(self._graphs)

    def set_metric(self, metric: Metric) -> None:
        self._metric = metric
        here = self._on_stream.get(self._current_stream())
        if here is not None and here not in self._graphs:
            here.write(metric)  # those on other streams are written there, in their next step
        for arrays in self._graphs:
            arrays.write(metric)

    def run(self, addresses: bytes) -> bool:
        """Launch on the current stream; returns whether a graph captured it."""
        if self.device.type != "cuda" or torch.cuda.current_device() == self.device.index:
            return self._run(addresses)
        with torch.cuda.device(self.device):
            return self._run(addresses)

    def _run(self, addresses: bytes) -> bool:
        if capturing_on(self.device):
            self._run_in_graph(addresses)
            return True
        stream = self._current_stream()
        arrays = self._on_stream.get(stream)
        on_device = None if arrays is None else arrays.addresses.get(addresses)
        if arrays is None or on_device is None:
            arrays, on_device = self._upload(addresses, stream)
        if arrays.metric is not self._metric:
            arrays.write(self._metric)
        arrays.launch(on_device)
        return False

    def _upload(self, addresses: bytes, stream: int) -> tuple[_Arrays, Tensor]:
        """Arrays of this stream, and these addresses on the device."""
        arrays, aligned = self._on_stream.get(stream), self._alignment(addresses)
        if arrays is None or aligned != arrays.aligned:
            with torch.inference_mode(False):  # of inference mode, lam could be written there alone
                arrays = _Arrays(self, self._metric, aligned)
            remember(self._on_stream, stream, arrays, STREAMS)
            prepare_captures(self.device)
        on_device = upload_integers(addresses, self.device)
        remember(arrays.addresses, addresses, on_device)
        return arrays, on_device

    def _run_in_graph(self, addresses: bytes) -> None:
        aligned = self._alignment(addresses)
        present = [*reversed(self._on_stream.values()), *self._graphs]
        arrays = next((a for a in present if a.aligned == aligned and a.metric is self._metric), None)
        if arrays is None:
            raise RuntimeError(
                "a CUDA graph is being captured, and no step with these shapes, strides and this metric ran "
                "outside it; run one step before the capture"
            )
        if arrays not in self._graphs:
            self._graphs.append(arrays)
        on_device = arrays.addresses.get(addresses)
        if on_device is None:
            # A graph keeps its gradients in memory of its own: their addresses are written within it.
            on_device = write_in_graph(integers(addresses), self.device)
        else:
            self._addresses_of_graphs.append(on_device)
        arrays.launch(on_device, in_graph=True)

    def _current_stream(self) -> int:
        return stream_handle(self.device) if self.device.type == "cuda" else 0

    def _alignment(self, addresses: bytes) -> tuple[bool, ...]:
        """Of each tensor, whether it begins at a multiple of 16 bytes."""
        if not int.from_bytes(addresses, "little") & self._low_bits:
            return self._all_aligned
        return tuple([not address & 15 for address in integers(addresses)])


def constants_of(metric: Metric, dtype: torch.dtype, used: int, tile: Tile) -> dict[str, Any]:
    """The compile-time arguments of the kernel, in its order."""
    return {
        "DTYPE": kernels.DTYPES[dtype],
        "FAMILY": FAMILIES[type(metric)],
        "USED": used,
        "R": tile.rows,
        "W": tile.segments,
        "C": tile.columns,
        "VECTOR": tile.vector,
        "ROCM": torch.version.hip is not None,
    }


def options_of(device: torch.device) -> dict[str, Any]:
    """The compiler's options: two programs on a multiprocessor need at most 128 registers."""
    limit = {"maxnreg": 128} if device.type == "cuda" and torch.version.hip is None else {}
    return {**FUSED, **limit}


# Plans by forms and metric. The oldest leave, except those that graphs read.
_PLANS = 64
_plans: dict[Any, Plan] = {}


def directed_(jobs: Sequence[Job], metric: Metric) -> None:
    """The operator in place, on (gradient, dim, groups) that `refusal` does not refuse.

    On one device and for one dtype it is one launch, on the current stream.

    Extra memory: 128 bytes per tensor and 12 per 8,192 elements (per 4,096 where columns are not aligned);
    for Sobolev 0.6 kB for each distinct channel count, beyond 512 channels about half a byte more per
    channel and a float64 per 512 elements.

    Raises:
        RuntimeError: a graph is being captured, and these shapes or this metric have not run before.
    """
    grads = [grad for grad, *_ in jobs]
    key = (metric, tuple([(g.shape, g.stride(), g.dtype, g.device, *axis) for g, *axis in jobs]))
    plan = _plans.get(key) or remember(_plans, key, Plan(jobs, metric), _PLANS)
    plan.run(grads)


def named_kernel(name: str) -> Any:
    """A kernel; benchmarks without a GPU replace this function."""
    return getattr(kernels, name)


_prepared_for_captures: set[torch.device] = set()


def prepare_captures(device: torch.device) -> None:
    """Launch once what a capture launches: compiled code cannot be loaded while one is in progress."""
    if device not in _prepared_for_captures:
        write_in_graph([1 << 40], device)  # beyond 32 bits, like addresses: less would be another kernel
        _prepared_for_captures.add(device)


def write_in_graph(pointers: list[int], device: torch.device) -> Tensor:
    """The addresses as an array on the device, by kernels whose arguments they are."""
    table = torch.empty(-(-len(pointers) // 16) * 16, dtype=torch.int64, device=device)
    padded = pointers + pointers[-1:] * (len(table) - len(pointers))
    for first in range(0, len(table), 16):
        named_kernel("write16")[(1,)](table[first:], *padded[first : first + 16], num_warps=1, **FUSED)
    return table
