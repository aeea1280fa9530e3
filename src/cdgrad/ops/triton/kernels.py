# pyright: basic, reportOperatorIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false, reportOptionalMemberAccess=false
# Kernels are written in Triton's own language, whose names Python's types do not describe.
"""The GPU kernels: one program owns some columns of one tensor, all along its channel.

Its tile holds R rows of each of W segments, for C columns: [R, W, C]. Lanes lie along the columns, then along
the segments, and warps along the segments, so a thread holds all rows of a segment and recurrences along them
need no other thread. Where a column needs a G-th of the segments, a tile holds G groups of C columns (see
`cdgrad.ops.triton.access`). So there is one tile for any number of channels: little to compile, and little
code, whose first execution on each multiprocessor waits until it comes from memory. Up to R W channels are
read once and written once; a longer column takes several tiles and is read twice, backward the second time,
since the caches then still hold what the first reading ended with.

Recurrences inside a segment are float32 (float64 for float64 tensors). What crosses segments is float64:
sums, moments, and Green's function at the segments' ends, see `cdgrad.ops.sobolev_weights.Images`.

What depends on lam and on the boundary is data, so that changing it compiles nothing.
`cdgrad.ops.triton.tables` writes it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cdgrad.ops.triton.access import (
    INTERPRETED,
    channels,
    lanes_along,
    load,
    nothing,
    segment,
    store,
    sums_behind,
)
from cdgrad.ops.triton.mean_sobolev import mean_sobolev
from cdgrad.ops.triton.scaled import scaled
from cdgrad.ops.triton.sobolev import sobolev

DTYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}
# A tensor's record, int64: channels, channel stride, number of columns, groups G beside each other,
# 2^16 // G + 1, where the weights of its channel count begin, where its scratch begins, a zero, and
# (size, stride) of each axis of columns.
AXES = 4
RECORD = 8 + 2 * AXES
_AXES, _RECORD = tl.constexpr(AXES), tl.constexpr(RECORD)
__all__ = ["AXES", "DTYPES", "INTERPRETED", "RECORD", "directed", "scaled", "write16"]


@triton.jit
def directed(
    addresses,  # int64 per tensor
    programs,  # int32: tensor, which of its blocks of columns, access
    records,  # of the tensors
    weights,  # float64; [0] is 1 / lam, [1] is 1 where periodic
    scratch,  # float64
    DTYPE: tl.constexpr,
    FAMILY: tl.constexpr,  # 0 re-weighted, 1 Sobolev, 2 mean-weighted Sobolev
    USED: tl.constexpr,  # bit i: there are tensors of access i
    R: tl.constexpr,  # rows of a segment
    W: tl.constexpr,  # segments
    C: tl.constexpr,  # columns; half as many where they are not aligned
    VECTOR: tl.constexpr,  # columns that a thread loads at once
    ROCM: tl.constexpr,
):
    """The operator on all tensors of a dtype."""
    program = programs + 3 * tl.program_id(0)
    tensor, block, access = tl.load(program), tl.load(program + 1).to(tl.int64), tl.load(program + 2)
    for i in tl.static_range(3):
        if (USED >> i) & 1:  # noqa: SIM102, the first is known to the compiler
            if access == i:
                _run(
                    addresses + tensor,
                    block,
                    records + _RECORD * tensor,
                    weights,
                    scratch,
                    DTYPE,
                    FAMILY,
                    R,
                    W,
                    C >> (i > 0),
                    i,
                    VECTOR,
                    ROCM,
                )


@triton.jit
def _run(
    address,
    block,
    record,
    weights,
    scratch,
    DTYPE: tl.constexpr,
    FAMILY: tl.constexpr,
    R: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    ACCESS: tl.constexpr,  # columns: 0 contiguous and aligned, 1 contiguous, 2 strided
    VECTOR: tl.constexpr,
    ROCM: tl.constexpr,
):
    n, step, number = tl.load(record).to(tl.int32), tl.load(record + 1), tl.load(record + 2)
    G, inverse = tl.load(record + 3).to(tl.int32), tl.load(record + 4).to(tl.int32)
    start = tl.load(address).to(tl.pointer_type(DTYPE))
    if ACCESS == 0:
        start = tl.multiple_of(start, 16)
        step = tl.multiple_of(step, VECTOR)
        number = tl.multiple_of(number, VECTOR)
    w = tl.arange(0, W)
    s = w * inverse >> 16  # w // G, a segment of its column
    place = ((block * G + (w - s * G)) * C)[:, None] + tl.arange(0, C)[None, :]
    exists = place < number
    if ACCESS == 2:
        offset = tl.zeros((W, C), tl.int64)
        for axis in tl.static_range(_AXES):
            size, stride = tl.load(record + 8 + 2 * axis), tl.load(record + 9 + 2 * axis)
            offset += (place % size) * stride
            place = place // size
        place = offset
    offset = place + (s.to(tl.int64) * (R * step))[:, None]
    p = start + lanes_along(offset, C, VECTOR if ACCESS == 0 else 1, ROCM)
    # 0, but the compiler does not know: it would keep the address of every row from the load to the store.
    # Without its alignment stores would be of single elements, in another layout than the loads.
    zero = tl.multiple_of(tl.load(record + 7), 16)
    if FAMILY == 0:
        _reweighted(p, exists, n, step, G, s, weights, zero, R, W, C)
    elif FAMILY == 2:
        mean_sobolev(p, exists, n, step, G, s, weights, zero, R, W, C)
    else:
        entry = scratch + tl.load(record + 6) + block * (tl.cdiv(n, R * W) * C)
        sobolev(p, exists, n, step, G, s, weights + tl.load(record + 5), entry, zero, R, W, C)


@triton.jit
def _reweighted(p, exists, n, step, G, s, weights, zero, R: tl.constexpr, W: tl.constexpr, C: tl.constexpr):
    """mean + (g - mean) / lam."""
    k = tl.arange(0, R)
    scale = tl.load(weights)
    tiles = tl.cdiv(n, R * W)
    total = tl.zeros((W, C), tl.float64)
    g = nothing(p, R, W, C)
    for tile in range(tiles):
        g = load(p + tile * (R * W * step), exists, channels(tile, k, s, R, W), k, n, step)
        total += tl.sum(g.to(tl.float64), 0)
    first = tl.arange(0, W) - s * G  # of its column, whose sums behind are those of the whole column
    mean = segment(sums_behind(total, G, W, C), first, W, C) * (1.0 / n.to(tl.float64))
    high = mean.to(g.dtype)
    low = (mean - high.to(tl.float64)).to(g.dtype)  # what a small lam would amplify
    for back in range(tiles):
        tile = tiles - 1 - back
        q, m = p + tile * (R * W * step), channels(tile, k, s, R, W)
        if back > 0:
            g = load(q, exists, m, k, n, step)
        deviation = (g - high[None, :, :]) - low[None, :, :]
        store(q + zero, deviation * scale.to(g.dtype) + high[None, :, :], exists, m, k, n, step)


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
