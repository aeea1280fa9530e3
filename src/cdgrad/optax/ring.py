"""Linear systems on a ring of coupled unknowns, by cyclic reduction: both Sobolev metrics are one.

Each level halves the unknowns, so the work is linear and the depth logarithmic. The other linear
method, two `lax.scan` sweeps along the channels, compiles faster, but needs a sequential step per
channel, which an accelerator pays for, and in float32 loses up to 1e-5 where this loses 3e-7
(docs/jax.md).
"""

# jax types its arrays, but few of its functions.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike


class Ring(NamedTuple):
    """A symmetric matrix on a ring of unknowns, equal everywhere but at its seam.

    Rows are kept as their sums and couplings, never as diagonals: with lam n^2 near 1e11 the diagonal
    1 + 2 lam n^2 would have lost the 1 that makes the matrix invertible. Coupling c between j and k
    stands for -c at (j, k) and (k, j), and for c in both diagonals.
    """

    first: Array  # row sum of unknown 0
    inner: Array  # row sums of unknowns 1 to n - 2
    last: Array  # row sum of unknown n - 1
    link: Array  # coupling of neighbors
    wrap: Array  # coupling of the last unknown with the first; 0 if the ends are free


def uniform_ring(row_sum: ArrayLike, link: Array, wrap: ArrayLike) -> Ring:
    """row_sum I + link A / n^2: free ends if `wrap` is 0, periodic if it is 1."""
    total = jnp.full_like(link, row_sum)
    return Ring(total, total, total, link, link * wrap)


def solve(x: Array, ring: Ring, axis: int) -> Array:
    """The solution for the right-hand side x: eliminate the odd unknowns, solve for the even, return.

    What is left is a ring again. All updates add and multiply positive numbers, so nothing cancels.
    Shares are quotients, not products with a rounded 1 / diagonal: where row sums are 0 they are then
    exactly 1/2, and what is passed on is all there was.
    With row sums 0 the matrix is singular on constants, and y_0 = 0 picks a solution.
    """
    n = x.shape[axis]
    if n == 1:
        regular = ring.first > 0
        return jnp.where(regular, x / jnp.where(regular, ring.first, 1), 0)
    count = _phases(n)
    if n % count:  # a last odd unknown, which nothing is coupled to
        x = jnp.concatenate([x, jnp.zeros_like(lax.slice_in_dim(x, 0, 1, axis=axis))], axis)
    if n == count:  # XLA's partitioner is wrong about a strided slice of one element, of an axis over devices
        phases = [lax.slice_in_dim(x, i, i + 1, axis=axis) for i in range(count)]
    else:
        phases = [lax.slice_in_dim(x, i, None, count, axis) for i in range(count)]
    y = jnp.stack(_eliminate(phases, ring, n, axis), axis + 1).reshape(x.shape)
    return lax.slice_in_dim(y, 0, n, axis=axis)


def imbalance(link: Array, wrap: ArrayLike, shape: tuple[int, ...], axis: int) -> Array:
    """What a singular `uniform_ring` leaves out: y of right-hand side n at unknown 0 and -1 everywhere.

    A right-hand side of mean r has no solution; `solve` then answers for the one with n r taken from
    unknown 0, and r times this turns that into the answer for r taken from everywhere. Taking r from
    the elements beforehand would round all alike, and the common error, summed twice, is 5e-6 at
    n = 1000.
    """
    n = shape[axis]
    m = lax.broadcasted_iota(link.dtype, [n if i == axis else 1 for i in range(len(shape))], axis)
    return -m * ((n - m) + (1 - wrap) * (n - 1)) / (2 * link)


def _phases(n: int) -> int:
    """Into how many interleaved parts to take n unknowns apart: all but the first are eliminated at once.

    On an accelerator four halve the memory traffic of two and the number of kernels; eight compute more than
    they save, except at the end, where they save a kernel. A CPU computes a level anew for each of its uses.
    """
    if jax.default_backend() == "cpu" or n % 4:
        return 2
    return 8 if n == 8 else 4


def _eliminate(phases: Sequence[Array], ring: Ring, n: int, axis: int) -> list[Array]:
    """`solve` for x in interleaved parts, x[0::count], x[1::count] and so on; the result in such parts."""
    if len(phases) == 1:
        if n == 1:
            return [solve(phases[0], ring, axis)]
        # Without the barriers XLA fuses each level into those above it and computes it again for every
        # use: 20 times slower at 256 channels on a CPU.
        return [lax.optimization_barrier(solve(lax.optimization_barrier(phases[0]), ring, axis))]
    even, odd = phases[::2], phases[1::2]
    reduced, inner, last = _without_odd(ring, n)
    is_last = _places(odd[-1], axis) == odd[-1].shape[axis] - 1
    rows = [inner] * (len(odd) - 1)
    rows.append(_Row(*(jnp.where(is_last, a, b) for a, b in zip(last, inner, strict=True))))
    to_left = [row.left * x for row, x in zip(rows, odd, strict=True)]
    to_right = [row.right * x for row, x in zip(rows, odd, strict=True)]
    to_right = [jnp.roll(to_right[-1], 1, axis), *to_right[:-1]]
    gathered = [x + left + right for x, left, right in zip(even, to_left, to_right, strict=True)]
    y = _eliminate(gathered, reduced, (n + 1) // 2, axis)
    after = [*y[1:], _next(y[0], axis)]
    solved = [
        x / row.diagonal + (row.left * left + row.right * right)
        for x, row, left, right in zip(odd, rows, y, after, strict=True)
    ]
    return list(chain.from_iterable(zip(y, solved, strict=True)))


class _Row(NamedTuple):
    """The row of an odd unknown: its couplings to its neighbors over its diagonal, and the diagonal."""

    left: Array
    right: Array
    diagonal: Array


def _without_odd(ring: Ring, n: int) -> tuple[Ring, _Row, _Row]:
    """What is left of the ring without its odd unknowns; the rows of these, and of the last of them.

    If n is odd, both ends stay, with the coupling across the seam, and the last odd unknown is not one. If n
    is even, the last unknown goes; it couples to n - 2 and, by `wrap`, to 0.
    """
    diagonal = ring.inner + 2 * ring.link
    share = ring.link / diagonal
    passed = share * ring.inner
    reduced = Ring(
        ring.first + passed, ring.inner + 2 * passed, ring.last + passed, share * ring.link, ring.wrap
    )
    inner, none = _Row(share, share, diagonal), jnp.zeros_like(share)
    if n % 2:
        return reduced, inner, _Row(none, none, diagonal)
    seam = ring.last + ring.link + ring.wrap
    left, right = ring.link / seam, ring.wrap / seam
    if n == 2:  # n - 2 and 0 are one
        reduced = ring._replace(first=ring.first + (left + right) * ring.last)
    else:
        reduced = reduced._replace(
            first=reduced.first + right * ring.last,
            last=ring.inner + passed + left * ring.last,
            wrap=right * ring.link,
        )
    return reduced, inner, _Row(left, right, seam)


def _places(x: Array, axis: int) -> Array:
    return lax.broadcasted_iota(np.int32, x.shape, axis)


def _next(y: Array, axis: int) -> Array:
    """``jnp.roll(y, -1, axis)``, which XLA would store, as an expression that it fuses."""
    m = y.shape[axis]
    widths = [(-1, 1, 0) if i == axis else (0, 0, 0) for i in range(y.ndim)]
    shifted = lax.pad(y, jnp.zeros((), y.dtype), widths)
    return jnp.where(_places(y, axis) == m - 1, lax.slice_in_dim(y, 0, 1, axis=axis), shifted)
