# pyright: basic, reportAttributeAccessIssue=false, reportOperatorIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false, reportOptionalMemberAccess=false
# Kernels are written in Triton's own language, whose names Python's types do not describe.
"""The mean-weighted Sobolev metric on the GPU."""

from __future__ import annotations

import triton
import triton.language as tl

from cdgrad.ops.triton.access import channels, load, store


@triton.jit
def mean_sobolev(
    p, exists, n, step, weights, zero, R: tl.constexpr, W: tl.constexpr, C: tl.constexpr, LOOP: tl.constexpr
):
    """mean + (mean(r) - r_m) / (lam n^2), with r_m = sum_{i>m} q_i and q_i = sum_{j>=i} (g_j - mean).

    If periodic, q less its mean over the n differences. Three moments of a column give its mean, mean(q) and
    mean(r).
    """
    down = R - 1 - tl.arange(0, R)
    tiles = tl.cdiv(n, R * W) if LOOP else 1
    size = n.to(tl.float64)
    inverse = 1.0 / size
    scale = tl.load(weights) * (inverse * inverse)
    origin = ((W - 1 - tl.arange(0, W)) * R).to(tl.float64)[:, None]  # of segments in falling order
    if LOOP:
        T0 = tl.zeros((W, C), tl.float64)  # sum of g_m
        T1 = tl.zeros((W, C), tl.float64)  # sum of m g_m
        T2 = tl.zeros((W, C), tl.float64)  # sum of m (m + 1) / 2 g_m
        g = load(p, exists, channels(0, down, R, W), down, n, step)
        for tile in range(tiles):
            following = g
            if tile < tiles - 1:
                m, q = channels(tile + 1, down, R, W), p + (tile + 1) * (R * W) * step
                following = load(q, exists, m, down, n, step)
            S0, S1, S2 = _moments(g, R)
            top = ((tile * W + tl.arange(0, W)) * R).to(tl.float64)[:, None]
            T0 += S0
            T1 += top * S0 + S1
            T2 += 0.5 * top * (top + 1) * S0 + (top * S1 + S2)
            g = following
    else:
        g = load(p, exists, channels(0, down, R, W), down, n, step)
        S0, S1, S2 = _moments(g, R)
        T0, T1 = _falling(S0, W, C), _falling(S1, W, C)
        T2 = 0.5 * origin * (origin + 1) * T0 + (origin * T1 + _falling(S2, W, C))
        T1 += origin * T0
    total, first, second = tl.sum(T0, 0), tl.sum(T1, 0), tl.sum(T2, 0)
    mean = total * inverse
    mean_q = tl.zeros((C,), tl.float64)
    if tl.load(weights + 1) != 0.0:
        mean_q = first * inverse - mean * ((size - 1) / 2)
    mean_r = second * inverse - mean * ((size * size - 1) / 6) - mean_q * ((size - 1) / 2)
    # At the last row of a tile, of the last one behind the last channel perhaps, and below it.
    slope = -scale * mean_q
    x = mean + scale * mean_r + (tiles * (R * W) - n).to(tl.float64) * slope
    for back in range(tiles):
        tile = tiles - 1 - back
        q, m = p + tile * (R * W) * step, channels(tile, down, R, W)
        if LOOP:
            following = g
            if tile > 0:
                following = load(q - (R * W) * step, exists, channels(tile - 1, down, R, W), down, n, step)
            S0, S1, _ = _moments(g, R)
            T0, T1 = _falling(S0, W, C), _falling(S1, W, C)
            T1 += origin * T0
        # Of the deviation from the mean in every segment, the sum and the sum of m, counted from the tile's
        # first channel; only of real channels.
        real = tl.minimum(tl.maximum(size - (tile * (R * W)).to(tl.float64) - origin, 0.0), R * 1.0)
        T0 -= real * mean[None, :]
        T1 -= real * (origin + 0.5 * (real - 1.0)) * mean[None, :]
        bottom = origin + (R - 1)  # the last row of a segment
        below, first_below = tl.cumsum(T0, 0) - T0, tl.cumsum(T1, 0) - T1  # sums over the segments behind
        slopes = slope[None, :] + scale * below
        xs = x[None, :] - ((R * W - 1) - bottom) * slope[None, :] - scale * (first_below - bottom * below)
        if LOOP:
            x -= (R * W) * slope + scale * tl.sum(T1 + T0, 0)
            slope += scale * tl.sum(T0, 0)
        xs, slopes = _falling(xs.to(g.dtype), W, C), _falling(slopes.to(g.dtype), W, C)
        h = _integrate_twice(g, xs, slopes, mean, scale, m < n, R)
        store(q + zero, h, exists, m, down, n, step)
        if LOOP:
            g = following


@triton.jit
def _falling(x, W: tl.constexpr, C: tl.constexpr):
    """Segments in the opposite order.

    The compiler brings what is gathered to a layout in which a warp has all segments of a column, so that the
    sums over segments, which follow, cross no warps.
    """
    return tl.gather(x, tl.broadcast_to((W - 1 - tl.arange(0, W))[:, None], (W, C)), 0)


@triton.jit
def _moments(g, R: tl.constexpr):
    """Of every segment, whose rows are in falling order, the sums of g_m, m g_m and m (m + 1) / 2 g_m.

    Counted from a segment's first channel, so the weights are constants, which the compiler knows.
    """
    x = g.to(tl.float64)
    row = (R - 1 - tl.arange(0, R)).to(tl.float64)[:, None, None]
    return tl.sum(x, 0), tl.sum(row * x, 0), tl.sum(0.5 * row * (row + 1) * x, 0)


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
    h = tl.cumsum(tl.where(bottom, h + slope[None, :, :], h), 0)
    total = tl.cumsum(tl.where(bottom, h - x[None, :, :], h), 0)
    return h - total
