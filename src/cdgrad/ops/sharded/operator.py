"""The operator on DTensors: every rank works on its own channels, in place, and exchanges a few numbers.

Sharding along another axis than the channel, and replication, need no communication. Where the channel
axis itself is cut (`fully_shard` cuts dim 0), all tensors together take one collective per call:

========================  ================================================================
metric                    float64 numbers per column
========================  ================================================================
``ReweightedL2``          all-reduce of 1 for each cut interval: the column's sum
``Sobolev``,              all-gather of 3 for each piece of an interval: its mean and the
``MeanSobolev``           end values of its standalone solve, see `cdgrad.ops.sharded.interface_system`
========================  ================================================================

An interval is the whole axis, or one group of a grouped convolution; intervals that lie on one rank
are not exchanged. In between everything is an eighth of its size, by an exact power of two: a deviation, or
a sum, may exceed the largest float where the result does not. Two numbers would not
suffice for the mean-weighted metric: the contributions of a shard to the shards on its left and on its right
are different quadratic moments of it, which span three dimensions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from cdgrad.dtensors import channel_mesh_dim, is_dtensor, local_part
from cdgrad.metrics import L2, MeanSobolev, Metric, ReweightedL2, Sobolev
from cdgrad.ops import graphs, local
from cdgrad.ops.byte_cache import cached_by_bytes
from cdgrad.ops.pieces import NUMBERS
from cdgrad.ops.sharded.interface_system import Piece, coupling, cut, standalone

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

_SHRINK = 0.125
_Group = tuple[dist.ProcessGroup, str]  # ranks that share channel axes, and the type of their devices


def directed_(
    grads: Sequence[Tensor],
    metric: Metric,
    dims: Sequence[int],
    groups: Sequence[int],
    backend: str,
    names: Sequence[str] = (),
) -> None:
    """`cdgrad.channel_directed_` on DTensors, and on the ordinary tensors among them.

    Every rank of a mesh must call it with the same gradients in the same order.

    Args:
        grads: gradients that have the axes and the groups below.
        metric: a metric.
        dims: the channel axis of each.
        groups: the group count of each.
        backend: that of the parts on this rank, see `cdgrad.ops.local`.
        names: what errors call the gradients; without names, their indices.

    Raises:
        ValueError: a placement or a shard that the operator does not know, or that the backend cannot take;
            nothing is written then.
    """
    whole: list[tuple[Tensor, int, int]] = []
    cuts: dict[_Group, list[_Cut]] = defaultdict(list)
    for i, (grad, dim, count) in enumerate(zip(grads, dims, groups, strict=True)):
        name = names[i] if names else f"grads[{i}]"
        mesh_dim = channel_mesh_dim(grad, dim, name) if is_dtensor(grad) else None
        if not is_dtensor(grad) or mesh_dim is None:
            whole.append((local_part(grad), dim, count))
        elif grad.numel() and (rank := grad.device_mesh.get_coordinate()) is not None:
            shard = _Cut.of(grad, dim, count, mesh_dim, rank[mesh_dim], name)
            whole += shard.whole()
            if shard.pieces:
                cuts[grad.device_mesh.get_group(mesh_dim), grad.device_mesh.device_type].append(shard)
    if metric == L2():
        return
    with torch.no_grad():
        match metric:
            case ReweightedL2(lam=lam):
                local.directed_(whole, metric, backend)
                for group, shards in cuts.items():
                    _reweight(shards, lam, group)
            case Sobolev() | MeanSobolev():
                # Beyond, the result is the identity, the mean to 1e-20 of the gradient, or it overflows;
                # within, lam n^2 times a rounding error is finite in float32.
                bounded = replace(metric, lam=min(max(metric.lam, 1e-200), 1e20))
                parts = [_subdomains(shards, bounded, backend) for shards in cuts.values()]
                local.directed_(whole, metric, backend)
                for (group, shards), own in zip(cuts.items(), parts, strict=True):
                    _solve(shards, own, bounded, group, backend)
            case _:
                raise TypeError(f"no sharded operator is known for {metric!r}")


def directed(grad: Tensor, metric: Metric, dim: int, groups: int) -> Tensor:
    """`cdgrad.channel_directed` on a DTensor; differentiable, the operator being its own derivative."""
    direct_ = partial(directed_, metric=metric, dims=[dim], groups=[groups], backend="auto")
    return _apply(grad, direct_)


class _Cut(NamedTuple):
    """A gradient whose channel axis is cut over ranks, as this rank sees it."""

    x: Tensor  # (channels here, ...)
    n: int  # channels per interval
    pieces: tuple[Piece, ...]  # of all ranks
    rank: int
    shards: int

    @classmethod
    def of(cls, grad: DTensor, dim: int, groups: int, mesh_dim: int, rank: int, name: str) -> _Cut:
        x = grad.to_local().movedim(dim, 0)
        channels, shards = grad.shape[dim], grad.device_mesh.size(mesh_dim=mesh_dim)
        start = min(rank * -(-channels // shards), channels)
        expected = min(-(-channels // shards), channels - start)
        if len(x) != expected:
            raise ValueError(
                f"{name}: rank {rank} of {shards} holds {len(x)} of {channels} channels, expected {expected} "
                "as torch.chunk cuts; distribute it with distribute_tensor or fully_shard"
            )
        if any(stride == 0 and size > 1 for stride, size in zip(x.stride(), x.shape, strict=True)):
            raise ValueError(f"{name}: its shard is expanded and cannot be written in place; clone it first")
        n = channels // groups
        return cls(x, n, cut(channels, shards, n), rank, shards)

    @property
    def own(self) -> list[Piece]:
        return [piece for piece in self.pieces if piece.rank == self.rank]

    @property
    def columns(self) -> int:
        return prod(self.x.shape[1:])

    @property
    def slots(self) -> int:
        return 1 + max(piece.slot for piece in self.pieces)

    @property
    def intervals(self) -> int:
        return 1 + self.pieces[-1].interval

    def whole(self) -> list[tuple[Tensor, int, int]]:
        """The intervals that lie here uncut, one (tensor, dim, groups) or none; pieces are at the ends."""
        low = max((piece.length for piece in self.own if piece.start == 0), default=0)
        high = min((piece.start for piece in self.own if piece.start > 0), default=len(self.x))
        return [(self.x[low:high], 0, (high - low) // self.n)] if low < high else []

    def part(self, piece: Piece) -> Tensor:
        """The piece's channels, at least in float32: a view if they are, else a copy."""
        x = self.x.narrow(0, piece.start, piece.length)
        return x.float() if x.dtype.itemsize < 4 else x

    def store(self, piece: Piece, part: Tensor) -> None:
        """Write back what `part` has made a copy of."""
        if part.dtype != self.x.dtype:
            self.x.narrow(0, piece.start, piece.length).copy_(part)

    def row(self, values: Tensor) -> Tensor:
        """Numbers of every column, flat, as one row of channels in the part's dtype."""
        dtype = torch.float32 if self.x.dtype.itemsize < 4 else self.x.dtype
        return values.view(self.x.shape[1:]).to(self.x.device, dtype)


