"""The operator in plain torch operations: any device, any floating dtype, differentiable.

g~ = mean(g) + K (g - mean(g)) with K = P - 1 1^T / n, a small symmetric matrix that is known in closed form
in the metric's eigenbasis. Up to `_DENSE` channels, a product with K is all. Beyond, the axis is cut into
pieces of about `_PIECE` channels: each piece is solved alone, by a product with its own K, and an interface
system over three numbers a piece (`cdgrad.ops.sharded.interface_system`) couples them. So there is no loop
over channels. A tensor takes five to ten operations, the last of which writes to the gradient.

The weights are computed in float64 on the host, once per channel count and metric, and stay on the device,
so a CUDA graph can hold the operations once they have run outside it.

Everything between the first and the last operation is an eighth of its size, by an exact power of two: a
deviation may be twice the largest float where the result is finite.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from cdgrad._torch_private import is_differentiated_or_mapped
from cdgrad.machine import has_float64
from cdgrad.metrics import L2, Array, MeanSobolev, Metric, ReweightedL2, Sobolev
from cdgrad.ops import cyclic_reduction, graphs
from cdgrad.ops.byte_cache import cached_by_bytes
from cdgrad.ops.full_precision import full_precision
from cdgrad.ops.pieces import interface

_DENSE = 128
_PIECE = 64
_MOST = 16384  # channels; the interface system grows with the square of the pieces
_SHRINK = 0.125
_ROWS = 1  # the weights of `_Pieces` that stay in float64
_BATCH_BYTES = 256 * 2**20  # of gradients that are processed together


def directed(x: Tensor, metric: Metric) -> Tensor:
    """The operator along axis 1 of `x`, shape (groups, channels, ...); a new tensor of x's dtype.

    Dtypes narrower than float32 are computed in float32.
    """
    if isinstance(metric, L2) or x.shape[1] == 1 or not x.numel():
        return x.clone()
    return cast(Tensor, _Directed.apply(x, metric))


def directed_(xs: Sequence[Tensor], metric: Metric) -> None:
    """`directed` in place on several tensors. On accelerators those of one channel count are one batch.

    A launch there takes as long as the work on a small weight.
    """
    batches: dict[object, list[Tensor]] = defaultdict(list)
    for i, x in enumerate(xs):
        if is_differentiated_or_mapped(x):
            x.copy_(directed(x, metric))  # operations with an output have neither derivative nor vmap
        elif x.numel() and x.shape[1] > 1:
            batches[i if x.device.type == "cpu" else (x.device, x.dtype, x.shape[1])].append(x)
    for batch in batches.values():
        while batch:
            size, members = 0, list[Tensor]()
            while batch and (not members or size + batch[-1].nbytes <= _BATCH_BYTES):
                size += batch[-1].nbytes
                members.append(batch.pop())
            _directed_batch_(members, metric)


def _directed_batch_(xs: list[Tensor], metric: Metric) -> None:
    shaped = [_channels_first(x) for x in xs]
    matrices = [x.reshape(x.shape[0], -1) for x in shaped]
    widths: Any = [matrix.shape[1] for matrix in matrices]  # torch types them as one number
    with full_precision(xs[0].device.type):
        solved = _prepared(matrices[0] if len(xs) == 1 else torch.cat(matrices, 1), metric)
        if solved.takes_out and all(x.is_contiguous() and x.dtype == solved.dtype for x in shaped):
            # The last operation writes to each gradient: fewer bytes than one result and a copy of it.
            first = 0
            for matrix in matrices:
                solved.columns(first, first + matrix.shape[1], matrix)
                first += matrix.shape[1]
            return
        parts = torch.split(solved.columns(0, sum(widths)), widths, 1)
    for x, part in zip(shaped, parts, strict=True):
        x.copy_(part.reshape(x.shape))


class _Directed(torch.autograd.Function):
    """The operator is symmetric and linear: its own derivative, both ways."""

    @staticmethod
    def forward(x: Tensor, metric: Metric) -> Tensor:
        return _operator(x, metric)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Metric], output: Tensor) -> None:
        ctx.metric = inputs[1]

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        return directed(cotangents[0], ctx.metric), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return directed(tangents[0], ctx.metric)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int]:
        # Columns are independent, so a batch is more of them.
        x, metric = args
        return directed(x.movedim(in_dims[0], -1), metric), x.dim() - 1


def _operator(x: Tensor, metric: Metric) -> Tensor:
    shaped = _channels_first(x)
    matrix = shaped.reshape(shaped.shape[0], -1)
    with full_precision(x.device.type):
        out = _prepared(matrix, metric).columns(0, matrix.shape[1])
    order = _order(x)
    return out.to(x.dtype).view(shaped.shape).permute([order.index(d) for d in range(x.dim())])


def _channels_first(x: Tensor) -> Tensor:
    """A view: the channels first, then the other axes as memory has them, so that a matrix needs no copy."""
    return x.permute(_order(x))


def _order(x: Tensor) -> list[int]:
    return [1, *sorted({*range(x.dim())} - {1}, key=lambda d: (-x.stride(d), d))]


class _Solved(Protocol):
    """All but the last operation, which gives the result of any range of columns."""

    dtype: torch.dtype
    takes_out: bool
    """Whether the last operation writes to a contiguous matrix that it is given."""

    def columns(self, first: int, end: int, out: Tensor | None = None) -> Tensor:
        """The result (n, end - first), in `out` if given."""
        ...


def _prepared(x: Tensor, metric: Metric) -> _Solved:
    """The operator on the columns of a matrix (n, columns), which stays as it is; within `full_precision`."""
    x = x.to(torch.float32) if x.dtype.itemsize < 4 else x
    match metric:
        case ReweightedL2(lam=lam):
            return _Reweighted(x, lam)
        case Sobolev() | MeanSobolev() if len(x) > _MOST:
            return _Whole(cyclic_reduction.directed(x[None], metric)[0])
        case Sobolev() | MeanSobolev():
            return _InPieces(x, metric)
        case _:
            raise TypeError(f"no operator is known for {metric!r}")


class _Whole:
    """A result."""

    takes_out = False

    def __init__(self, result: Tensor) -> None:
        self._result, self.dtype = result, result.dtype

    def columns(self, first: int, end: int, out: Tensor | None = None) -> Tensor:
        return self._result[:, first:end]


class _Reweighted:
    """mean + (x - mean) / lam."""

    takes_out = True

    def __init__(self, x: Tensor, lam: float) -> None:
        self.dtype = x.dtype
        negative, rest = _mean(x)
        factor = min(1 / lam, torch.finfo(x.dtype).max / 16)
        self._scale = factor / _SHRINK
        self._row = torch.add(
            rest * (1 - factor), negative, alpha=-1 / _SHRINK, out=torch.empty_like(negative)
        )
        self._deviation = torch.add(negative, x, alpha=_SHRINK)

    def columns(self, first: int, end: int, out: Tensor | None = None) -> Tensor:
        deviation = self._deviation[:, first:end]
        return torch.add(
            self._row[:, first:end], deviation, alpha=self._scale, out=deviation if out is None else out
        )


class _InPieces:
    """mean + K x: each piece alone and three numbers of it, the interface system, then all at once."""

    def __init__(self, x: Tensor, metric: Sobolev | MeanSobolev) -> None:
        self.dtype, self._n = x.dtype, len(x)
        *coupling, self._weights = graphs.lent(_weights(metric, len(x), x.dtype, x.device), x)
        pieces, length, rows = self._weights.shape
        whole, left = divmod(len(x), length)
        self.takes_out = not left
        negative, rest = _mean(x)
        self._buffer = buffer = x.new_empty(pieces, rows, x.shape[1])
        together = x[: whole * length].view(whole, length, -1)
        torch.add(negative, together, alpha=_SHRINK, out=buffer[:whole, :length])
        if left:
            torch.add(negative, x[whole * length :], alpha=_SHRINK, out=buffer[whole, :left])
            buffer[whole, left:length].zero_()
        if coupling:
            ends, interface_rows = coupling
            numbers = torch.bmm(ends, buffer[:, :length]).to(interface_rows.dtype)
            coupled = interface_rows @ numbers.view(3 * pieces, -1)
            buffer[:, length : length + 3] = coupled.view(pieces, 3, -1)
        torch.sub(negative.expand(pieces, -1), rest, alpha=_SHRINK, out=buffer[:, -1])

    def columns(self, first: int, end: int, out: Tensor | None = None) -> Tensor:
        pieces, length, _ = self._weights.shape
        part = self._buffer[:, :, first:end]
        out = part.new_empty(pieces, length, end - first) if out is None else out.view(pieces, length, -1)
        out.baddbmm_(self._weights, part, beta=0, alpha=1 / _SHRINK)
        return out.view(pieces * length, -1)[: self._n]


def _mean(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean along axis 0 in x's dtype, shrunk and negative, and what rounding left over of it.

    Every metric passes the mean unchanged, so only the deviation is solved for. Where lam mu is large the
    result is all mean; where it is small, a rounding error of the mean is amplified like a deviation. Both
    need the mean beyond float32. Sums are in float64, where the device has it.
    """
    if x.dtype == torch.float32 and has_float64(x.device):
        mean = x.mean(0, keepdim=True, dtype=torch.float64)
        negative = torch.mul(mean, -_SHRINK, out=x.new_empty(1, x.shape[1]))
        return negative, torch.add(mean, negative, alpha=1 / _SHRINK)
    coarse = (x * (1 / len(x))).sum(0, keepdim=True)  # a sum of the elements could overflow
    shrink = _SHRINK / 2.0 ** len(x).bit_length()  # as could that of their deviations
    rest = torch.add(coarse * -shrink, x, alpha=shrink).mean(0, keepdim=True) / shrink
    return coarse * -_SHRINK, rest


