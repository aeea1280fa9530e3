# pyright: basic, reportOperatorIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false, reportOptionalMemberAccess=false
# Kernels are written in Triton's own language, whose names Python's types do not describe.
"""How the GPU kernels reach a tile [R, W, C]: rows of a segment, segments, columns.

If a column needs few segments, groups of columns lie beside each other in the tile: segment w of it is
segment s = w // G of the columns of group w % G.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

INTERPRETED = knobs.runtime.interpret  # under TRITON_INTERPRET=1: the kernels run on the CPU
_COMPILED = tl.constexpr(not INTERPRETED)


@triton.jit
def lanes_along(offset, C: tl.constexpr, MULTIPLE: tl.constexpr, ROCM: tl.constexpr):
    """`offset`, [W, C], rows of which begin at a multiple of that, so that lanes fill the columns first.

    The compiler orders dimensions by contiguity, and breaks ties in one way in Triton 3.4 to 3.6 and in
    another in 3.9: columns are said to be more contiguous than segments, and these than rows. The width of an
    access follows from the alignment, too, so it does not matter that the claim need not hold.
    """
    if _COMPILED:  # an operation that no simplification removes, and the claim with it
        # Where it stays: no instruction, the output in the register of the input.
        offset = tl.inline_asm_elementwise("", "=v,0" if ROCM else "=l,0", [offset], tl.int64, True, 1)
        offset = tl.multiple_of(tl.max_contiguous(offset, (2, C)), (MULTIPLE, MULTIPLE))
    return offset


@triton.jit
def nothing(p, R: tl.constexpr, W: tl.constexpr, C: tl.constexpr):
    """A tile of zeros, of the type of what is loaded."""
    return tl.zeros((R, W, C), tl.float64 if p.dtype.element_ty == tl.float64 else tl.float32)


@triton.jit
def load(p, exists, m, k, n, step):
    """Rows m of every segment in float32 or float64, 0 where there is none: [R, W, C]."""
    mask = exists[None, :, :] & (m < n)[:, :, None]
    g = tl.load(p[None, :, :] + (k.to(tl.int64) * step)[:, None, None], mask=mask, other=0.0)
    return g if g.dtype == tl.float64 else g.to(tl.float32)


@triton.jit
def store(p, x, exists, m, k, n, step):
    dtype: tl.constexpr = p.dtype.element_ty
    mask = exists[None, :, :] & (m < n)[:, :, None]
    tl.store(p[None, :, :] + (k.to(tl.int64) * step)[:, None, None], x.to(dtype), mask=mask)


@triton.jit
def channels(tile, k, s, R: tl.constexpr, W: tl.constexpr):
    """The channels m of a tile, [R, W]: rows k of segments s of a column."""
    return (tile * W + s)[None, :] * R + k[:, None]


@triton.jit
def segment(x, w, W: tl.constexpr, C: tl.constexpr):
    """Segments w, [W], of x, [W, C].

    The compiler brings what is gathered to a layout in which a warp has all segments of a column, so that
    nothing crosses warps.
    """
    return tl.gather(x, tl.broadcast_to(tl.minimum(tl.maximum(w, 0), W - 1)[:, None], (W, C)), 0)


@triton.jit
def sums_behind(x, G, W: tl.constexpr, C: tl.constexpr):
    """Of every segment of a column, its sum and those of the segments behind it, [W, C]."""
    w = tl.arange(0, W)
    distance = G
    while distance < W:
        x += tl.where((w + distance < W)[:, None], segment(x, w + distance, W, C), 0.0)
        distance *= 2
    return x
