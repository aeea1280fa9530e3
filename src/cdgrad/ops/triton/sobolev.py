# pyright: basic, reportOperatorIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false, reportOptionalMemberAccess=false
# Kernels are written in Triton's own language, whose names Python's types do not describe.
"""The Sobolev metric on the GPU."""

from __future__ import annotations

import triton
import triton.language as tl

from cdgrad.ops.triton.access import channels, load, store

# Of each segment, see `cdgrad.ops.triton.tables`: what passes through it in either direction, the weights in
# x behind it of f at its last row and of b behind it, what passes through it and all of the tile before (or
# behind) it, and what passes from it to the tile's end (or beginning).
_NUMBERS = tl.constexpr(8)


@triton.jit
def sobolev(
    p, exists, n, step, rows, segments, local, zero, R: tl.constexpr, W: tl.constexpr, C: tl.constexpr
):
    """(I + lam A)^-1 g: between the ends of a segment by elimination, at its ends by Green's function.

    f_m = g_m + before_m f_{m-1} and b_m = g_m + after_m b_{m+1}, x_m = green_m (f_m + b_m - g_m). Periodic is
    free with -delta before channel 0 and delta behind the last, delta being the flux across the wrap-around;
    `segments` has its weight in front, 0 if free. Behind the last channel x stays what it was there.
    """
    g = load(p, exists, channels(0, tl.arange(0, R), R, W), tl.arange(0, R), n, step)
    F, B = _ends(g, rows, R, W)
    delta = tl.zeros((C,), tl.float64)
    wrap = tl.load(segments - 1)
    if wrap != 0.0:
        delta = wrap * (_total(B, segments + 7, W) - _total(F, segments + 6, W))
    x = _between(g, F, B, -delta, delta, segments, local, R, W, C)
    k = R - 1 - tl.arange(0, R)
    store(p + zero, x, exists, channels(0, k, R, W), k, n, step)


@triton.jit
def sobolev_by_tiles(
    p, exists, n, step, rows, segments, local, scratch, zero,
    R: tl.constexpr, W: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """The same for more channels than a tile has. `segments` has in front, too, what is left of -delta."""
    tiles = tl.cdiv(n, R * W)
    k = tl.arange(0, R)
    entry = scratch + tl.arange(0, C)  # f before each tile
    f, b = tl.zeros((C,), tl.float64), tl.zeros((C,), tl.float64)  # behind the tile, and before the first
    onward = tl.load(segments - 1)  # of b, on the way to the first
    wrap = onward
    for tile in range(tiles):
        g = load(p + tile * (R * W) * step, exists, channels(tile, k, R, W), k, n, step)
        tl.store(entry + tile * C, f)
        F, B = _ends(g, rows + tile * (2 * R * W), R, W)
        of_tile = segments + tile * (_NUMBERS * W)
        f = tl.load(of_tile + _NUMBERS * (W - 1) + 4) * f + _total(F, of_tile + 6, W)
        if wrap != 0.0:
            b += onward * _total(B, of_tile + 7, W)
            onward *= tl.load(of_tile + 5)
    tl.debug_barrier()  # what one thread stored another may load
    b -= wrap * f  # behind the last tile: delta
    if wrap != 0.0:
        for tile in range(tiles):  # now, so that delta is not kept in registers
            left = tl.load(segments - 2 - tile)  # of -delta before channel 0
            tl.store(entry + tile * C, tl.load(entry + tile * C) - b * left)
        tl.debug_barrier()
    for back in range(tiles):
        tile = tiles - 1 - back
        q, of_tile = p + tile * (R * W) * step, segments + tile * (_NUMBERS * W)
        g = load(q, exists, channels(tile, k, R, W), k, n, step)
        F, B = _ends(g, rows + tile * (2 * R * W), R, W)
        x = _between(g, F, B, tl.load(entry + tile * C), b, of_tile, local + tile * (3 * R * W), R, W, C)
        b = tl.load(of_tile + 5) * b + _total(B, of_tile + 7, W)
        down = R - 1 - k
        store(q + zero, x, exists, channels(tile, down, R, W), down, n, step)


@triton.jit
def _ends(g, rows, R: tl.constexpr, W: tl.constexpr):
    """f at the last row and b at the first row of every segment, were it alone: [W, C]."""
    at = (tl.arange(0, W)[None, :] * R + tl.arange(0, R)[:, None]) * 2
    x = g.to(tl.float64)
    return tl.sum(tl.load(rows + at)[:, :, None] * x, 0), tl.sum(tl.load(rows + at + 1)[:, :, None] * x, 0)


@triton.jit
def _total(alone, weights, W: tl.constexpr):
    """f at the tile's last row, or b at its first, were the tile alone: [C]."""
    return tl.sum(tl.load(weights + _NUMBERS * tl.arange(0, W))[:, None] * alone, 0)


@triton.jit
def _between(g, F, B, ahead, below, segments, local, R: tl.constexpr, W: tl.constexpr, C: tl.constexpr):
    """The solution, rows in falling order.

    Args: f at the last and b at the first row of every segment, were it alone, [W, C]; f before and b behind
    all of them, [C].
    """
    w = tl.arange(0, W)[:, None]
    f = _through(F, segments, W, C, False) + tl.load(segments + _NUMBERS * w + 4) * ahead[None, :]
    one_up = tl.broadcast_to(tl.maximum(w - 1, 0), (W, C))
    f_in = tl.where(w == 0, ahead[None, :], tl.gather(f, one_up, 0)).to(g.dtype)
    x = tl.load(segments + _NUMBERS * w + 2) * f
    b = _through(B, segments + 1, W, C, True) + tl.load(segments + _NUMBERS * w + 5) * below[None, :]
    one_down = tl.broadcast_to(tl.minimum(w + 1, W - 1), (W, C))
    b = tl.where(w == W - 1, below[None, :], tl.gather(b, one_down, 0))
    x += tl.load(segments + _NUMBERS * w + 3) * b
    return _eliminate(g, f_in, x.to(g.dtype), local, R, W, C)


@triton.jit
def _through(alone, factors, W: tl.constexpr, C: tl.constexpr, UP: tl.constexpr):
    """f at the last row (b at the first) of every segment, were the tile alone, [W, C]."""
    factor = tl.broadcast_to(tl.load(factors + _NUMBERS * tl.arange(0, W))[:, None], (W, C))
    _, f = tl.associative_scan((factor, alone), 0, _compose, reverse=UP)
    return f


@triton.jit
def _compose(a, f, b, g):
    """The maps y -> a y + f and then y -> b y + g, as one."""
    return a * b, b * f + g


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
