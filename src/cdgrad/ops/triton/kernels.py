# pyright: basic, reportOperatorIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false, reportOptionalMemberAccess=false
# Kernels are written in Triton's own language, whose names Python's types do not describe.
"""The GPU kernels: one program owns some columns of one tensor, all along its channel.

Its tile holds R rows of each of W consecutive segments of the channel, for C columns: [R, W, C]. Lanes lie
along the columns, then along the segments, and warps along the segments, so a thread holds all rows of a
segment and recurrences along them need no other thread. Up to R W channels are read once and written once; a
longer column takes several tiles and is read twice, backward the second time, since the L2 cache then still
holds what the first reading ended with.

Recurrences inside a segment are float32 (float64 for float64 tensors). What crosses segments is float64:
sums, moments, and Green's function at the segments' ends, see `cdgrad.ops.sobolev_weights.Sobolev`.

What depends on lam is data, so that changing it compiles nothing. `cdgrad.ops.triton.tables` writes it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton import knobs

DTYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}
# A program's record in the table, int64: tensor, first column, tile, channels, channel stride, number of
# columns, its first row among the row weights, where its segment weights begin, its scratch, a zero, and
# (size, stride) of each axis of columns.
AXES = 4
RECORD = 10 + 2 * AXES
_AXES, _RECORD = tl.constexpr(AXES), tl.constexpr(RECORD)
INTERPRETED = knobs.runtime.interpret  # under TRITON_INTERPRET=1: the kernels run on the CPU
_COMPILED = tl.constexpr(not INTERPRETED)


@triton.jit(do_not_specialize=["number_of_programs"])
def directed(
    addresses,  # int64 per tensor
    records,  # of the programs
    weights,  # float64; [0] is 1 / lam
    local,  # weights of recurrences, in the dtype that they run in
    scratch,  # float64
    DTYPE: tl.constexpr,
    FAMILY: tl.constexpr,  # 0 re-weighted, 1 Sobolev, 2 mean-weighted Sobolev
    PERIODIC: tl.constexpr,
    USED: tl.constexpr,  # bit i: there are programs of tile i
    KINDS: tl.constexpr,  # tiles: KINDS / 3 segment counts with aligned, contiguous and strided columns
    R: tl.constexpr,  # rows of a segment, half as many in the last tile, which is looped over
    W: tl.constexpr,  # segments of the first tile; each next one has twice as many segments
    C: tl.constexpr,  # and half of the columns
    VECTOR: tl.constexpr,  # elements of 16 bytes
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
                    local,
                    scratch,
                    DTYPE,
                    FAMILY,
                    PERIODIC,
                    R >> (i // 3 == KINDS // 3 - 1),
                    W << (i // 3 - (i // 3 == KINDS // 3 - 1)),
                    C >> (i // 3 - (i // 3 == KINDS // 3 - 1)),
                    i // 3 == KINDS // 3 - 1,
                    i % 3,
                    VECTOR,
                )


@triton.jit
def _run(
    addresses,
    record,
    weights,
    local,
    scratch,
    DTYPE: tl.constexpr,
    FAMILY: tl.constexpr,
    PERIODIC: tl.constexpr,
    R: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    LOOP: tl.constexpr,
    ACCESS: tl.constexpr,  # columns: 0 contiguous and aligned to 16 bytes, 1 contiguous, 2 strided
    VECTOR: tl.constexpr,
):
    column, n, step = tl.load(record + 1), tl.load(record + 3), tl.load(record + 4)
    number = tl.load(record + 5)
    row = tl.load(record + 6)
    rows = weights + 2 + 2 * row
    segments = weights + tl.load(record + 7)
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
            size, stride = tl.load(record + 10 + 2 * axis), tl.load(record + 11 + 2 * axis)
            offset += (place % size) * stride
            place = place // size
        place = offset
    offset = place[None, :] + (tl.arange(0, W).to(tl.int64) * (R * step))[:, None]
    p = start + _lanes_along(offset, C, VECTOR if ACCESS == 0 else 1)
    # 0, but the compiler does not know: it would keep the address of every row from the load to the store.
    zero = tl.load(record + 9)
    local += 3 * row
    if FAMILY == 0:
        _reweighted(p, exists, n, step, weights, zero, R, W, C, LOOP)
    elif FAMILY == 1:
        scratch += tl.load(record + 8)
        _sobolev(p, exists, n, step, rows, segments, local, scratch, zero, PERIODIC, R, W, C, LOOP)
    else:
        _mean_sobolev(p, exists, n, step, weights, zero, PERIODIC, R, W, C, LOOP)


@triton.jit
def _lanes_along(offset, C: tl.constexpr, MULTIPLE: tl.constexpr):
    """`offset`, [W, C], rows of which begin at a multiple of that, so that lanes fill the columns first.

    The compiler orders dimensions by contiguity, and breaks ties in one way in Triton 3.6 and in another in
    3.9: columns are said to be more contiguous than segments, and these than rows. The width of an access
    follows from the alignment, too, so it does not matter that the claim need not hold.
    """
    if _COMPILED:  # an operation that no simplification removes, and the claim with it
        offset = tl.inline_asm_elementwise("mov.b64 $0, $1;", "=l,l", [offset], tl.int64, True, 1)
        offset = tl.multiple_of(tl.max_contiguous(offset, (2, C)), (MULTIPLE, MULTIPLE))
    return offset


@triton.jit
def _load(p, exists, m, k, n, step):
    """Rows m of every segment in float32 or float64, 0 where there is none: [R, W, C]."""
    mask = exists[None, :, :] & (m < n)[:, :, None]
    g = tl.load(p[None, :, :] + (k.to(tl.int64) * step)[:, None, None], mask=mask, other=0.0)
    return g if g.dtype == tl.float64 else g.to(tl.float32)


@triton.jit
def _store(p, x, exists, m, k, n, step):
    dtype: tl.constexpr = p.dtype.element_ty
    mask = exists[None, :, :] & (m < n)[:, :, None]
    tl.store(p[None, :, :] + (k.to(tl.int64) * step)[:, None, None], x.to(dtype), mask=mask)


@triton.jit
def _channels(tile, k, R: tl.constexpr, W: tl.constexpr):
    """The channels m of a tile, [R, W]: rows k of every segment."""
    return (tile * W + tl.arange(0, W))[None, :] * R + k[:, None]


@triton.jit
def _reweighted(
    p, exists, n, step, weights, zero, R: tl.constexpr, W: tl.constexpr, C: tl.constexpr, LOOP: tl.constexpr
):
    """mean + (g - mean) / lam."""
    k = tl.arange(0, R)
    scale = tl.load(weights)
    size = n.to(tl.float64)
    if LOOP:
        tiles = tl.cdiv(n, R * W)
        total = tl.zeros((W, C), tl.float64)
        for tile in range(tiles):
            g = _load(p + tile * (R * W) * step, exists, _channels(tile, k, R, W), k, n, step)
            total += tl.sum(g.to(tl.float64), 0)
        mean = tl.sum(total, 0) / size
        for back in range(tiles):
            tile = tiles - 1 - back
            q, m = p + tile * (R * W) * step, _channels(tile, k, R, W)
            g = _load(q, exists, m, k, n, step)
            _store(q + zero, _reweigh(g, mean, scale), exists, m, k, n, step)
    else:
        m = _channels(0, k, R, W)
        g = _load(p, exists, m, k, n, step)
        mean = tl.sum(tl.sum(g.to(tl.float64), 0), 0) / size
        _store(p + zero, _reweigh(g, mean, scale), exists, m, k, n, step)


@triton.jit
def _reweigh(g, mean, scale):
    high = mean.to(g.dtype)
    low = (mean - high.to(tl.float64)).to(g.dtype)  # what a small lam would amplify
    deviation = (g - high[None, None, :]) - low[None, None, :]
    return deviation * scale.to(g.dtype) + high[None, None, :]


@triton.jit
def _sobolev(
    p, exists, n, step, rows, segments, local, scratch, zero, PERIODIC: tl.constexpr,
    R: tl.constexpr, W: tl.constexpr, C: tl.constexpr, LOOP: tl.constexpr,
):  # fmt: skip
    """(I + lam A)^-1 g: between the ends of a segment by elimination, at its ends by Green's function.

    f_m = g_m + before_m f_{m-1} and b_m = g_m + after_m b_{m+1}, x_m = green_m (f_m + b_m - g_m). Periodic is
    free with -delta before channel 0 and delta behind the last, delta being the flux across the wrap-around.
    Behind the last channel x stays what it was there.
    """
    tiles = tl.cdiv(n, R * W) if LOOP else 1
    f, b = tl.zeros((C,), tl.float64), tl.zeros((C,), tl.float64)
    k = tl.arange(0, R)
    if LOOP:
        entry = scratch + tl.arange(0, C)  # f before each tile
        column, onward = tl.zeros((C,), tl.float64), tl.full((C,), 1.0, tl.float64)
        for tile in range(tiles):
            g = _load(p + tile * (R * W) * step, exists, _channels(tile, k, R, W), k, n, step)
            tl.store(entry + tile * C, f)
            F, B = _ends(g, rows + tile * (2 * R * W), R, W)
            factor, alone = _through(F, segments + tile * (4 * W), W, C, False)
            f = _pick(factor, W - 1, W) * f + _pick(alone, W - 1, W)
            if PERIODIC:
                factor, alone = _through(B, segments + tile * (4 * W) + 1, W, C, True)
                column += onward * _pick(alone, 0, W)
                onward *= _pick(factor, 0, W)
        b = column
        tl.debug_barrier()  # what one thread stored another may load
    else:
        g = _load(p, exists, _channels(0, k, R, W), k, n, step)
        F, B = _ends(g, rows, R, W)
        _, f_out = _through(F, segments, W, C, False)
        _, b_out = _through(B, segments + 1, W, C, True)
        f, b = _pick(f_out, W - 1, W), _pick(b_out, 0, W)
    delta = tl.zeros((C,), tl.float64)
    if PERIODIC:
        delta = tl.load(segments - 1) * (b - f)
    below = delta  # b behind the tile
    ahead = -delta  # f before the tile
    for back in range(tiles):
        tile = tiles - 1 - back
        q, m = p + tile * (R * W) * step, _channels(tile, k, R, W)
        if LOOP:
            g = _load(q, exists, m, k, n, step)
            F, B = _ends(g, rows + tile * (2 * R * W), R, W)
            # Of -delta before channel 0, what is left here.
            ahead = tl.load(entry + tile * C) - delta * tl.load(segments - 2 - tile)
        here = segments + tile * (4 * W)
        factor, f_out = _through(F, here, W, C, False)
        f_out += factor * ahead[None, :]
        factor, b_out = _through(B, here + 1, W, C, True)
        b_out += factor * below[None, :]
        w = tl.arange(0, W)[:, None]
        one_up = tl.broadcast_to(tl.maximum(w - 1, 0), (W, C))
        f_in = tl.where(w == 0, ahead[None, :], tl.gather(f_out, one_up, 0))
        one_down = tl.broadcast_to(tl.minimum(w + 1, W - 1), (W, C))
        b_in = tl.where(w == W - 1, below[None, :], tl.gather(b_out, one_down, 0))
        x_in = tl.load(here + 4 * w + 2) * f_out + tl.load(here + 4 * w + 3) * b_in
        if LOOP:
            below = _pick(b_out, 0, W)
        x = _eliminate(g, f_in.to(g.dtype), x_in.to(g.dtype), local + tile * (3 * R * W), R, W, C)
        down = R - 1 - k
        _store(q + zero, x, exists, _channels(tile, down, R, W), down, n, step)


@triton.jit
def _ends(g, rows, R: tl.constexpr, W: tl.constexpr):
    """f at the last row and b at the first row of every segment, were it alone: [W, C]."""
    at = (tl.arange(0, W)[None, :] * R + tl.arange(0, R)[:, None]) * 2
    x = g.to(tl.float64)
    return tl.sum(tl.load(rows + at)[:, :, None] * x, 0), tl.sum(tl.load(rows + at + 1)[:, :, None] * x, 0)


@triton.jit
def _through(alone, factors, W: tl.constexpr, C: tl.constexpr, UP: tl.constexpr):
    """Of every segment, what passes through it and all before it, and what these yield, [W, C]."""
    factor = tl.broadcast_to(tl.load(factors + 4 * tl.arange(0, W))[:, None], (W, C))
    return tl.associative_scan((factor, alone), 0, _compose, reverse=UP)


@triton.jit
def _compose(a, f, b, g):
    """The maps y -> a y + f and then y -> b y + g, as one."""
    return a * b, b * f + g


@triton.jit
def _pick(x, i, W: tl.constexpr):
    return tl.sum(tl.where((tl.arange(0, W) == i)[:, None], x, 0.0), 0)


@triton.jit
def _eliminate(g, y, x, local, R: tl.constexpr, W: tl.constexpr, C: tl.constexpr):
    """The solution between y before a segment's first row and x behind its last; rows in falling order.

    y_m = g_m + before_m y_{m-1}, x_m = inverse_pivot_m y_m + after_m x_{m+1}. The weights are 1 - before and
    1 - after, so that float32 does not round what is near 1.
    """
    k = tl.arange(0, R)
    up = (tl.arange(0, W)[None, :] * R + k[:, None]) * 3
    down = (tl.arange(0, W)[None, :] * R + (R - 1 - k)[:, None]) * 3
    first = (k == 0)[:, None, None]
    less = tl.load(local + up)[:, :, None]
    h = tl.where(first, g + (y[None, :, :] - less * y[None, :, :]), g)
    _, h = tl.associative_scan((tl.broadcast_to(less, (R, W, C)), h), 0, _compose_less)
    h = _reversed_rows(h, R) * tl.load(local + down + 1)[:, :, None]
    less = tl.load(local + down + 2)[:, :, None]
    h = tl.where(first, h + (x[None, :, :] - less * x[None, :, :]), h)
    _, h = tl.associative_scan((tl.broadcast_to(less, (R, W, C)), h), 0, _compose_less)
    return h


@triton.jit
def _compose_less(a, f, b, g):
    """The maps y -> y - a y + f and then y -> y - b y + g, as one."""
    return a + b - a * b, g + (f - b * f)


@triton.jit
def _reversed_rows(x, R: tl.constexpr):
    """Rows in falling order, inside the threads: all choices are made by the compiler.

    A scan from the last row (`reverse=True`) would pass every element through other lanes.
    """
    k = tl.arange(0, R)[:, None, None]
    out = x
    for r in tl.static_range(R):
        row = tl.sum(tl.where(k == r, x, -0.0), 0)
        out = tl.where(k == R - 1 - r, row[None, :, :], out)
    return out


@triton.jit
def _mean_sobolev(
    p, exists, n, step, weights, zero, PERIODIC: tl.constexpr,
    R: tl.constexpr, W: tl.constexpr, C: tl.constexpr, LOOP: tl.constexpr,
):  # fmt: skip
    """mean + (mean(r) - r_m) / (lam n^2), with r_m = sum_{i>m} q_i and q_i = sum_{j>=i} (g_j - mean).

    If periodic, q less its mean over the n differences. Three moments of a column give its mean, mean(q) and
    mean(r).
    """
    down = R - 1 - tl.arange(0, R)
    tiles = tl.cdiv(n, R * W) if LOOP else 1
    size = n.to(tl.float64)
    total = tl.zeros((W, C), tl.float64)  # sum of g_m
    first = tl.zeros((W, C), tl.float64)  # sum of m g_m
    second = tl.zeros((W, C), tl.float64)  # sum of m (m + 1) / 2 g_m
    if LOOP:
        for tile in range(tiles):
            m = _channels(tile, down, R, W)
            g = _load(p + tile * (R * W) * step, exists, m, down, n, step)
            S0, S1, S2 = _moments(g, tile, R, W)
            total += S0
            first += S1
            second += S2
    else:
        m = _channels(0, down, R, W)
        g = _load(p, exists, m, down, n, step)
        total, first, second = _moments(g, 0, R, W)
    mean = tl.sum(total, 0) / size
    mean_q = tl.zeros((C,), tl.float64)
    if PERIODIC:
        mean_q = tl.sum(first, 0) / size - mean * ((size - 1) / 2)
    mean_r = tl.sum(second, 0) / size - mean * ((size * size - 1) / 6) - mean_q * ((size - 1) / 2)
    scale = tl.load(weights) / (size * size)
    sum_below = tl.zeros((C,), tl.float64)  # of the tiles below this one
    first_below = tl.zeros((C,), tl.float64)
    for back in range(tiles):
        tile = tiles - 1 - back
        q, m = p + tile * (R * W) * step, _channels(tile, down, R, W)
        if LOOP:
            g = _load(q, exists, m, down, n, step)
            total, first, _ = _moments(g, tile, R, W)
        # Of the rows below each segment.
        zeroth = sum_below[None, :] + (tl.cumsum(total, 0, reverse=True) - total)
        moment = first_below[None, :] + (tl.cumsum(first, 0, reverse=True) - first)
        if LOOP:
            sum_below += tl.sum(total, 0)
            first_below += tl.sum(first, 0)
        end = ((tile * W + tl.arange(0, W)) * R + R - 1).to(tl.float64)[:, None]  # last row of a segment
        rest = tl.maximum(size - 1 - end, 0.0)
        slope = zeroth - rest * mean[None, :] - mean_q[None, :]
        r = moment - end * zeroth - mean[None, :] * (0.5 * rest * (rest + 1))
        r -= mean_q[None, :] * (size - 1 - end)
        y = mean[None, :] + scale * (mean_r[None, :] - r)
        h = _integrate_twice(g, y, scale * slope, mean, scale, m < n, R)
        _store(q + zero, h, exists, m, down, n, step)


@triton.jit
def _moments(g, tile, R: tl.constexpr, W: tl.constexpr):
    """Of every segment, whose rows are in falling order, the sums of g_m, m g_m and m (m + 1) / 2 g_m.

    About a segment's first channel the weights are constants, which the compiler knows.
    """
    x = g.to(tl.float64)
    row = (R - 1 - tl.arange(0, R)).to(tl.float64)[:, None, None]
    origin = ((tile * W + tl.arange(0, W)) * R).to(tl.float64)[:, None]
    S0, S1, S2 = tl.sum(x, 0), tl.sum(row * x, 0), tl.sum(0.5 * row * (row + 1) * x, 0)
    return S0, origin * S0 + S1, 0.5 * origin * (origin + 1) * S0 + (origin * S1 + S2)


@triton.jit
def _integrate_twice(g, x, slope, mean, scale, real, R: tl.constexpr):
    """x_m = x_{m+1} - slope_{m+1}, slope_m = slope_{m+1} + scale (g_m - mean), rows in falling order.

    Args: x at a segment's last row, and the slope below it.
    """
    high = mean.to(g.dtype)
    low = (mean - high.to(tl.float64)).to(g.dtype)
    bottom = (tl.arange(0, R) == 0)[:, None, None]
    deviation = (g - high[None, None, :]) - low[None, None, :]
    h = tl.where(real[:, :, None], scale.to(g.dtype) * deviation, 0.0)
    h = tl.cumsum(tl.where(bottom, h + slope.to(g.dtype)[None, :, :], h), 0)
    total = tl.cumsum(tl.where(bottom, h - x.to(g.dtype)[None, :, :], h), 0)
    return h - total


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
