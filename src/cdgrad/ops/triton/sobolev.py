# pyright: basic, reportOperatorIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false, reportOptionalMemberAccess=false
# Kernels are written in Triton's own language, whose names Python's types do not describe.
"""The Sobolev metric on the GPU: by the method of images, see `cdgrad.ops.sobolev_weights.Images`.

Its weights, where q is the ratio, R the rows of a segment and W the segments of a tile:

    0  1 - q    1  inverse pivot    2  strength    3  strength q    4  strength q^(1 - e)    5  q^-e
    6  near    7  far    8  q    9  q^R    with e the rows behind the last channel in its segment

then [W] q^(R (s + 1)) of segments s; of every tile what passes from channel 0 to it, of every tile what
passes through it, and of every tile [W] what passes from behind segment s to the tile's last channel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from cdgrad.ops.triton.access import channels, load, nothing, segment, store

_SCALARS = tl.constexpr(10)


@triton.jit
def sobolev(
    p, exists, n, step, G, s, weights, scratch, zero, R: tl.constexpr, W: tl.constexpr, C: tl.constexpr
):
    """(I + lam A)^-1 g: inside a segment by elimination, at its ends by Green's function."""
    tiles = tl.cdiv(n, R * W)
    k, w = tl.arange(0, R), tl.arange(0, W)
    first = w - s * G  # of its column
    to_tile = weights + _SCALARS + W
    through = to_tile + tiles
    to_end = through + tiles
    entry = scratch + tl.broadcast_to(tl.arange(0, C)[None, :], (W, C))  # f before each tile
    g = nothing(p, R, W, C)
    f = tl.zeros((W, C), tl.float64)
    b, at_first, at_last = f, f, f
    for tile in range(tiles):
        if tile > 0:
            at_last = tl.load(through + tile - 1) * at_last + segment(f, first + (W // G - 1) * G, W, C)
        if tiles > 1:
            tl.store(entry + tile * C, at_last, mask=(w == 0)[:, None])
        g = load(p + tile * (R * W * step), exists, channels(tile, k, s, R, W), k, n, step)
        f, b = _alone(g, G, weights, R, W, C)
        at_first += tl.load(to_tile + tile) * segment(b, first, W, C)
    last = (n - 1) // R - (tiles - 1) * W  # the segment of the last channel, in the last tile
    in_tile = tl.load(weights + 5) * segment(f, first + last * G, W, C)
    at_last = tl.load(through + tiles - 1) * at_last + in_tile
    near, far = tl.load(weights + 6), tl.load(weights + 7)
    ahead, below = near * at_first + far * at_last, near * at_last + far * at_first
    if tiles > 1:
        tl.debug_barrier()  # what one thread stored another may load
        for tile in range(tiles):  # now, so that the images ahead are not kept in registers
            here = tl.load(entry + tile * C) + tl.load(to_tile + tile) * ahead
            tl.debug_barrier()
            tl.store(entry + tile * C, here, mask=(w == 0)[:, None])
        tl.debug_barrier()
        ahead = segment(tl.load(entry + (tiles - 1) * C), w, W, C)
    k = R - 1 - k
    for back in range(tiles):
        tile = tiles - 1 - back
        q, m = p + tile * (R * W * step), channels(tile, k, s, R, W)
        if back > 0:
            ahead = segment(tl.load(entry + tile * C), w, W, C)
            g = load(q, exists, channels(tile, R - 1 - k, s, R, W), R - 1 - k, n, step)
            f, b = _alone(g, G, weights, R, W, C)
        behind = tl.load(to_end + tile * W + s)[:, None] * below
        at_end = (s == last + back * W)[:, None]
        x = _between(g, f, b, ahead, behind, at_end, m < n, G, s, weights, R, W, C)
        store(q + zero, x, exists, m, k, n, step)
        if tile > 0:
            below = tl.load(through + tile) * below + segment(b, first, W, C)


@triton.jit
def _alone(g, G, weights, R: tl.constexpr, W: tl.constexpr, C: tl.constexpr):
    """f at the last row and b at the first row of every segment, were the tile alone: [W, C]."""
    x = g.to(tl.float64)
    ratio = tl.zeros_like(x) + tl.load(weights + 8)
    _, f = tl.reduce((ratio, x), 0, _forward)
    _, b = tl.reduce((ratio, x), 0, _backward)
    w = tl.arange(0, W)
    factor, distance = tl.load(weights + 9), G
    while distance < W:  # sums over twice as many segments each time
        f += tl.where((w >= distance)[:, None], factor * segment(f, w - distance, W, C), 0.0)
        b += tl.where((w + distance < W)[:, None], factor * segment(b, w + distance, W, C), 0.0)
        factor *= factor
        distance *= 2
    return f, b


@triton.jit
def _forward(a, f, b, g):
    """f at the last of some rows and of those after them, with what passes through them."""
    return a * b, b * f + g


@triton.jit
def _backward(a, f, b, g):
    """b at the first of some rows and of those after them, with what passes through them."""
    return a * b, f + a * g


@triton.jit
def _between(
    g, f, b, before, behind, at_end, real, G, s, weights, R: tl.constexpr, W: tl.constexpr, C: tl.constexpr
):
    """The solution, rows in falling order.

    Args: what `_alone` returns; f before the tile, what b behind it adds behind every segment; whether a
    segment has the last channel, and which rows are real.
    """
    w = tl.arange(0, W)
    f += tl.load(weights + _SCALARS + s)[:, None] * before
    before = tl.where((w < G)[:, None], before, segment(f, w - G, W, C))
    behind += tl.where((w + G < W)[:, None], segment(b, w + G, W, C), 0.0)
    of_f = tl.where(at_end, tl.load(weights + 4), tl.load(weights + 3))
    x = of_f * f + tl.load(weights + 2) * behind  # behind the segment
    return _eliminate(g, before.to(g.dtype), x.to(g.dtype), real, weights, R, W, C)


@triton.jit
def _eliminate(g, y, x, real, weights, R: tl.constexpr, W: tl.constexpr, C: tl.constexpr):
    """The solution between f before a segment's first row and x behind its last; rows in falling order.

    A scan from the last row (`reverse=True`) would pass every element through other lanes; `tl.flip` renames
    registers.

    Behind the last channel x does not change. The weight is 1 - q, so that float32 does not round a q near 1.
    """
    first = (tl.arange(0, R) == 0)[:, None, None]
    less, inverse_pivot = tl.load(weights).to(g.dtype), tl.load(weights + 1).to(g.dtype)
    h = tl.where(first, g + (y - less * y)[None, :, :], g)
    _, h = tl.associative_scan((tl.zeros_like(h) + less, h), 0, _compose_less)
    real = real[:, :, None]
    less = tl.where(real, less, 0.0)
    h = tl.where(real, tl.flip(h, 0) * inverse_pivot, 0.0)
    h = tl.where(first, h + (x[None, :, :] - less * x[None, :, :]), h)
    _, h = tl.associative_scan((tl.broadcast_to(less, (R, W, C)), h), 0, _compose_less)
    return h


@triton.jit
def _compose_less(a, f, b, g):
    """The maps y -> y - a y + f and then y -> y - b y + g, as one."""
    return a + b - a * b, g + (f - b * f)
