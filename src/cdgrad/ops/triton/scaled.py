# pyright: basic, reportOperatorIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false, reportOptionalMemberAccess=false
# Kernels are written in Triton's own language, whose names Python's types do not describe.
"""The GPU kernel that gives tensors their former norms."""

from __future__ import annotations

import triton
import triton.language as tl

PIECE = 4096  # elements of a program


@triton.jit
def scaled(
    addresses,  # int64 per tensor
    records,  # int64 of each program: tensor, first element, elements of the tensor
    old,  # float64 per tensor
    new,  # float64 per tensor
    DTYPE: tl.constexpr,
    PIECE: tl.constexpr,
):
    """x old / new, and x where new is 0 or not a number, of tensors that fill a piece of memory each."""
    record = records + 3 * tl.program_id(0)
    tensor, first, size = tl.load(record), tl.load(record + 1), tl.load(record + 2)
    before, after = tl.load(old + tensor), tl.load(new + tensor)
    scales = after > 0
    factor = tl.where(scales, before / tl.where(scales, after, 1.0), 1.0)
    address = tl.load(addresses + tensor)
    start = address.to(tl.pointer_type(DTYPE))
    place = tl.multiple_of(first, PIECE) + tl.arange(0, PIECE)
    if (address % 16 == 0) & (first + PIECE <= size):  # accesses of 16 bytes, which a mask would divide
        p = tl.multiple_of(start, 16) + place
        tl.store(p, _times(tl.load(p), factor))
    else:
        exists = place < size
        tl.store(start + place, _times(tl.load(start + place, mask=exists), factor), mask=exists)


@triton.jit
def _times(x, factor):
    wide = x if x.dtype == tl.float64 else x.to(tl.float32)
    return (wide * factor.to(wide.dtype)).to(x.dtype)
