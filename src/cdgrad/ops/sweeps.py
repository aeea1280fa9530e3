"""The operator's sweeps along the channel, compiled by numba; the only numba import.

All in one file: numba's cache on disk is renewed when the file of a compiled function changes, whatever
happens to the files of what it calls.

A block is n channels of at most a few hundred columns, small enough to stay in the second-level cache:
the first sweep reads it from memory, the second finds it there. A tile is `ROWS` channels of `LANES` columns;
the running values of its columns stay in registers from its first row to its last. Numbers are vectors of
`LANES` columns, written out because numba's loops would keep running values in memory instead and guard
every row with a test for overlap. Running values are float64, which is what keeps float32 gradients within
1e-6 of the exact result.

A row lies at least a page from the next, where the hardware prefetcher does not follow: the first sweep
asks for each row a tile ahead.
"""

# numba compiles these functions from types that only it knows.
# pyright: basic
from __future__ import annotations

import operator
from functools import lru_cache
from typing import Any

import numba.extending
import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types  # pyright: ignore[reportPrivateImportUsage]
from numba.core import cgutils
from numba.extending import models, overload, register_model

# The compiled signature is not the one that a type checker sees.
intrinsic: Any = numba.extending.intrinsic

# "contract" fuses multiply and add. Nothing else of fastmath: non-finite gradients must stay so.
compiled = njit(nogil=True, fastmath={"contract"}, error_model="numpy")

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

# What a call hands to its threads, as int64: addresses, unless noted.
(
    TABLE,  # int64 (TENSORS, FIELDS)
    TENSORS,  # a number
    WEIGHT,  # float64 (4, TOTAL), as `cdgrad.ops.cpu` prepares them for the metric
    TOTAL,  # a number: the channels of all tensors
    SCALE,  # float64 (TENSORS,), the same
    PERIODIC,  # 0 or 1: the boundary
    COUNTERS,  # int64 (2,): blocks claimed so far, threads begun so far
    SCRATCH,  # memory of the threads, each with
    SCRATCH_BYTES,  # a number: as many bytes
) = range(9)
JOB_FIELDS = 9

LANES = 16
ROWS = 16
SUMS = 3  # running values of a column, at most


@lru_cache(maxsize=32)
def team(family: str, dtype: str) -> Any:
    """The compiled function that any number of threads may run at once, on the address of one job.

    Each claims blocks and directs them until none is left. It raises nothing and allocates nothing.

    Args:
        family: of the metric.
        dtype: of what is stored: float32, float64, uint16 (bfloat16 bits) or int16 (half).
    """
    like = np.empty(0, dtype)

    def run(address):
        _direct(address, like, family)

    return cfunc(types.void(types.intp), cache=True)(run)


def _direct(address, like, family):
    """Claim and direct blocks until none is left."""
    raise NotImplementedError


