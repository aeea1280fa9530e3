"""The operator's sweeps along the channel, compiled by numba; the only numba import.

All in one file: numba's cache on disk is renewed when the file of a compiled function changes, whatever
happens to the files of the functions it calls.

A block is n channels of at most a few hundred columns, small enough to stay in the second-level cache:
the first sweep reads it from memory, the second finds it there. Inner loops run over columns, which are
contiguous, so they vectorise; running values are float64, which costs nothing here (the loops wait for
the cache) and is what keeps float32 gradients within 1e-6 of the exact result.

A row lies at least a page from the next, where the hardware prefetcher does not follow: each sweep asks
for the rows ahead of it. Measured on a ResNet-18, that alone is a third of the time.
"""

# numba compiles these functions from types that only it knows.
# pyright: basic
from __future__ import annotations

from typing import Any

import numba.extending
import numpy as np
from llvmlite import ir
from numba import carray, njit, types  # pyright: ignore[reportPrivateImportUsage]
from numba.extending import overload

# The compiled signature is not the one that a type checker sees.
intrinsic: Any = numba.extending.intrinsic

# "contract" fuses multiply and add. Nothing else of fastmath: non-finite gradients must stay so.
compiled = njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")

# The columns of the work table, one row per tensor; sizes and strides in elements.
(
    POINTER,
    CHANNELS,
    STEP,  # from channel to channel
    COLUMNS,  # along the inner axis
    STRIDE,  # from column to column of it
    BLOCK,  # columns per block
    OUTER,  # size of the two outer axes together
    OUTER_BLOCK,  # of those per block
    NEAR,  # size of the nearer outer axis
    NEAR_STRIDE,
    FAR_STRIDE,
    WEIGHTS,  # where this tensor's weights begin
    END,  # blocks of this and all earlier tensors
) = range(13)
FIELDS = 13

AHEAD = 8192  # bytes of a block that a sweep asks for in advance


# Each entry below claims and processes blocks until none is left; any number of threads may run it at
# once. Their arguments:
#     like: empty array of the stored dtype: float32, float64, uint16 (bfloat16 bits) or int16 (half).
#     wide: empty array of the dtype of what is kept between sweeps, float32 or float64.
#     table: int64 (tensors, FIELDS).
#     weights: float64 (3, channels of all tensors), as `cdgrad.ops.cpu` prepares them for the metric.
#     scale: float64 (tensors,), the same.
#     periodic: the boundary.
#     counter: int64 (1,), blocks claimed so far.


@compiled
def reweighted(like, wide, table, weights, scale, periodic, counter):
    """mean + (x - mean) scale."""
    block = (0, 0, 0, 0, 0)
    while True:
        block = _next_block(table, counter, block[0])
        tensor, start, width, first, last = block
        if tensor < 0:
            return
        t, run = table[tensor], np.empty((1, width))
        for outer in range(first, last):
            x, address = _columns(like, t, outer, start, width)
            if t[STRIDE] == 1:
                _reweighted(x, address, t, None, width, scale[tensor], run)
            else:
                _reweighted(x, address, t, t[STRIDE], width, scale[tensor], run)


@compiled
def sobolev(like, wide, table, weights, scale, periodic, counter):
    """(I + lam A)^-1 x by elimination and substitution, see `cdgrad.ops.coefficients.Sobolev`."""
    block = (0, 0, 0, 0, 0)
    while True:
        block = _next_block(table, counter, block[0])
        tensor, start, width, first, last = block
        if tensor < 0:
            return
        t, run = table[tensor], np.empty((2, width))
        w = weights[:, t[WEIGHTS] : t[WEIGHTS] + t[CHANNELS]]
        store = np.empty(_stored(like, t[CHANNELS] * width), wide.dtype)
        for outer in range(first, last):
            x, address = _columns(like, t, outer, start, width)
            if t[STRIDE] == 1:
                _sobolev(x, address, t, None, width, w, periodic, run, store)
            else:
                _sobolev(x, address, t, t[STRIDE], width, w, periodic, run, store)


@compiled
def mean_sobolev(like, wide, table, weights, scale, periodic, counter):
    """mean + (lam A)^+ x, integrating twice, see `cdgrad.ops.cpu`."""
    block = (0, 0, 0, 0, 0)
    while True:
        block = _next_block(table, counter, block[0])
        tensor, start, width, first, last = block
        if tensor < 0:
            return
        t, run = table[tensor], np.empty((3, width))
        w = weights[:, t[WEIGHTS] : t[WEIGHTS] + t[CHANNELS]]
        for outer in range(first, last):
            x, address = _columns(like, t, outer, start, width)
            if t[STRIDE] == 1:
                _mean_sobolev(x, address, t, None, width, w, scale[tensor], periodic, run)
            else:
                _mean_sobolev(x, address, t, t[STRIDE], width, w, scale[tensor], periodic, run)


