"""The operator on JAX arrays: linear time, logarithmic depth, lam may be traced.

Both Sobolev metrics are a ring of coupled unknowns, solved by cyclic reduction. Against two
`lax.scan` sweeps over the channels, the other linear method, it is as fast or faster on a CPU, needs
no sequential step per channel on an accelerator, and in float32 loses 2e-7 where the sweeps lose up
to 1e-5; it takes longer to compile (docs/jax.md has the numbers).
"""

# jax and optax type their arrays, but few of their functions.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from cdgrad.metrics import L2, MeanSobolev, Metric, ReweightedL2, Sobolev, as_metric

Rescale = Literal["none", "norm"]


def directed(
    grad: Array, metric: Metric | str, *, axis: int = -1, groups: int = 1, lam: ArrayLike | None = None
) -> Array:
    """The gradient in `metric` along `axis`, from the ordinary gradient.

    With g one column of `grad` along `axis`, the column g~ of the result satisfies
    ``<g~, k>_metric = mean(g k)`` for every k. Written out, A = D^T D being the negative second
    difference over spacing 1/n:

    ========================  =======================================
    metric                    g~
    ========================  =======================================
    ``L2()``                  g
    ``ReweightedL2(lam)``     mean(g) + (g - mean(g)) / lam
    ``Sobolev(lam)``          (I + lam A)^-1 g
    ``MeanSobolev(lam)``      mean(g) + (lam A)^+ g
    ========================  =======================================

    Composes with jit, vmap, grad, scan and sharded arrays. Inside `shard_map` it sees one shard: do
    not split `axis` there.

    Args:
        grad: floating point, any shape. Narrower than float32 is computed in float32.
        metric: a metric or its text.
        axis: the channel axis, such as -1 of a Flax kernel (..., I, O); negative counts from the end.
        groups: number of consecutive equal intervals of the axis, each a channel axis of its own.
        lam: in place of the metric's lam: a number, or a scalar array, which may be traced. An array
            must be positive and finite, which is not checked.

    Returns:
        Array of grad's shape and dtype.

    Raises:
        TypeError: `grad` is not a floating-point array; `metric` is not a metric; `lam` is no scalar.
        IndexError: `axis` is out of range.
        ValueError: `groups` does not divide the axis; a bad metric text; lam for a metric without.

    Cost: linear in ``grad.size``; no compilation for a new lam.
    Source: arXiv 2008.10766 (abstract); equations derived in docs/theory.md.

    >>> print(directed(jnp.array([1.0, 3.0]), "reweighted:lam=4"))
    [1.75 2.25]
    """
    return direct(grad, *with_lam(metric, lam), axis=axis, groups=groups, rescale="none")


def with_lam(metric: Metric | str, lam: ArrayLike | None) -> tuple[Metric, ArrayLike]:
    """The metric as a static value (its lam set to 1, so that all lam share one program), and its lam."""
    metric = as_metric(metric)
    if isinstance(metric, L2):
        if lam is not None:
            raise ValueError(f"lam={lam!r} was given for the metric {metric}, which has none")
        return metric, 1.0
    fixed = cast(ReweightedL2 | Sobolev | MeanSobolev, metric)
    if lam is None:
        lam = fixed.lam
    elif not isinstance(lam, jax.Array):
        lam = replace(fixed, lam=cast(Any, lam)).lam  # the metric validates numbers
    elif lam.ndim or not jnp.issubdtype(lam.dtype, jnp.number):
        raise TypeError(f"lam must be a real scalar, got {lam.dtype} of shape {lam.shape}")
    return replace(fixed, lam=1.0), lam


