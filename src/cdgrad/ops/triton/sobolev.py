# pyright: basic, reportOperatorIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false, reportOptionalMemberAccess=false
# Kernels are written in Triton's own language, whose names Python's types do not describe.
"""The Sobolev metric on the GPU: by the method of images, see `cdgrad.ops.sobolev_weights.Images`.

Its weights, where q is the ratio, R the rows of a segment and W the segments of a tile:

    0  1 - q    1  inverse pivot    2  strength    3  strength q    4  strength q^(1 - e)    5  q^-e
    6  near    7  far    8  q^R         with e the rows behind the last channel in its segment

then [R] q^(R - 1 - k) and [R] q^k of rows k, [W] q^(R w) of segments w; of every tile what passes from
channel 0 to it, of every tile what passes through it, and of every tile [W] what passes from behind segment w
to the tile's last channel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from cdgrad.ops.triton.access import channels, load, store

_SCALARS = tl.constexpr(9)


@triton.jit
def sobolev(p, exists, n, step, weights, zero, R: tl.constexpr, W: tl.constexpr, C: tl.constexpr):
    """(I + lam A)^-1 g: inside a segment by elimination, at its ends by Green's function."""
    k = tl.arange(0, R)
    g = load(p, exists, channels(0, k, R, W), k, n, step)
    # Or the weights would be loaded first and, where columns need four addresses, leave too few registers.
    tl.debug_barrier()
    f, b, through = _alone(g, weights, R, W, C)
    w = tl.arange(0, W)[:, None]
    last = ((n - 1) // R).to(tl.int32)
    at_last = tl.sum(tl.where(w == last, f, 0.0), 0) * tl.load(weights + 5)
    at_first = tl.sum(tl.where(w == W - 1, b, 0.0), 0)
    near, far = tl.load(weights + 6), tl.load(weights + 7)
    ahead, below = near * at_first + far * at_last, near * at_last + far * at_first
    to_end = weights + _SCALARS + 2 * R + W + 2
    x = _between(g, f, b, through, ahead, below, weights, to_end, 0, last, n, R, W, C)
    k = R - 1 - k
    store(p + zero, x, exists, channels(0, k, R, W), k, n, step)


@triton.jit
def sobolev_by_tiles(
    p, exists, n, step, weights, scratch, zero, R: tl.constexpr, W: tl.constexpr, C: tl.constexpr
):
    """The same for more channels than a tile has."""
    tiles = tl.cdiv(n, R * W)
    k, w = tl.arange(0, R), tl.arange(0, W)
    last = ((n - 1) // R).to(tl.int32)
    entry = scratch + tl.arange(0, C)  # f before each tile
    within = weights + _SCALARS + 2 * R
    to_tile = within + W
    through = to_tile + tiles
    to_end = through + tiles
    f, b = tl.zeros((C,), tl.float64), tl.zeros((C,), tl.float64)  # at the tile's last channel, at the first
    g = load(p, exists, channels(0, k, R, W), k, n, step)
    for tile in range(tiles):
        following = g
        if tile < tiles - 1:
            following = load(p + (tile + 1) * (R * W) * step, exists, channels(tile + 1, k, R, W), k, n, step)
        tl.store(entry + tile * C, f)
        F, B = _sums(g, weights, R)
        onward = tl.load(to_end + tile * W + w) * tl.where(w == last - tile * W, tl.load(weights + 5), 1.0)
        f = tl.load(through + tile) * f + tl.sum(onward[:, None] * F, 0)
        b += tl.load(to_tile + tile) * tl.sum(tl.load(within + w)[:, None] * B, 0)
        g = following
    near, far = tl.load(weights + 6), tl.load(weights + 7)
    ahead, below = near * b + far * f, near * f + far * b
    tl.debug_barrier()  # what one thread stored another may load
    for tile in range(tiles):  # now, so that the images ahead are not kept in registers
        tl.store(entry + tile * C, tl.load(entry + tile * C) + ahead * tl.load(to_tile + tile))
    tl.debug_barrier()
    for back in range(tiles):
        tile = tiles - 1 - back
        q = p + tile * (R * W) * step
        following = g
        if tile > 0:
            following = load(q - (R * W) * step, exists, channels(tile - 1, k, R, W), k, n, step)
        F, B, of_ahead = _alone(g, weights, R, W, C)
        ahead = tl.load(entry + tile * C)
        x = _between(g, F, B, of_ahead, ahead, below, weights, to_end + tile * W, tile, last, n, R, W, C)
        below = tl.load(through + tile) * below + tl.sum(tl.where(w[:, None] == W - 1, B, 0.0), 0)
        down = R - 1 - k
        store(q + zero, x, exists, channels(tile, down, R, W), down, n, step)
        g = following


@triton.jit
def _sums(g, weights, R: tl.constexpr):
    """f at the last row and b at the first row of every segment, were it alone: [W, C]."""
    at = weights + _SCALARS + tl.arange(0, R)
    x = g.to(tl.float64)
    return tl.sum(tl.load(at)[:, None, None] * x, 0), tl.sum(tl.load(at + R)[:, None, None] * x, 0)


@triton.jit
def _alone(g, weights, R: tl.constexpr, W: tl.constexpr, C: tl.constexpr):
    """f at the last row of every segment; b at its first row, in falling order: were the tile alone, [W, C].

    The compiler brings what is gathered to a layout in which a warp has all segments of a column, so that no
    value of a scan crosses warps, and a thread has one factor for a column, not four.
    """
    F, B = _sums(g, weights, R)
    w = tl.broadcast_to(tl.arange(0, W)[:, None], (W, C))
    factor = tl.zeros((W, C), tl.float64) + tl.load(weights + 8)
    through, f = tl.associative_scan((factor, tl.gather(F, w, 0)), 0, _compose)
    _, b = tl.associative_scan((factor, tl.gather(B, W - 1 - w, 0)), 0, _compose)
    return f, b, through


@triton.jit
def _compose(a, f, b, g):
    """The maps y -> a y + f and then y -> b y + g, as one."""
    return a * b, b * f + g


@triton.jit
def _between(
    g, f, b, through, ahead, below, weights, to_end, tile, last, n,
    R: tl.constexpr, W: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """The solution, rows in falling order.

    Args: what `_alone` returns; f before the tile and b behind it, [C].
    """
    w = tl.arange(0, W)[:, None]
    one_up = tl.broadcast_to(tl.maximum(w - 1, 0), (W, C))
    one_down = tl.broadcast_to(tl.maximum(W - 2 - w, 0), (W, C))
    f += through * ahead[None, :]
    before = tl.where(w == 0, ahead[None, :].to(g.dtype), tl.gather(f.to(g.dtype), one_up, 0))
    behind = tl.where(w == W - 1, 0.0, tl.gather(b, one_down, 0)) + tl.load(to_end + w) * below[None, :]
    of_f = tl.where(w == last - tile * W, tl.load(weights + 4), tl.load(weights + 3))
    x = of_f * f + tl.load(weights + 2) * behind  # behind the segment
    return _eliminate(g, before, x.to(g.dtype), weights, tile, n, R, W, C)


@triton.jit
def _eliminate(g, y, x, weights, tile, n, R: tl.constexpr, W: tl.constexpr, C: tl.constexpr):
    """The solution between f before a segment's first row and x behind its last; rows in falling order.

    A scan from the last row (`reverse=True`) would pass every element through other lanes; `tl.flip` renames
    registers.

    Behind the last channel x does not change. The weight is 1 - q, so that float32 does not round a q near 1.
    """
    k = tl.arange(0, R)
    first = (k == 0)[:, None, None]
    less, inverse_pivot = tl.load(weights).to(g.dtype), tl.load(weights + 1).to(g.dtype)
    h = tl.where(first, g + (y - less * y)[None, :, :], g)
    _, h = tl.associative_scan((tl.zeros_like(h) + less, h), 0, _compose_less)
    real = (channels(tile, R - 1 - k, R, W) < n)[:, :, None]
    less = tl.where(real, less, 0.0)
    h = tl.where(real, tl.flip(h, 0) * inverse_pivot, 0.0)
    h = tl.where(first, h + (x[None, :, :] - less * x[None, :, :]), h)
    _, h = tl.associative_scan((tl.broadcast_to(less, (R, W, C)), h), 0, _compose_less)
    return h


@triton.jit
def _compose_less(a, f, b, g):
    """The maps y -> y - a y + f and then y -> y - b y + g, as one."""
    return a + b - a * b, g + (f - b * f)