@compiled
def _next_block(table, counter, tensor):
    """Claim a block: its tensor (-1 if none is left), first column, width, first outer index, and end."""
    block = _claim(counter.ctypes.data)
    if block >= table[-1, END]:
        return -1, 0, 0, 0, 0
    while block >= table[tensor, END]:
        tensor += 1
    t = table[tensor]
    if tensor:
        block -= table[tensor - 1, END]
    across = -(-t[COLUMNS] // t[BLOCK])
    start, first = block % across * t[BLOCK], block // across * t[OUTER_BLOCK]
    return tensor, start, min(t[BLOCK], t[COLUMNS] - start), first, min(first + t[OUTER_BLOCK], t[OUTER])


@compiled
def _columns(like, t, outer, start, width):
    """The memory from the first to the last element of `width` columns, and its address."""
    far, near = outer // t[NEAR], outer % t[NEAR]
    offset = far * t[FAR_STRIDE] + near * t[NEAR_STRIDE] + start * t[STRIDE]
    address = t[POINTER] + offset * like.itemsize
    size = (t[CHANNELS] - 1) * t[STEP] + (width - 1) * t[STRIDE] + 1
    return carray(_pointer(address, like), (size,)), address


@compiled
def _reweighted(x, address, t, stride, width, scale, run):
    mean, n, step = run[0], t[CHANNELS], t[STEP]
    mean[:] = 0.0
    for m in range(n):
        _ask(x, address, n, step, stride, width, m, 1)
        row = _row(x, m * step, width, stride)
        for j in range(width):
            mean[j] += _wide(row[j])
    for j in range(width):
        mean[j] /= n
    # Backwards: the last rows are the likeliest to be in the nearest cache.
    for m in range(n - 1, -1, -1):
        _ask(x, address, n, step, stride, width, m, -1)
        row = _row(x, m * step, width, stride)
        for j in range(width):
            row[j] = _narrow((_wide(row[j]) - mean[j]) * scale + mean[j], row)


@compiled
def _sobolev(x, address, t, stride, width, w, periodic, run, store):
    """What is kept between the sweeps is y_m / pivot_m, of the size of the gradient: y_m may overflow.

    The inner product with the wrap rides along with the first sweep.
    """
    running, wrapped, n, step = run[0], run[1], t[CHANNELS], t[STEP]
    run[:] = 0.0
    for m in range(n):
        _ask(x, address, n, step, stride, width, m, 1)
        row = _row(x, m * step, width, stride)
        kept = _kept(row, store, m, width)
        ratio, inverse, wrap = w[0, m - 1] if m else 0.0, w[1, m], w[2, m]
        if periodic:
            for j in range(width):
                g = _wide(row[j])
                value = g + ratio * running[j]
                wrapped[j] += wrap * g
                running[j] = value
                kept[j] = value * inverse
        else:
            for j in range(width):
                value = _wide(row[j]) + ratio * running[j]
                running[j] = value
                kept[j] = value * inverse
    running[:] = 0.0
    for m in range(n - 1, -1, -1):
        _ask(x, address, n, step, stride, width, m, -1)
        row = _row(x, m * step, width, stride)
        kept = _kept(row, store, m, width)
        ratio, wrap = w[0, m], w[2, m]
        if periodic:
            for j in range(width):
                value = kept[j] + ratio * running[j]
                running[j] = value
                row[j] = _narrow(value - wrap * wrapped[j], row)
        else:
            for j in range(width):
                value = kept[j] + ratio * running[j]
                running[j] = value
                row[j] = _narrow(value, row)


@compiled
def _mean_sobolev(x, address, t, stride, width, w, scale, periodic, run):
    """The first sweep takes inner products: the mean, g~ - mean at channel 0, the slope at the wrap.

    They are all that the second needs to integrate the deviation twice, so it alone writes.
    """
    mean, value, slope, n, step = run[0], run[1], run[2], t[CHANNELS], t[STEP]
    run[:] = 0.0
    for m in range(n):
        _ask(x, address, n, step, stride, width, m, 1)
        row = _row(x, m * step, width, stride)
        first, wrap = w[0, m], w[1, m]
        if periodic:
            for j in range(width):
                g = _wide(row[j])
                mean[j] += g
                value[j] += first * g
                slope[j] += wrap * g
        else:
            for j in range(width):
                g = _wide(row[j])
                mean[j] += g
                value[j] += first * g
    for j in range(width):
        mean[j] /= n
        value[j] += mean[j]
    for m in range(n):
        _ask(x, address, n, step, stride, width, m, 1)
        row = _row(x, m * step, width, stride)
        for j in range(width):
            change = slope[j] + (mean[j] - _wide(row[j])) * scale
            row[j] = _narrow(value[j], row)
            slope[j] = change
            value[j] += change


@compiled
def _ask(x, address, n, step, stride, width, m, direction):
    """Ask for the row that the sweep will reach some kilobytes after row m, if there is one."""
    size = width * x.itemsize
    if stride is not None or size < 256:
        return
    m += direction * max(1, AHEAD // size)
    if 0 <= m < n:
        first = address + m * step * x.itemsize
        for line in range(first, first + size, 64):
            _prefetch(line)


# How elements lie, by type: numba compiles the loops once for each. A `stride` of None means contiguous
# columns, without which the loops would not vectorise.


def _row(x, start, width, stride):
    """The elements of one channel."""
    raise NotImplementedError


@overload(_row, inline="always")
def _row_of(x, start, width, stride):
    if isinstance(stride, types.NoneType):
        return lambda x, start, width, stride: x[start : start + width]
    return lambda x, start, width, stride: x[start : start + (width - 1) * stride + 1 : stride]


def _kept(row, store, m, width):
    """Where an elimination keeps a row between its sweeps: in place, unless that would round to 16 bits."""
    raise NotImplementedError


@overload(_kept, inline="always")
def _kept_of(row, store, m, width):
    # The row itself, not another slice of its memory: the loop would be guarded by a test for overlap.
    if isinstance(row.dtype, types.Float):
        return lambda row, store, m, width: row
    return lambda row, store, m, width: store[m * width : (m + 1) * width]


def _stored(like, size):
    """The elements of `store` that `_kept` needs."""
    raise NotImplementedError


@overload(_stored, inline="always")
def _stored_of(like, size):
    if isinstance(like.dtype, types.Float):
        return lambda like, size: 0
    return lambda like, size: size


# What numpy has no word for: addresses, prefetches, atomic counters, 16-bit floats.

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))


