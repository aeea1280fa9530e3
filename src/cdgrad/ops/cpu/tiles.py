"""A tile of the CPU kernels in memory: how its elements lie, by type, so that numba compiles the sweeps once
for each; running values; prefetches.
"""

# numba compiles these functions from types that only it knows.
# pyright: basic
from __future__ import annotations

from numba import njit, types  # pyright: ignore[reportPrivateImportUsage]  numba declares no names public
from numba.extending import overload

from cdgrad.ops.cpu.vectors import FLOAT32, FLOAT64, LANES, load, prefetch, prefetch_end, store

# "contract" fuses multiply and add. Nothing else of fastmath: non-finite gradients must stay so.
compiled = njit(nogil=True, fastmath={"contract"}, error_model="numpy")


@compiled
def prefetch_next(address, like, stride, left, width, step):
    """Prefetch lanes; returns the address of the next, in this row or the one after, and the columns left."""
    prefetch(address, like, stride)
    if left == LANES:
        prefetch_end(address, like, stride)
        return address + LANES * like.itemsize + step - width * like.itemsize, width
    return address + LANES * like.itemsize, left - LANES


@compiled
def get(address):
    return load(address, FLOAT64, None, None)


@compiled
def put(value, address):
    store(value, address, FLOAT64, None, None)


def tile_address(x, like, offset, j, stride):
    """The address of the tile's first element: `offset` bytes and j columns on."""
    raise NotImplementedError


@overload(tile_address)
def _tile_of(x, like, offset, j, stride):
    if isinstance(stride, types.NoneType):
        return lambda x, like, offset, j, stride: x + offset + j * like.itemsize
    return lambda x, like, offset, j, stride: x + offset + j * stride * like.itemsize


def lanes_left(count, j):
    """How many lanes of the tile at column j hold a column; None for all."""
    raise NotImplementedError


@overload(lanes_left)
def _mask_of(count, j):
    if isinstance(count, types.NoneType):
        return lambda count, j: None
    return lambda count, j: min(LANES, count - j)


def spill(value, row, like, stride, mask, spilled):
    """Store a value for the second sweep: in place, unless that would round to 16 bits."""
    raise NotImplementedError


@overload(spill)
def _spill_of(value, row, like, stride, mask, spilled):
    if isinstance(like.dtype, types.Float):
        return lambda value, row, like, stride, mask, spilled: store(value, row, like, stride, mask)
    return lambda value, row, like, stride, mask, spilled: store(value, spilled, FLOAT32, None, None)


def reload(row, like, stride, mask, spilled):
    """What `spill` stored."""
    raise NotImplementedError


@overload(reload)
def _reload_of(row, like, stride, mask, spilled):
    if isinstance(like.dtype, types.Float):
        return lambda row, like, stride, mask, spilled: load(row, like, stride, mask)
    return lambda row, like, stride, mask, spilled: load(spilled, FLOAT32, None, None)