@overload(_direct, prefer_literal=True)
def _direct_of(address, like, family):
    directed = {"reweighted": _reweighted, "sobolev": _sobolev, "mean-sobolev": _mean_sobolev}[
        family.literal_value
    ]

    def direct(address, like, family):
        job = carray(_pointer(address, _INT64), (JOB_FIELDS,))
        table = carray(_pointer(job[TABLE], _INT64), (job[TENSORS], FIELDS))
        weights = carray(_pointer(job[WEIGHT], _FLOAT64), (4, job[TOTAL]))
        scales = carray(_pointer(job[SCALE], _FLOAT64), (job[TENSORS],))
        run = job[SCRATCH] + _claim(job[COUNTERS] + 8) * job[SCRATCH_BYTES]
        periodic = job[PERIODIC] != 0
        tensor = 0
        while True:
            block = _claim(job[COUNTERS])
            if block >= table[-1, END]:
                return
            while block >= table[tensor, END]:
                tensor += 1
            t = table[tensor]
            if tensor:
                block -= table[tensor - 1, END]
            w, scale = weights[:, t[WEIGHTS] : t[WEIGHTS] + t[CHANNELS]], scales[tensor]
            across = -(-t[COLUMNS] // t[BLOCK])
            start, first = block % across * t[BLOCK], block // across * t[OUTER_BLOCK]
            width = min(t[BLOCK], t[COLUMNS] - start)
            whole = width - width % LANES if t[STRIDE] == 1 else 0
            for outer in range(first, min(first + t[OUTER_BLOCK], t[OUTER])):
                far, near = outer // t[NEAR], outer % t[NEAR]
                offset = far * t[FAR_STRIDE] + near * t[NEAR_STRIDE] + start * t[STRIDE]
                x = t[POINTER] + offset * like.itemsize
                if whole:
                    directed(x, like, t, None, None, whole, periodic, w, scale, run)
                if whole < width and t[STRIDE] == 1:
                    x += whole * like.itemsize
                    directed(x, like, t, None, width - whole, LANES, periodic, w, scale, run)
                elif whole < width:
                    directed(x, like, t, t[STRIDE], width, width, periodic, w, scale, run)

    return direct


# Below, addresses are integers; `stride` is None where columns are contiguous, and `count` where all lanes of
# every tile are columns. `run` is the address of running values, `width` float64 for each kind of them.


@compiled
def _shape(t, like, width, run):
    """Channels, bytes from one to the next, columns with those that fill the last tile; values at zero."""
    width = -(-width // LANES) * LANES
    for j in range(0, SUMS * width, LANES):
        _put(_zeros(), run + 8 * j)
    return t[CHANNELS], t[STEP] * like.itemsize, width


@compiled
def _reweighted(x, like, t, stride, count, width, periodic, w, scale, run):
    """mean + (x - mean) scale."""
    n, step, width = _shape(t, like, width, run)
    for first in range(0, n, ROWS):
        for j in range(0, width, LANES):
            row, there = _tile(x, like, first * step, j, stride), _there(count, j)
            total = _get(run + 8 * j)
            for _ in range(first, min(first + ROWS, n)):
                total += _wide(_load(row, like, stride, there))
                _ask(row + ROWS * step, like, stride)
                row += step
            _put(total, run + 8 * j)
    for j in range(0, width, LANES):
        _put(_get(run + 8 * j) / float(n), run + 8 * j)
    # Backwards: the last rows are the likeliest to be in the nearest cache.
    for first in range((n - 1) // ROWS * ROWS, -1, -ROWS):
        for j in range(0, width, LANES):
            row, there = _tile(x, like, first * step, j, stride), _there(count, j)
            mean = _get(run + 8 * j)
            # In two parts, so that float32 is enough from here on: the first difference is nearly exact.
            high = _rounded(mean, like)
            low = _rounded(mean - _wide(high), like)
            for _ in range(first, min(first + ROWS, n)):
                deviation = _rounded(_wide(_load(row, like, stride, there)), like) - high - low
                _store(deviation * scale + high, row, like, stride, there)
                row += step


@compiled
def _sobolev(x, like, t, stride, count, width, periodic, w, scale, run):
    """(I + lam A)^-1 x by elimination and substitution, see `cdgrad.ops.coefficients.Sobolev`.

    What is kept between the sweeps is y_m / pivot_m, of the size of the gradient: y_m may overflow.

    The inner product with the wrap rides along with the first sweep.
    """
    n, step, width = _shape(t, like, width, run)
    before, inverse, wrap, ratio = w[0], w[1], w[2], w[3]
    wrapped, store = run + 8 * width, run + 16 * width
    for first in range(0, n, ROWS):
        for j in range(0, width, LANES):
            row, there = _tile(x, like, first * step, j, stride), _there(count, j)
            value, product = _get(run + 8 * j), _get(wrapped + 8 * j)
            for m in range(first, min(first + ROWS, n)):
                g = _wide(_load(row, like, stride, there))
                value = g + value * before[m]
                if periodic:
                    product += g * wrap[m]
                _keep(value * inverse[m], row, like, stride, there, store + 4 * (m * width + j))
                _ask(row + ROWS * step, like, stride)
                row += step
            _put(value, run + 8 * j)
            _put(product, wrapped + 8 * j)
    for j in range(0, width, LANES):
        _put(_zeros(), run + 8 * j)
    for first in range((n - 1) // ROWS * ROWS, -1, -ROWS):
        last = min(first + ROWS, n) - 1
        for j in range(0, width, LANES):
            row, there = _tile(x, like, last * step, j, stride), _there(count, j)
            value, product = _get(run + 8 * j), _get(wrapped + 8 * j)
            for m in range(last, first - 1, -1):
                kept = _kept(row, like, stride, there, store + 4 * (m * width + j))
                value = _wide(kept) + value * ratio[m]
                _store(value - product * wrap[m] if periodic else value, row, like, stride, there)
                row -= step
            _put(value, run + 8 * j)


@compiled
def _mean_sobolev(x, like, t, stride, count, width, periodic, w, scale, run):
    """mean + (lam A)^+ x, integrating twice, see `cdgrad.ops.cpu`.

    The first sweep takes inner products: the mean, g~ - mean at channel 0, the slope at the wrap. They
    are all that the second needs to integrate the deviation twice, so it alone writes.
    """
    n, step, width = _shape(t, like, width, run)
    start, wrap = w[0], w[1]
    values, slopes = run + 8 * width, run + 16 * width
    for first in range(0, n, ROWS):
        for j in range(0, width, LANES):
            row, there = _tile(x, like, first * step, j, stride), _there(count, j)
            total, value, slope = _get(run + 8 * j), _get(values + 8 * j), _get(slopes + 8 * j)
            for m in range(first, min(first + ROWS, n)):
                g = _wide(_load(row, like, stride, there))
                total += g
                value += g * start[m]
                if periodic:
                    slope += g * wrap[m]
                _ask(row + ROWS * step, like, stride)
                row += step
            _put(total, run + 8 * j)
            _put(value, values + 8 * j)
            _put(slope, slopes + 8 * j)
    for j in range(0, width, LANES):
        mean = _get(run + 8 * j) / float(n)
        _put(mean, run + 8 * j)
        _put(_get(values + 8 * j) + mean, values + 8 * j)
    for first in range(0, n, ROWS):
        for j in range(0, width, LANES):
            row, there = _tile(x, like, first * step, j, stride), _there(count, j)
            mean, value, slope = _get(run + 8 * j), _get(values + 8 * j), _get(slopes + 8 * j)
            for _ in range(first, min(first + ROWS, n)):
                slope += (mean - _wide(_load(row, like, stride, there))) * scale
                _store(value, row, like, stride, there)
                value += slope
                row += step
            _put(value, values + 8 * j)
            _put(slope, slopes + 8 * j)


@compiled
def _get(address):
    return _load(address, _FLOAT64, None, None)


@compiled
def _put(value, address):
    _store(value, address, _FLOAT64, None, None)


# How elements lie, by type: numba compiles the sweeps once for each.


def _tile(x, like, offset, j, stride):
    """The address of the tile's first element: `offset` bytes and j columns on."""
    raise NotImplementedError


@overload(_tile)
def _tile_of(x, like, offset, j, stride):
    if isinstance(stride, types.NoneType):
        return lambda x, like, offset, j, stride: x + offset + j * like.itemsize
    return lambda x, like, offset, j, stride: x + offset + j * stride * like.itemsize


def _there(count, j):
    """How many columns of the tile at column j are there; None for all."""
    raise NotImplementedError


@overload(_there)
def _there_of(count, j):
    if isinstance(count, types.NoneType):
        return lambda count, j: None
    return lambda count, j: min(LANES, count - j)


def _keep(value, row, like, stride, there, store):
    """Keep a value from sweep to sweep: in place, unless that would round to 16 bits."""
    raise NotImplementedError


@overload(_keep)
def _keep_of(value, row, like, stride, there, store):
    if isinstance(like.dtype, types.Float):
        return lambda value, row, like, stride, there, store: _store(value, row, like, stride, there)
    return lambda value, row, like, stride, there, store: _store(value, store, _FLOAT32, None, None)


def _kept(row, like, stride, there, store):
    """What `_keep` kept."""
    raise NotImplementedError


@overload(_kept)
def _kept_of(row, like, stride, there, store):
    if isinstance(like.dtype, types.Float):
        return lambda row, like, stride, there, store: _load(row, like, stride, there)
    return lambda row, like, stride, there, store: _load(store, _FLOAT32, None, None)


# What numpy has no word for: vectors, addresses, prefetches, atomic counters, 16-bit floats.

_INT64, _FLOAT64, _FLOAT32 = np.empty(0, np.int64), np.empty(0, np.float64), np.empty(0, np.float32)
_I1, _I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
_FLOATS = {32: ir.FloatType(), 64: ir.DoubleType()}


class Lanes(types.Type):
    """A vector of `LANES` floats of so many bits, in registers."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        super().__init__(name=f"Lanes{bits}x{LANES}")


_SINGLE, _DOUBLE = Lanes(32), Lanes(64)


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, _vector(_FLOATS[kind.bits]))


def _vector(element):
    return ir.VectorType(element, LANES)


def _splat(builder, value):
    undefined = ir.Constant(_vector(value.type), ir.Undefined)
    first = builder.insert_element(undefined, value, _I32(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_vector(_I32), [0] * LANES))


def _to(builder, value, kind, bits):
    """Lanes, or a float64 for all lanes, as lanes of so many bits."""
    own = kind.bits if isinstance(kind, Lanes) else 64
    wanted = _vector(_FLOATS[bits]) if isinstance(kind, Lanes) else _FLOATS[bits]
    if own != bits:
        value = builder.fpext(value, wanted) if own < bits else builder.fptrunc(value, wanted)
    return value if isinstance(kind, Lanes) else _splat(builder, value)


def _arithmetic(operation, instruction):
    """Lanes on the left, lanes or a float64 for all of them on the right."""

    @intrinsic
    def compute(typing, a, b):
        def build(context, builder, signature, arguments):
            right = _to(builder, arguments[1], b, a.bits)
            return getattr(builder, instruction)(arguments[0], right, flags=("contract",))

        return a(a, b), build

    @overload(operation)
    def compute_lanes(a, b):
        if isinstance(a, Lanes):
            return lambda a, b: compute(a, b)
        return None


_arithmetic(operator.add, "fadd")
_arithmetic(operator.iadd, "fadd")
_arithmetic(operator.sub, "fsub")
_arithmetic(operator.mul, "fmul")
_arithmetic(operator.truediv, "fdiv")


@intrinsic
def _zeros(typing):
    def build(context, builder, signature, arguments):
        return ir.Constant(_vector(_FLOATS[64]), None)

    return _DOUBLE(), build


@intrinsic
def _wide(typing, value):
    """As float64."""

    def build(context, builder, signature, arguments):
        return _to(builder, arguments[0], value, 64)

    return _DOUBLE(value), build


@intrinsic
def _rounded(typing, value, like):
    """As float32 if that is what is stored."""
    kind = _SINGLE if like.dtype == types.float32 else _DOUBLE

    def build(context, builder, signature, arguments):
        return _to(builder, arguments[0], value, kind.bits)

    return kind(value, like), build


_STORED = {types.float64: _FLOATS[64], types.float32: _FLOATS[32], types.uint16: _I16, types.int16: _I16}


@intrinsic
def _load(typing, address, like, stride, there):
    """Elements `stride` apart, as float32 or float64; zero where no column is there."""
    kind = _DOUBLE if like.dtype == types.float64 else _SINGLE

    def build(context, builder, signature, arguments):
        bits = _moved(context, builder, signature, arguments, like, stride, there)
        if like.dtype == types.uint16:  # bfloat16: the upper half of a float32
            wide = builder.zext(bits, _vector(_I32))
            bits = builder.bitcast(builder.shl(wide, _splat(builder, _I32(16))), _vector(_FLOATS[32]))
        elif like.dtype == types.int16:
            half = builder.bitcast(bits, _vector(ir.HalfType()))
            bits = builder.fpext(half, _vector(_FLOATS[32]))
        return bits

    return kind(address, like, stride, there), build


@intrinsic
def _store(typing, value, address, like, stride, there):
    """Write lanes as elements `stride` apart, rounded to nearest even, to 16 bits by way of float32."""

    def build(context, builder, signature, arguments):
        x = _to(builder, arguments[0], value, 64 if like.dtype == types.float64 else 32)
        if like.dtype == types.int16:
            x = builder.bitcast(builder.fptrunc(x, _vector(ir.HalfType())), _vector(_I16))
        elif like.dtype == types.uint16:
            # No NaN overflows here: its low bits are zero, as it comes from a bfloat16 or from arithmetic.
            bits = builder.bitcast(x, _vector(_I32))
            sixteen, one, almost = (_splat(builder, _I32(number)) for number in (16, 1, 0x7FFF))
            odd = builder.and_(builder.lshr(bits, sixteen), one)
            bits = builder.add(builder.add(bits, almost), odd)
            x = builder.trunc(builder.lshr(bits, sixteen), _vector(_I16))
        _moved(context, builder, signature, arguments[1:], like, stride, there, x)
        return context.get_dummy_value()

    return types.void(value, address, like, stride, there), build


def _moved(context, builder, signature, arguments, like, stride, there, value=None):
    """The elements at an address, or `value` written there."""
    address, _, by, count = arguments
    vector, size = _vector(_STORED[like.dtype]), like.dtype.bitwidth // 8
    if isinstance(stride, types.NoneType) and isinstance(there, types.NoneType):
        pointer = builder.inttoptr(address, vector.as_pointer())
        return builder.store(value, pointer, size) if value is not None else builder.load(pointer, align=size)
    lanes = ir.Constant(_vector(_I64), list(range(LANES)))
    mask = ir.Constant(_vector(_I1), [1] * LANES)
    if not isinstance(there, types.NoneType):
        mask = builder.icmp_signed("<", lanes, _splat(builder, count))
    name = f"v{LANES}{'f' if isinstance(like.dtype, types.Float) else 'i'}{8 * size}"
    if isinstance(stride, types.NoneType):
        kind, name, pointers = ("load", "store"), f"{name}.p0", builder.inttoptr(address, vector.as_pointer())
    else:
        offsets = builder.mul(lanes, _splat(builder, builder.mul(by, _I64(size))))
        places = builder.add(_splat(builder, address), offsets)
        pointers = builder.inttoptr(places, _vector(_STORED[like.dtype].as_pointer()))
        kind, name = ("gather", "scatter"), f"{name}.v{LANES}p0"
    if value is None:
        arguments, returned = [pointers, _I32(size), mask, ir.Constant(vector, None)], vector
    else:
        arguments, returned = [value, pointers, _I32(size), mask], ir.VoidType()
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(returned, [argument.type for argument in arguments]),
        f"llvm.masked.{kind[value is not None]}.{name}",
    )
    return builder.call(function, arguments)


@intrinsic
def _ask(typing, address, like, stride):
    """Start to load contiguous lanes at the address into the second-level cache."""

    def build(context, builder, signature, arguments):
        if isinstance(stride, types.NoneType):
            pointer = _I8.as_pointer()
            kind = ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32])
            function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
            read, keep, data = _I32(0), _I32(2), _I32(1)
            for offset in range(0, LANES * like.dtype.bitwidth // 8, 64):
                line = builder.inttoptr(builder.add(arguments[0], _I64(offset)), pointer)
                builder.call(function, [line, read, keep, data])
        return context.get_dummy_value()

    return types.void(address, like, stride), build


@intrinsic
def _pointer(typing, address, like):
    """The address, as a pointer to elements of `like`."""

    def build(context, builder, signature, arguments):
        element = context.get_data_type(like.dtype)
        return builder.inttoptr(arguments[0], element.as_pointer())

    return types.CPointer(like.dtype)(address, like), build


@intrinsic
def _claim(typing, address):
    """The number at the address, which becomes one more: atomically, so each block has one thread."""

    def build(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], _I64.as_pointer())
        return builder.atomic_rmw("add", pointer, _I64(1), "monotonic")

    return types.int64(address), build