@intrinsic
def _pointer(typing, address, like):
    """The address, as a pointer to elements of `like`."""

    def build(context, builder, signature, arguments):
        element = context.get_data_type(like.dtype)
        return builder.inttoptr(arguments[0], element.as_pointer())

    return types.CPointer(like.dtype)(address, like), build


@intrinsic
def _prefetch(typing, address):
    """Start to load the cache line at the address into the second-level cache."""

    def build(context, builder, signature, arguments):
        pointer = _I8.as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        read, keep, data = _I32(0), _I32(2), _I32(1)
        builder.call(function, [builder.inttoptr(arguments[0], pointer), read, keep, data])
        return context.get_dummy_value()

    return types.void(address), build


@intrinsic
def _claim(typing, address):
    """The number at the address, which becomes one more: atomically, so each block has one thread."""

    def build(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], _I64.as_pointer())
        return builder.atomic_rmw("add", pointer, _I64(1), "monotonic")

    return types.int64(address), build


@intrinsic
def _wide(typing, value):
    """A stored element as float64."""

    def build(context, builder, signature, arguments):
        bits = arguments[0]
        if value == types.uint16:  # bfloat16: the upper half of a float32
            bits = builder.bitcast(builder.shl(builder.zext(bits, _I32), _I32(16)), ir.FloatType())
        elif value == types.int16:
            bits = builder.fpext(builder.bitcast(bits, ir.HalfType()), ir.FloatType())
        return bits if value == types.float64 else builder.fpext(bits, ir.DoubleType())

    return types.float64(value), build


@intrinsic
def _narrow(typing, value, like):
    """A float64 as an element of `like`, rounded to nearest even, to 16 bits by way of float32."""

    def build(context, builder, signature, arguments):
        x = arguments[0]
        if like.dtype == types.float64:
            return x
        single = builder.fptrunc(x, ir.FloatType())
        if like.dtype == types.float32:
            return single
        if like.dtype == types.int16:
            return builder.bitcast(builder.fptrunc(single, ir.HalfType()), _I16)
        # No NaN overflows here: its low bits are zero, as it comes from a bfloat16 or from arithmetic.
        bits = builder.bitcast(single, _I32)
        odd = builder.and_(builder.lshr(bits, _I32(16)), _I32(1))
        bits = builder.add(builder.add(bits, _I32(0x7FFF)), odd)
        return builder.trunc(builder.lshr(bits, _I32(16)), _I16)

    return like.dtype(value, like), build
