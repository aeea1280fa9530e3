"""Vectors of columns for numba, and what else numpy has no word for: addresses, prefetches, atomic counters,
16-bit floats.

A vector is LLVM's own and stays in registers; numba's loops over arrays would keep it in memory instead and
guard every row with a test for overlap. `like` is an empty array of the dtype stored at an address.
"""

# numba compiles these functions from types that only it knows.
# pyright: basic
from __future__ import annotations

import operator
from typing import Any

import numba.extending
import numpy as np
from llvmlite import ir
from numba import types  # pyright: ignore[reportPrivateImportUsage]  numba declares no names public
from numba.core import cgutils
from numba.extending import models, overload, register_model

# The compiled signature is not the one that a type checker sees.
intrinsic: Any = numba.extending.intrinsic

LANES = 16

INT64, FLOAT64, FLOAT32 = (np.empty(0, dtype) for dtype in (np.int64, np.float64, np.float32))
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
def zeros(typing):
    def build(context, builder, signature, arguments):
        return ir.Constant(_vector(_FLOATS[64]), None)

    return _DOUBLE(), build


@intrinsic
def wide(typing, value):
    """As float64."""

    def build(context, builder, signature, arguments):
        return _to(builder, arguments[0], value, 64)

    return _DOUBLE(value), build


@intrinsic
def rounded(typing, value, like):
    """As float32 if that is what is stored."""
    kind = _SINGLE if like.dtype == types.float32 else _DOUBLE

    def build(context, builder, signature, arguments):
        return _to(builder, arguments[0], value, kind.bits)

    return kind(value, like), build


@intrinsic
def times(typing, value, power, like):
    """Lanes times a power of two, exactly, where float64 is stored; else the lanes as they are."""

    def build(context, builder, signature, arguments):
        if like.dtype != types.float64:
            return arguments[0]
        # Any flag but "contract", which numba adds where there is none: an addition that took in this
        # product instead of its own would round otherwise.
        return builder.fmul(arguments[0], _to(builder, arguments[1], power, 64), flags=("arcp",))

    return value(value, power, like), build


_STORED = {types.float64: _FLOATS[64], types.float32: _FLOATS[32], types.uint16: _I16, types.int16: _I16}


@intrinsic
def load(typing, address, like, stride, mask):
    """Elements `stride` apart, as float32 or float64; zero where the mask has no column."""
    kind = _DOUBLE if like.dtype == types.float64 else _SINGLE

    def build(context, builder, signature, arguments):
        bits = _moved(context, builder, signature, arguments, like, stride, mask)
        if like.dtype == types.uint16:  # bfloat16: the upper half of a float32
            wide = builder.zext(bits, _vector(_I32))
            bits = builder.bitcast(builder.shl(wide, _splat(builder, _I32(16))), _vector(_FLOATS[32]))
        elif like.dtype == types.int16:
            half = builder.bitcast(bits, _vector(ir.HalfType()))
            bits = builder.fpext(half, _vector(_FLOATS[32]))
        return bits

    return kind(address, like, stride, mask), build


@intrinsic
def store(typing, value, address, like, stride, mask):
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
        _moved(context, builder, signature, arguments[1:], like, stride, mask, x)
        return context.get_dummy_value()

    return types.void(value, address, like, stride, mask), build


def _moved(context, builder, signature, arguments, like, stride, mask, value=None):
    """The elements at an address, or `value` written there."""
    address, _, by, count = arguments
    vector, size = _vector(_STORED[like.dtype]), like.dtype.bitwidth // 8
    if isinstance(stride, types.NoneType) and isinstance(mask, types.NoneType):
        pointer = builder.inttoptr(address, vector.as_pointer())
        return builder.store(value, pointer, size) if value is not None else builder.load(pointer, align=size)
    lanes = ir.Constant(_vector(_I64), list(range(LANES)))
    present = ir.Constant(_vector(_I1), [1] * LANES)
    if not isinstance(mask, types.NoneType):
        present = builder.icmp_signed("<", lanes, _splat(builder, count))
    name = f"v{LANES}{'f' if isinstance(like.dtype, types.Float) else 'i'}{8 * size}"
    if isinstance(stride, types.NoneType):
        kind, name, pointers = ("load", "store"), f"{name}.p0", builder.inttoptr(address, vector.as_pointer())
    else:
        offsets = builder.mul(lanes, _splat(builder, builder.mul(by, _I64(size))))
        places = builder.add(_splat(builder, address), offsets)
        pointers = builder.inttoptr(places, _vector(_STORED[like.dtype].as_pointer()))
        kind, name = ("gather", "scatter"), f"{name}.v{LANES}p0"
    if value is None:
        arguments, returned = [pointers, _I32(size), present, ir.Constant(vector, None)], vector
    else:
        arguments, returned = [value, pointers, _I32(size), present], ir.VoidType()
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(returned, [argument.type for argument in arguments]),
        f"llvm.masked.{kind[value is not None]}.{name}",
    )
    return builder.call(function, arguments)


@intrinsic
def prefetch(typing, address, like, stride):
    """Start to load contiguous lanes at the address into the second-level cache."""

    def build(context, builder, signature, arguments):
        if isinstance(stride, types.NoneType):
            for offset in range(0, LANES * like.dtype.bitwidth // 8, 64):
                _prefetch_line(builder, arguments[0], offset)
        return context.get_dummy_value()

    return types.void(address, like, stride), build


@intrinsic
def prefetch_end(typing, address, like, stride):
    """The same of the last byte of the lanes, which may lie one cache line on."""

    def build(context, builder, signature, arguments):
        if isinstance(stride, types.NoneType):
            _prefetch_line(builder, arguments[0], LANES * like.dtype.bitwidth // 8 - 1)
        return context.get_dummy_value()

    return types.void(address, like, stride), build


def _prefetch_line(builder, address, offset):
    pointer = _I8.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32])
    function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
    line = builder.inttoptr(builder.add(address, _I64(offset)), pointer)
    builder.call(function, [line, _I32(0), _I32(2), _I32(1)])  # read, second level, data


@intrinsic
def pointer(typing, address, like):
    """The address, as a pointer to elements of `like`."""

    def build(context, builder, signature, arguments):
        element = context.get_data_type(like.dtype)
        return builder.inttoptr(arguments[0], element.as_pointer())

    return types.CPointer(like.dtype)(address, like), build


@intrinsic
def fetch_add(typing, address, amount):
    """The number at the address, which grows by the amount: atomically, so each block has one thread."""

    def build(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], _I64.as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "monotonic")

    return types.int64(address, types.int64), build


@intrinsic
def called(typing, address):
    """What the C function at the address returns: an int, without arguments."""

    def build(context, builder, signature, arguments):
        function = builder.inttoptr(arguments[0], ir.FunctionType(_I32, []).as_pointer())
        return builder.sext(builder.call(function, []), _I64)

    return types.int64(address), build
