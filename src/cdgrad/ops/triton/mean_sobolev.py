# pyright: basic, reportAttributeAccessIssue=false, reportOperatorIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false, reportOptionalMemberAccess=false
# Kernels are written in Triton's own language, whose names Python's types do not describe.
"""The mean-weighted Sobolev metric on the GPU."""

from __future__ import annotations

import triton
import triton.language as tl

from cdgrad.ops.triton.access import channels, load, nothing, segment, store


@triton.jit
def mean_sobolev(p, exists, n, step, G, s, weights, zero, R: tl.constexpr, W: tl.constexpr, C: tl.constexpr):
    """mean + (mean(r) - r_m) / (lam n^2), with r_m = sum_{i>m} q_i and q_i = sum_{j>=i} (g_j - mean).

    If periodic, q less its mean over the n differences. Three moments of a column give its mean, mean(q) and
    mean(r).
    """
    down = R - 1 - tl.arange(0, R)
    w = tl.arange(0, W)
    first = w - s * G  # of its column
    tiles = tl.cdiv(n, R * W)
    size = n.to(tl.float64)
    inverse = 1.0 / size
    scale = tl.load(weights) * (inverse * inverse)
    height = (W // G * R).to(tl.float64)  # of the tile
    g = nothing(p, R, W, C)
    total = tl.zeros((W, C), tl.float64)  # sum of g_m
    moment, second = total, total  # sums of m g_m and m (m + 1) / 2 g_m
    sums, moments = total, total  # of the last tile
    for tile in range(tiles):
        m = channels(tile, down, s, R, W)
        g = load(p + tile * (R * W * step), exists, m, down, n, step)
        sums, moments, seconds = _sums_behind(g, G, s, R, W, C)
        top = tile * height
        of_tile, of_moments = segment(sums, first, W, C), segment(moments, first, W, C)
        total += of_tile
        moment += top * of_tile + of_moments
        second += 0.5 * top * (top + 1) * of_tile + (top * of_moments + segment(seconds, first, W, C))
    mean = total * inverse
    mean_q = tl.zeros((W, C), tl.float64)
    if tl.load(weights + 1) != 0.0:
        mean_q = moment * inverse - mean * ((size - 1) / 2)
    mean_r = second * inverse - mean * ((size * size - 1) / 6) - mean_q * ((size - 1) / 2)
    # At the last row of a tile, of the last one behind the last channel perhaps, and below it.
    slope = -scale * mean_q
    x = mean + scale * mean_r + (tiles * height - size) * slope
    high = mean.to(g.dtype)
    low = (mean - high.to(tl.float64)).to(g.dtype)
    for back in range(tiles):
        tile = tiles - 1 - back
        q, m = p + tile * (R * W * step), channels(tile, down, s, R, W)
        if back > 0:
            g = load(q, exists, m, down, n, step)
            sums, moments, _ = _sums_behind(g, G, s, R, W, C)
        # Behind every segment, the sums of g - mean and m (g - mean); m counts from the tile's first channel.
        real = tl.minimum(size - tile * height, height)  # channels of the tile
        end = tl.minimum(((s + 1) * R).to(tl.float64), real)[:, None]  # of the segment
        inside = (w + G < W)[:, None]
        below = tl.where(inside, segment(sums, w + G, W, C), 0.0) - (real - end) * mean
        first_below = tl.where(inside, segment(moments, w + G, W, C), 0.0)
        first_below -= 0.5 * (real - end) * (real + end - 1) * mean
        xs = x - (height - end) * slope - scale * (first_below - (end - 1) * below)
        h = _integrate_twice(g, xs, slope + scale * below, high, low, scale, m < n, R)
        store(q + zero, h, exists, m, down, n, step)
        if tile > 0:
            of_tile = segment(sums, first, W, C) - real * mean
            of_moments = segment(moments, first, W, C) - 0.5 * real * (real - 1) * mean
            x -= height * slope + scale * (of_moments + of_tile)
            slope += scale * of_tile


@triton.jit
def _sums_behind(g, G, s, R: tl.constexpr, W: tl.constexpr, C: tl.constexpr):
    """Of every segment and those behind it, the sums of g_m, m g_m and m (m + 1) / 2 g_m.

    Counted from the tile's first channel. Rows are in falling order.
    """
    w = tl.arange(0, W)
    origin = (s * R).to(tl.float64)[:, None]
    S0, S1, S2 = _moments(g, R)
    S0, S1, S2 = segment(S0, w, W, C), segment(S1, w, W, C), segment(S2, w, W, C)
    S2 += origin * S1 + 0.5 * origin * (origin + 1) * S0
    S1 += origin * S0
    distance = G
    while distance < W:  # sums over twice as many segments each time
        behind, inside = w + distance, (w + distance < W)[:, None]
        S0 += tl.where(inside, segment(S0, behind, W, C), 0.0)
        S1 += tl.where(inside, segment(S1, behind, W, C), 0.0)
        S2 += tl.where(inside, segment(S2, behind, W, C), 0.0)
        distance *= 2
    return S0, S1, S2


@triton.jit
def _moments(g, R: tl.constexpr):
    """Of every segment, whose rows are in falling order, the sums of g_m, m g_m and m (m + 1) / 2 g_m.

    Counted from a segment's first channel, so the weights are constants, which the compiler knows.
    """
    x = g.to(tl.float64)
    row = (R - 1 - tl.arange(0, R)).to(tl.float64)[:, None, None]
    return tl.sum(x, 0), tl.sum(row * x, 0), tl.sum(0.5 * row * (row + 1) * x, 0)


@triton.jit
def _integrate_twice(g, x, slope, high, low, scale, real, R: tl.constexpr):
    """x_m = x_{m+1} - slope_{m+1}, slope_m = slope_{m+1} + scale (g_m - mean), rows in falling order.

    Args: x at a segment's last real row, and the slope below it; the mean as a sum of two.
    """
    real = real[:, :, None]
    bottom = (tl.arange(0, R) == 0)[:, None, None]
    deviation = (g - high[None, :, :]) - low[None, :, :]
    h = tl.where(real, scale.to(g.dtype) * deviation, 0.0)
    h = tl.cumsum(tl.where(bottom, h + slope.to(g.dtype)[None, :, :], h), 0)
    h = tl.where(real, h, 0.0)
    total = tl.cumsum(tl.where(bottom, h - x.to(g.dtype)[None, :, :], h), 0)
    return h - total