def _reweight(shards: list[_Cut], lam: float, group: _Group) -> None:
    """mean + (x - mean) / lam, the means from all-reduced sums."""
    process_group, device = group
    shapes = [(shard.intervals, shard.columns) for shard in shards]
    sums = torch.zeros(sum(map(prod, shapes)), dtype=torch.float64, device=device)
    blocks = _blocks(sums, shapes)
    for shard, block in zip(shards, blocks, strict=True):
        for piece in shard.own:
            block[piece.interval] = _shrunk_sum(shard.part(piece), shard.n).flatten()
    dist.all_reduce(sums, group=process_group)
    for shard, block in zip(shards, blocks, strict=True):
        for piece in shard.own:
            x, mean = shard.part(piece), block[piece.interval]
            factor = min(1 / lam, torch.finfo(x.dtype).max / 16)
            coarse = shard.row(mean)
            # What rounding the mean to x's dtype left over would be amplified by a small lam.
            left_over = coarse.flatten().to(mean) - mean
            _subtract_shrunk(x, coarse)
            torch.add(shard.row(mean + left_over * factor), x, alpha=factor, out=x).mul_(1 / _SHRINK)
            shard.store(piece, x)


class _Subdomain(NamedTuple):
    """A piece, solved alone in a metric of its own, in place."""

    shard: _Cut
    block: int
    piece: Piece
    x: Tensor
    metric: Metric


def _subdomains(shards: list[_Cut], metric: Sobolev | MeanSobolev, backend: str) -> list[_Subdomain]:
    """The pieces on this rank; nothing is written.

    Raises:
        ValueError: the backend cannot take one.
    """
    parts = [
        _Subdomain(shard, block, piece, shard.part(piece), standalone(metric, shard.n, piece.length))
        for block, shard in enumerate(shards)
        for piece in shard.own
    ]
    for part in parts:
        local.choose(backend, part.metric, part.x, 0, 1)
    return parts