def _deviation_kernel(metric: Sobolev | MeanSobolev, n: int) -> Array:
    """P - 1 1^T / n, n x n: the eigenbasis is DCT-II for free ends and Fourier for periodic ones."""
    factors = metric.spectrum(n)
    factors[0] = 0.0
    m = np.arange(n)
    if metric.boundary == "periodic":
        row = np.cos(2 * np.pi * (np.outer(m, m) % n) / n) @ factors / n
        return row[(m[:, None] - m) % n]
    basis = np.cos(np.pi * (np.outer(2 * m + 1, m) % (4 * n)) / (2 * n)) * np.sqrt(2 / n)
    return (basis * factors) @ basis.T


def _whole(metric: Sobolev | MeanSobolev, n: int) -> Array:
    """(1, n, n + 1): from the deviation and -mean."""
    return np.hstack([_deviation_kernel(metric, n), np.full((n, 1), -1.0)])[None]


class _Pieces(NamedTuple):
    """Weights for an axis cut into pieces of equal length, the last one perhaps shorter and filled up."""

    ends: Array  # (pieces, 3, length): mean, first and last value of a piece alone
    rows: Array  # (3 pieces, 3 pieces): v, theta_right, theta_left of every piece from these
    weights: Array  # (pieces, length, length + 4): from the deviation, v, the two thetas and -mean