def direct(grad: Array, metric: Metric, lam: ArrayLike, *, axis: int, groups: int, rescale: Rescale) -> Array:
    """`directed`, after `with_lam`; with ``rescale="norm"`` the result has the L2 norm of `grad`."""
    if not isinstance(grad, jax.Array) or not jnp.issubdtype(grad.dtype, jnp.floating):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"grad must be a jax.Array of a real floating dtype, "
            f"got {getattr(grad, 'dtype', type(grad).__name__)}"
        )
    if not -grad.ndim <= axis < grad.ndim:
        raise IndexError(
            f"axis {axis} is out of range for grad of shape {grad.shape}; "
            f"it must lie in [{-grad.ndim}, {grad.ndim - 1}]"
        )
    axis %= grad.ndim
    if groups < 1 or grad.shape[axis] % groups:
        raise ValueError(
            f"groups must be a positive divisor of the channel axis: got groups={groups} for "
            f"{grad.shape[axis]} channels, axis {axis} of grad of shape {grad.shape}"
        )
    if isinstance(metric, L2) or not grad.size or grad.shape[axis] == groups:
        return grad
    return _direct(grad, lam, metric, axis, groups, rescale)


# One program for eager callers too: operation by operation, a solve would be a hundred dispatches.
@partial(jax.jit, static_argnames=("metric", "axis", "groups", "rescale"))
def _direct(grad: Array, lam: ArrayLike, metric: Metric, axis: int, groups: int, rescale: Rescale) -> Array:
    x = grad.astype(jnp.promote_types(grad.dtype, jnp.float32))
    lam = jnp.asarray(lam, x.dtype)
    if groups > 1:
        x = x.reshape(*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])
        axis += 1
    mean, residue, deviation = _split(x, axis)
    match metric:
        case ReweightedL2():
            y = deviation / lam
        case Sobolev(boundary=boundary):
            y = _solve(deviation, _ring(1.0, lam, x.shape[axis], boundary), axis)
        case MeanSobolev(boundary=boundary):
            y = _solve(deviation, _ring(0.0, lam, x.shape[axis], boundary), axis, singular=True)
        case _:
            raise TypeError(f"no operator is known for {metric!r}")
    y = y + ((mean - y.mean(axis, keepdims=True)) + residue)
    if rescale == "norm":
        y = y * _ratio(_norm(x), _norm(y))
    return y.reshape(grad.shape).astype(grad.dtype)


def _split(x: Array, axis: int) -> tuple[Array, Array, Array]:
    """The mean along `axis` as a sum of two numbers, and the deviation from it.

    Every metric keeps the mean, so only the deviation is solved for. Where lam mu is large the result
    is all mean; where it is small, a rounding error of the mean is amplified like a deviation. Both
    need the mean beyond the working precision, and JAX often has no float64: hence two numbers.
    """
    mean = x.mean(axis, keepdims=True)
    deviation = x - mean
    residue = deviation.mean(axis, keepdims=True)
    return mean, residue, deviation - residue


class _Ring(NamedTuple):
    """A symmetric matrix on a ring of unknowns, equal everywhere but at its seam.

    Rows are kept as their sums and couplings, never as diagonals: with lam n^2 near 1e11 the diagonal
    1 + 2 lam n^2 would have lost the 1 that makes the matrix invertible. Coupling c between j and k
    stands for -c at (j, k) and (k, j), and for c in both diagonals.
    """

    first: Array  # row sums: of unknown 0,
    inner: Array  # of those between,
    last: Array  # and of unknown n - 1
    link: Array  # coupling of neighbors
    wrap: Array  # coupling of the last unknown with the first; 0 if the ends are free


def _ring(row_sum: float, lam: Array, n: int, boundary: str) -> _Ring:
    """row_sum I + lam A."""
    total, link = jnp.full_like(lam, row_sum), lam * float(n) ** 2
    return _Ring(total, total, total, link, link if boundary == "periodic" else jnp.zeros_like(link))