def _solve(
    shards: list[_Cut],
    parts: list[_Subdomain],
    metric: Sobolev | MeanSobolev,
    group: _Group,
    backend: str,
) -> None:
    """The standalone solve of every piece, up to a constant, then the correction by the interface system."""
    process_group, device = group
    means = [_shrunk_sum(part.x, len(part.x)) for part in parts]
    by_metric: dict[Metric, list[Tensor]] = defaultdict(list)
    for part, mean in zip(parts, means, strict=True):
        _subtract_shrunk(part.x, mean.to(part.x.dtype))
        by_metric[part.metric].append(part.x)
    for own_metric, xs in by_metric.items():
        local.directed_([(x, 0, 1) for x in xs], own_metric, backend)

    shapes = [(shard.slots, NUMBERS, shard.columns) for shard in shards]
    local_numbers = torch.zeros(sum(map(prod, shapes)), dtype=torch.float64, device=device)
    blocks = _blocks(local_numbers, shapes)
    rests = [part.x.mean(0, dtype=torch.float64).flatten() for part in parts]
    for part, mean, rest in zip(parts, means, rests, strict=True):
        ends = [part.x[i].flatten().double() - rest for i in (0, -1)]
        blocks[part.block][part.piece.slot] = torch.stack([mean.flatten(), *ends])
    gathered = local_numbers.new_empty(shards[0].shards, len(local_numbers))
    _all_gather(gathered.view(-1), local_numbers, process_group)
    numbers_of_all = _blocks(gathered, shapes)

    for part, rest in zip(parts, rests, strict=True):
        shard, piece, x = part.shard, part.piece, part.x
        family = [other for other in shard.pieces if other.interval == piece.interval]
        values = _of_interval(numbers_of_all[part.block], family)
        place = metric, tuple(other.length for other in family), family.index(piece)
        of_all = [_weights(name, *place, torch.float64, values.device) for name in ("shares", "rows")]
        shares, rows = graphs.lent(of_all, values)
        (response,) = graphs.lent([_weights("response", *place, x.dtype, x.device)], x)
        mean = (values[:, 0] * shares).sum(0)
        values[:, 0] -= mean
        v, right, left = rows @ values.flatten(0, 1)
        response = response.view(-1, *[1] * (x.ndim - 1))
        x.addcmul_(response, shard.row(right)).addcmul_(response.flip(0), shard.row(left), value=-1)
        x.add_(shard.row(mean + v - rest.to(v.device))).mul_(1 / _SHRINK)
        shard.store(piece, x)


def _of_interval(numbers: Tensor, family: Sequence[Piece]) -> Tensor:
    """The numbers of the pieces of an interval, a copy of shape (pieces, NUMBERS, columns).

    They lie on consecutive ranks, and all but the first of them are the first of their rank.

    Args:
        numbers: of all ranks and slots, (shards, slots, NUMBERS, columns).
        family: the pieces, in order.
    """
    first = family[0]
    others = numbers[first.rank + 1 : family[-1].rank + 1, 0]
    return torch.cat([numbers[first.rank, first.slot][None], others])


@cached_by_bytes(32 * 2**20)
def _weights(
    name: Literal["rows", "shares", "response"],
    metric: Sobolev | MeanSobolev,
    lengths: tuple[int, ...],
    index: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """A part of `coupling` on the device, where it stays, so that a CUDA graph can hold a step."""
    graphs.refuse_upload(device, f"{metric} for {sum(lengths)} channels over several ranks")
    return torch.tensor(getattr(coupling(metric, lengths, index), name), dtype=dtype, device=device)


def _shrunk_sum(x: Tensor, n: int) -> Tensor:
    """The sum over axis 0, divided by n, in float64 and shrunk."""
    if x.dtype == torch.float64:
        return (x * (_SHRINK / n)).sum(0)  # the sum itself could overflow
    return x.sum(0, dtype=torch.float64) * (_SHRINK / n)


def _subtract_shrunk(x: Tensor, mean: Tensor) -> None:
    """x becomes the shrunk deviation from a mean that is shrunk already."""
    torch.add(-mean, x, alpha=_SHRINK, out=x)


def _blocks(flat: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Views of consecutive parts of the last axis in these shapes."""
    sizes = [prod(shape) for shape in shapes]
    starts = accumulate(sizes, initial=0)
    return [
        flat.narrow(-1, start, size).unflatten(-1, shape)
        for start, size, shape in zip(starts, sizes, shapes, strict=False)
    ]


def _all_gather(out: Tensor, own: Tensor, process_group: dist.ProcessGroup) -> None:
    """The concatenation of all ranks' `own`. torch 2.13 renamed the function and warns of the old name."""
    name = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
    getattr(dist, name)(out, own, group=process_group)


class _Directed(torch.autograd.Function):
    """The operator is symmetric: the gradient with respect to its input is itself, directed."""

    @staticmethod
    def forward(ctx: Any, grad: DTensor, direct_: Callable[[Sequence[Tensor]], None]) -> Tensor:
        ctx.direct_, ctx.placements = direct_, grad.placements
        out = grad.clone()
        direct_([out])
        return out

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        return _apply(cotangents[0].redistribute(placements=ctx.placements), ctx.direct_), None


_apply: Callable[[Tensor, Callable[[Sequence[Tensor]], None]], Tensor] = _Directed.apply  # pyright: ignore[reportUnknownVariableType]  torch does not type `apply`