def _pieces(metric: Sobolev | MeanSobolev, n: int) -> _Pieces:
    # Equal pieces, if a length near the usual one divides n.
    length = min(range(_PIECE // 2, 2 * _PIECE + 1), key=lambda size: (n % size > 0, abs(size - _PIECE)))
    count = -(-n // length)
    lengths = [length] * (n // length) + ([n % length] if n % length else [])
    metric = replace(metric, lam=min(max(metric.lam, 1e-200), 1e200))
    c = metric.lam * float(n) ** 2
    alone = {
        size: _deviation_kernel(replace(metric, lam=c / size**2, boundary="free"), size)
        for size in set(lengths)
    }
    responses = [c * alone[size][:, -1] for size in lengths]
    rows = interface(metric, tuple(lengths), responses)
    # Means are relative to their own mean: a deviation rounded to float32 does not have mean 0, and the
    # difference, integrated over all channels, would be 1e-6 of the result at n = 8192.
    rows[..., 0] -= rows[..., 0].sum(-1, keepdims=True) * np.array(lengths) / n
    rows = rows.reshape(3 * count, 3 * count)
    ends, weights = np.zeros((count, 3, length)), np.zeros((count, length, length + 4))
    for i, (size, response) in enumerate(zip(lengths, responses, strict=True)):
        kernel = alone[size]
        ends[i, :, :size] = np.full(size, 1 / size), kernel[0], kernel[-1]
        weights[i, :size, :size] = kernel
        weights[i, :size, length] = 1.0
        weights[i, :size, length + 1] = response
        weights[i, :size, length + 2] = -response[::-1]
        weights[i, :size, length + 3] = -1.0
    return _Pieces(ends, rows, weights)


@cached_by_bytes(128 * 2**20)
def _weights(metric: Sobolev | MeanSobolev, n: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """The weights on the device, finite in the dtype.

    Raises:
        RuntimeError: a CUDA graph is being captured, which cannot hold a copy from the host.
    """
    graphs.refuse_upload(device, f"{metric} for {n} channels")
    largest = torch.finfo(dtype).max / 16
    exact = torch.float64 if has_float64(device) else dtype
    arrays = [_whole(metric, n)] if n <= _DENSE else [*_pieces(metric, n)]
    return [  # from numpy, which no default device concerns
        torch.from_numpy(array.clip(-largest, largest)).to(device, exact if i == _ROWS else dtype)
        for i, array in enumerate(arrays)
    ]