def _solve(x: Array, ring: _Ring, axis: int, singular: bool = False) -> Array:
    """The solution for the right-hand side x: eliminate the odd unknowns, solve for the even, return.

    What is left is a ring again. All updates add and multiply positive numbers, so nothing cancels.
    A singular ring (row sums 0) has a solution up to a constant; the one with y_0 = 0 is taken.
    """
    # Without the barriers XLA fuses each level into those above it and computes it again for every
    # use: 20 times slower at 256 channels on a CPU.
    x = lax.optimization_barrier(x)
    n = x.shape[axis]
    if n == 1:
        return jnp.zeros_like(x) if singular else x / ring.first
    eliminate = _eliminate_odd if n % 2 else _eliminate_even
    return lax.optimization_barrier(eliminate(x, ring, axis, singular))


def _eliminate_odd(x: Array, ring: _Ring, axis: int, singular: bool) -> Array:
    """`_solve` for odd n: both ends are even unknowns and stay, with the coupling across the seam."""
    cut = partial(lax.slice_in_dim, axis=axis)
    even, odd = cut(x, 0, None, 2), cut(x, 1, None, 2)
    pivot = 1 / (ring.inner + 2 * ring.link)
    share = ring.link * pivot
    passed = share * ring.inner
    reduced = _Ring(
        ring.first + passed, ring.inner + 2 * passed, ring.last + passed, share * ring.link, ring.wrap
    )
    sent, none = share * odd, jnp.zeros_like(cut(x, 0, 1))
    gathered = even + jnp.concatenate([none, sent], axis) + jnp.concatenate([sent, none], axis)
    y = _solve(gathered, reduced, axis, singular)
    solved = pivot * odd + share * (cut(y, 0, -1) + cut(y, 1, None))
    return jnp.concatenate([_interleave(cut(y, 0, -1), solved, axis), cut(y, -1, None)], axis)


def _eliminate_even(x: Array, ring: _Ring, axis: int, singular: bool) -> Array:
    """`_solve` for even n: the last unknown is odd and goes; it couples to n - 2 and, by wrap, to 0."""
    cut = partial(lax.slice_in_dim, axis=axis)
    even, odd, seam = cut(x, 0, None, 2), cut(x, 1, -1, 2), cut(x, -1, None)
    pivot = 1 / (ring.inner + 2 * ring.link)
    share = ring.link * pivot
    passed = share * ring.inner
    seam_pivot = 1 / (ring.last + ring.link + ring.wrap)
    left, right = ring.link * seam_pivot, ring.wrap * seam_pivot
    if x.shape[axis] == 2:  # n - 2 and 0 are one
        reduced = ring._replace(first=ring.first + (left + right) * ring.last)
    else:
        reduced = _Ring(
            ring.first + passed + right * ring.last,
            ring.inner + 2 * passed,
            ring.inner + passed + left * ring.last,
            share * ring.link,
            right * ring.link,
        )
    sent = share * odd
    from_left = jnp.concatenate([right * seam, sent], axis)
    from_right = jnp.concatenate([sent, left * seam], axis)
    y = _solve(even + from_left + from_right, reduced, axis, singular)
    solved = pivot * odd + share * (cut(y, 0, -1) + cut(y, 1, None))
    solved_seam = seam_pivot * seam + left * cut(y, -1, None) + right * cut(y, 0, 1)
    return _interleave(y, jnp.concatenate([solved, solved_seam], axis), axis)


def _interleave(even: Array, odd: Array, axis: int) -> Array:
    shape = list(even.shape)
    shape[axis] *= 2
    return jnp.stack([even, odd], axis + 1).reshape(shape)


def _norm(x: Array) -> Array:
    """The L2 norm; squares of scaled entries neither overflow nor vanish."""
    top = jnp.max(jnp.abs(x))
    scale = jnp.where(top > 0, top, 1)
    return scale * jnp.sqrt(jnp.sum(jnp.square(x / scale)))


def _ratio(a: Array, b: Array) -> Array:
    """a / b, and 1 where b is 0: a zero gradient stays zero."""
    return a / jnp.where(b > 0, b, 1)
