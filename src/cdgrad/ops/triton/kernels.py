# pyright: basic, reportOperatorIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false, reportOptionalMemberAccess=false
# Kernels are written in Triton's own language, whose names Python's types do not describe.
"""The GPU kernels: one program owns some columns of one tensor, all along its channel.

Its tile holds R rows of each of W consecutive segments of the channel, for C columns: [R, W, C]. Lanes lie
along the columns, then along the segments, and warps along the segments, so a thread holds all rows of a
segment and recurrences along them need no other thread. Up to R W channels are read once and written once; a
longer column takes several tiles and is read twice, backward the second time, since the L2 cache then still
holds what the first reading ended with.

Recurrences inside a segment are float32 (float64 for float64 tensors). What crosses segments is float64:
sums, moments, and Green's function at the segments' ends, see `cdgrad.ops.sobolev_weights.Images`.

What depends on lam and on the boundary is data, so that changing it compiles nothing.
`cdgrad.ops.triton.tables` writes it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cdgrad.ops.triton.access import INTERPRETED, channels, lanes_along, load, store
from cdgrad.ops.triton.mean_sobolev import mean_sobolev
from cdgrad.ops.triton.scaled import scaled
from cdgrad.ops.triton.sobolev import sobolev, sobolev_by_tiles

DTYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}
# A program's record in the table, int64: tensor, first column, tile, channels, channel stride, number of
# columns, where the weights of its channel count begin, its scratch, a zero, and (size, stride) of each axis
# of columns.
AXES = 4
RECORD = 9 + 2 * AXES
_AXES, _RECORD = tl.constexpr(AXES), tl.constexpr(RECORD)
__all__ = ["AXES", "DTYPES", "INTERPRETED", "RECORD", "directed", "scaled", "write16"]


@triton.jit(do_not_specialize=["number_of_programs"])
def directed(
    addresses,  # int64 per tensor
    records,  # of the programs
    weights,  # float64; [0] is 1 / lam, [1] is 1 where periodic
    scratch,  # float64
    DTYPE: tl.constexpr,
    FAMILY: tl.constexpr,  # 0 re-weighted, 1 Sobolev, 2 mean-weighted Sobolev
    USED: tl.constexpr,  # bit i: there are programs of tile i
    KINDS: tl.constexpr,  # tiles: KINDS / 3 segment counts with aligned, contiguous and strided columns
    R: tl.constexpr,  # rows of a segment
    W: tl.constexpr,  # segments of the first tile; each next one has twice as many segments
    C: tl.constexpr,  # and half of the columns; half as many again where they are not aligned
    VECTOR: tl.constexpr,  # columns that a thread loads at once
    LOOPED: tl.constexpr,  # the size whose tile is looped over where channels exceed all sizes
    ROCM: tl.constexpr,
):
    """The operator on all tensors of a dtype."""
    record = records + _RECORD * tl.program_id(0)
    kind = tl.load(record + 2)
    for i in tl.static_range(KINDS):
        if (USED >> i) & 1:  # noqa: SIM102, the first is known to the compiler
            if kind == i:
                _run(
                    addresses,
                    record,
                    weights,
                    scratch,
                    DTYPE,
                    FAMILY,
                    R >> (i // 3 == KINDS // 3 - 1),
                    W << (i // 3 if i // 3 < KINDS // 3 - 1 else LOOPED),
                    C >> ((i // 3 if i // 3 < KINDS // 3 - 1 else LOOPED) + (i % 3 > 0)),
                    i // 3 == KINDS // 3 - 1,
                    i % 3,
                    VECTOR,
                    ROCM,
                )


@triton.jit
def _run(
    addresses,
    record,
    weights,
    scratch,
    DTYPE: tl.constexpr,
    FAMILY: tl.constexpr,
    R: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    LOOP: tl.constexpr,
    ACCESS: tl.constexpr,  # columns: 0 contiguous and aligned, 1 contiguous, 2 strided
    VECTOR: tl.constexpr,
    ROCM: tl.constexpr,
):
    column, n, step = tl.load(record + 1), tl.load(record + 3), tl.load(record + 4)
    number = tl.load(record + 5)
    start = tl.load(addresses + tl.load(record)).to(tl.pointer_type(DTYPE))
    if ACCESS == 0:
        start = tl.multiple_of(start, 16)
        step = tl.multiple_of(step, VECTOR)
        column = tl.multiple_of(column, VECTOR)
        number = tl.multiple_of(number, VECTOR)
    place = column + tl.arange(0, C)
    exists = (place < number)[None, :]
    if ACCESS == 2:
        offset = tl.zeros((C,), tl.int64)
        for axis in tl.static_range(_AXES):
            size, stride = tl.load(record + 9 + 2 * axis), tl.load(record + 10 + 2 * axis)
            offset += (place % size) * stride
            place = place // size
        place = offset
    offset = place[None, :] + (tl.arange(0, W).to(tl.int64) * (R * step))[:, None]
    p = start + lanes_along(offset, C, VECTOR if ACCESS == 0 else 1, ROCM)
    # 0, but the compiler does not know: it would keep the address of every row from the load to the store.
    # Without its alignment stores would be of single elements, in another layout than the loads.
    zero = tl.multiple_of(tl.load(record + 8), 16)
    if FAMILY == 0:
        _reweighted(p, exists, n, step, weights, zero, R, W, C, LOOP)
    elif FAMILY == 2:
        mean_sobolev(p, exists, n, step, weights, zero, R, W, C, LOOP)
    elif LOOP:
        scratch += tl.load(record + 7)
        sobolev_by_tiles(p, exists, n, step, weights + tl.load(record + 6), scratch, zero, R, W, C)
    else:
        sobolev(p, exists, n, step, weights + tl.load(record + 6), zero, R, W, C)


@triton.jit
def _reweighted(
    p, exists, n, step, weights, zero, R: tl.constexpr, W: tl.constexpr, C: tl.constexpr, LOOP: tl.constexpr
):
    """mean + (g - mean) / lam."""
    k = tl.arange(0, R)
    scale = tl.load(weights)
    inverse = 1.0 / n.to(tl.float64)
    if LOOP:
        tiles = tl.cdiv(n, R * W)
        total = tl.zeros((W, C), tl.float64)
        g = load(p, exists, channels(0, k, R, W), k, n, step)
        for tile in range(1, tiles):
            following = load(p + tile * (R * W) * step, exists, channels(tile, k, R, W), k, n, step)
            total += tl.sum(g.to(tl.float64), 0)
            g = following
        mean = tl.sum(total + tl.sum(g.to(tl.float64), 0), 0) * inverse
        for back in range(tiles):
            tile = tiles - 1 - back
            q = p + tile * (R * W) * step
            following = g
            if tile > 0:
                following = load(q - (R * W) * step, exists, channels(tile - 1, k, R, W), k, n, step)
            store(q + zero, _reweigh(g, mean, scale), exists, channels(tile, k, R, W), k, n, step)
            g = following
    else:
        m = channels(0, k, R, W)
        g = load(p, exists, m, k, n, step)
        mean = tl.sum(tl.sum(g.to(tl.float64), 0), 0) * inverse
        store(p + zero, _reweigh(g, mean, scale), exists, m, k, n, step)


@triton.jit
def _reweigh(g, mean, scale):
    high = mean.to(g.dtype)
    low = (mean - high.to(tl.float64)).to(g.dtype)  # what a small lam would amplify
    deviation = (g - high[None, None, :]) - low[None, None, :]
    return deviation * scale.to(g.dtype) + high[None, None, :]


@triton.jit(do_not_specialize=[f"a{i}" for i in range(16)])
def write16(addresses, a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15):
    """Sixteen integers into a table. As kernel arguments they become part of a captured graph."""
    tl.store(addresses + 0, a0)
    tl.store(addresses + 1, a1)
    tl.store(addresses + 2, a2)
    tl.store(addresses + 3, a3)
    tl.store(addresses + 4, a4)
    tl.store(addresses + 5, a5)
    tl.store(addresses + 6, a6)
    tl.store(addresses + 7, a7)
    tl.store(addresses + 8, a8)
    tl.store(addresses + 9, a9)
    tl.store(addresses + 10, a10)
    tl.store(addresses + 11, a11)
    tl.store(addresses + 12, a12)
    tl.store(addresses + 13, a13)
    tl.store(addresses + 14, a14)
    tl.store(addresses + 15, a15)
