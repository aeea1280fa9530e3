"""Large arrays in blocks of columns, one after the other: what a CPU's memory and caches ask for.

All columns at once need temporaries of several times the gradient. Beyond 32 MB glibc takes such a
piece from the system at every call and returns it, and its pages, filled with zeros anew each time,
took two thirds of the time for a 3 x 3 kernel of 512 channels.
"""

# jax types its arrays, but few of its functions.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable
from math import prod

import jax
import jax.numpy as jnp
from jax import Array, lax

BLOCK = 1 << 18
"""Elements of a block: its temporaries stay within a few MB, and two cores still share it."""


def worth_blocks(x: Array, axis: int) -> bool:
    """Whether `x` is large and all of it on one CPU: split over devices, it is better left whole."""
    several = x.size >= max(4 * BLOCK, 2 * x.shape[axis])
    return several and jax.default_backend() == "cpu" and jax.device_count() == 1


def by_blocks(run: Callable[[Array, int], Array], x: Array, axis: int) -> Array:
    """``run(x, axis)``, for a `run` that treats every column along `axis` alike and keeps the shape."""
    before, after = prod(x.shape[:axis]), prod(x.shape[axis + 1 :])
    # Without axes of length 1: XLA gives (columns, n, 1) the other layout, and transposes everything.
    whole = x.reshape([size for size in (before, x.shape[axis], after) if size > 1])
    axis = int(before > 1)
    along = 0 if before >= after else axis + 1
    columns = whole.shape[along]
    width = max(1, BLOCK * columns // x.size)

    def step(i: Array, out: Array) -> Array:
        # The last block overlaps the one before; it writes the same numbers again.
        start = jnp.minimum(i * width, columns - width)
        part = lax.dynamic_slice_in_dim(whole, start, width, along)
        return lax.dynamic_update_slice_in_dim(out, run(part, axis), start, along)

    result = jax.eval_shape(lambda: run(whole, axis))
    out = lax.fori_loop(0, -(-columns // width), step, jnp.zeros(result.shape, result.dtype))
    return out.reshape(x.shape)
