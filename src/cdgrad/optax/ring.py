"""Linear systems on a ring of coupled unknowns, by cyclic reduction: both Sobolev metrics are one.

Each level halves the unknowns, so the work is linear and the depth logarithmic. The other linear
method, two `lax.scan` sweeps along the channels, compiles faster, but needs a sequential step per
channel, which an accelerator pays for, and in float32 loses up to 1e-5 where this loses 3e-7
(docs/jax.md).
"""

# jax types its arrays, but few of its functions.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
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
    # Without the barriers XLA fuses each level into those above it and computes it again for every
    # use: 20 times slower at 256 channels on a CPU.
    x = lax.optimization_barrier(x)
    n = x.shape[axis]
    if n == 1:
        regular = ring.first > 0
        return jnp.where(regular, x / jnp.where(regular, ring.first, 1), 0)
    eliminate = _eliminate_odd if n % 2 else _eliminate_even
    return lax.optimization_barrier(eliminate(x, ring, axis))


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


def _eliminate_odd(x: Array, ring: Ring, axis: int) -> Array:
    """`solve` for odd n: both ends are even unknowns and stay, with the coupling across the seam."""
    cut = partial(lax.slice_in_dim, axis=axis)
    even, odd = cut(x, 0, None, 2), cut(x, 1, None, 2)
    diagonal = ring.inner + 2 * ring.link
    share = ring.link / diagonal
    passed = share * ring.inner
    reduced = Ring(
        ring.first + passed, ring.inner + 2 * passed, ring.last + passed, share * ring.link, ring.wrap
    )
    sent, none = share * odd, jnp.zeros_like(cut(x, 0, 1))
    gathered = even + jnp.concatenate([none, sent], axis) + jnp.concatenate([sent, none], axis)
    y = solve(gathered, reduced, axis)
    solved = odd / diagonal + share * (cut(y, 0, -1) + cut(y, 1, None))
    return jnp.concatenate([_interleave(cut(y, 0, -1), solved, axis), cut(y, -1, None)], axis)


def _eliminate_even(x: Array, ring: Ring, axis: int) -> Array:
    """`solve` for even n: the last unknown is odd and goes; it couples to n - 2 and, by wrap, to 0."""
    cut = partial(lax.slice_in_dim, axis=axis)
    even, odd, seam = cut(x, 0, None, 2), cut(x, 1, -1, 2), cut(x, -1, None)
    diagonal = ring.inner + 2 * ring.link
    share = ring.link / diagonal
    passed = share * ring.inner
    seam_diagonal = ring.last + ring.link + ring.wrap
    left, right = ring.link / seam_diagonal, ring.wrap / seam_diagonal
    if x.shape[axis] == 2:  # n - 2 and 0 are one
        reduced = ring._replace(first=ring.first + (left + right) * ring.last)
    else:
        reduced = Ring(
            ring.first + passed + right * ring.last,
            ring.inner + 2 * passed,
            ring.inner + passed + left * ring.last,
            share * ring.link,
            right * ring.link,
        )
    sent = share * odd
    from_left = jnp.concatenate([right * seam, sent], axis)
    from_right = jnp.concatenate([sent, left * seam], axis)
    y = solve(even + from_left + from_right, reduced, axis)
    solved = odd / diagonal + share * (cut(y, 0, -1) + cut(y, 1, None))
    solved_seam = seam / seam_diagonal + left * cut(y, -1, None) + right * cut(y, 0, 1)
    return _interleave(y, jnp.concatenate([solved, solved_seam], axis), axis)


def _interleave(even: Array, odd: Array, axis: int) -> Array:
    shape = list(even.shape)
    shape[axis] *= 2
    return jnp.stack([even, odd], axis + 1).reshape(shape)
