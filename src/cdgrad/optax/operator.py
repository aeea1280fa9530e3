"""The operator on JAX arrays: linear time, logarithmic depth, lam may be traced."""

# jax and optax type their arrays, but few of their functions.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from cdgrad.metrics import L2, MeanSobolev, Metric, ReweightedL2, Sobolev, as_metric
from cdgrad.optax.blocks import by_blocks, worth_blocks
from cdgrad.optax.ring import imbalance, solve, uniform_ring

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
        grad: floating point, any shape; NumPy arrays are taken, too. Narrower than float32 is computed
            in float32.
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
    """The metric, and the lam to use: its own unless one is given."""
    metric = as_metric(metric)
    if isinstance(metric, L2):
        if lam is not None:
            raise ValueError(f"lam={lam!r} was given for the metric {metric}, which has none; leave lam out")
        return metric, 1.0
    fixed = cast(ReweightedL2 | Sobolev | MeanSobolev, metric)
    if lam is None:
        lam = fixed.lam
    elif not isinstance(lam, jax.Array):
        lam = replace(fixed, lam=cast(Any, lam)).lam  # the metric validates numbers
    elif lam.ndim or not jnp.issubdtype(lam.dtype, jnp.number):
        raise TypeError(f"lam must be a real scalar, got {lam.dtype} of shape {lam.shape}")
    return metric, lam


def direct(grad: Array, metric: Metric, lam: ArrayLike, *, axis: int, groups: int, rescale: Rescale) -> Array:
    """`directed`, after `with_lam`; with ``rescale="norm"`` the result has the L2 norm of `grad`."""
    if isinstance(grad, np.ndarray) and np.issubdtype(grad.dtype, np.floating):
        grad = jnp.asarray(grad)
    if not isinstance(grad, jax.Array) or not jnp.issubdtype(grad.dtype, jnp.floating):
        raise TypeError(
            f"grad must be a jax.Array or NumPy array of a real floating dtype, "
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
    if not grad.size or grad.shape[axis] == groups:
        return grad
    run: Any = partial(_direct, axis=axis, groups=groups, rescale=rescale)
    sharding = jax.typeof(grad).sharding
    if jax.sharding.AxisType.Explicit in sharding.mesh.axis_types:
        # Strided slices of an axis that is split have no layout to state; let the compiler choose.
        run = jax.sharding.auto_axes(run, out_sharding=sharding)
    match metric:
        case L2():
            return grad
        case ReweightedL2():
            return run(grad, lam, None, 0.0)
        case Sobolev(boundary=boundary):
            return run(grad, lam, 1.0, float(boundary == "periodic"))
        case MeanSobolev(boundary=boundary):
            return run(grad, lam, 0.0, float(boundary == "periodic"))
        case _:
            raise TypeError(f"no operator is known for {metric!r}")


# One program for eager callers too: operation by operation, a solve would be a hundred dispatches.
@partial(jax.jit, static_argnames=("axis", "groups", "rescale"))
def _direct(
    grad: Array,
    lam: ArrayLike,
    row_sum: ArrayLike | None,
    wrap: ArrayLike,
    *,
    axis: int,
    groups: int,
    rescale: Rescale,
) -> Array:
    """The deviation solved for by ``row_sum I + lam A``, or divided by lam where row_sum is None."""
    wide = jnp.promote_types(grad.dtype, jnp.float32)
    x, along = grad, axis
    if groups > 1:
        x = x.reshape(*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])
        along += 1

    def solved(part: Array, axis: int) -> Array:
        y = _columns(part.astype(wide), jnp.asarray(lam, wide), row_sum, wrap, axis)
        return y if rescale == "norm" else y.astype(grad.dtype)

    # Without a solve there are no temporaries: the compiler fuses all that follows the mean.
    cut = row_sum is not None and worth_blocks(x, along)
    y = by_blocks(solved, x, along) if cut else solved(x, along)
    if rescale == "norm":
        y = y * _ratio(_norm(x.astype(wide)), _norm(y))
    return y.reshape(grad.shape).astype(grad.dtype)


def _columns(x: Array, lam: Array, row_sum: ArrayLike | None, wrap: ArrayLike, axis: int) -> Array:
    """The operator along `axis`, in x's dtype; finite wherever the result is."""
    n = x.shape[axis]
    kind = jnp.finfo(x.dtype)
    # Beyond these lam the result is the mean, the identity or an overflow; within, lam n^2 is finite.
    lam = jnp.clip(lam, float(kind.tiny) * 8, float(kind.max) * 2.0**-60)
    shrink, mean, residue = _mean(x, axis)
    deviation = x * shrink - mean
    if row_sum is None:
        return ((deviation - residue) / lam + (mean + residue)) / shrink
    link = lam * float(n) ** 2
    y = solve(deviation, uniform_ring(row_sum, link, wrap), axis)
    y = y + (1 - row_sum) * residue * imbalance(link, wrap, x.shape, axis)
    return (y + ((mean - y.mean(axis, keepdims=True)) + residue)) / shrink


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _mean(x: Array, axis: int) -> tuple[Array, Array, Array]:
    """A power of two, and the mean along `axis` of x times it, as a leading part and the residue.

    Every metric keeps the mean, so only the deviation is solved for. Where lam mu is large the result
    is all mean; where it is small, an error of the mean is amplified like a deviation. Both need the mean
    to twice the working precision: it is summed in float64, which JAX also has where arrays are float32.

    The power of two is 1 except near the largest float: deviations may be twice, and sums along the
    channel n times as large as the elements. The leading part has so few bits that subtracting it from
    elements hardly rounds: it would round all of them alike, and the common error, summed twice, is 5e-6
    at n = 1000.
    """
    n, kind, wide = x.shape[axis], jnp.finfo(x.dtype), x.dtype == np.float64
    bits = 8 + n.bit_length()
    top = jnp.max(jnp.abs(x), axis, keepdims=True)
    shrink = jnp.where(top > float(kind.max) * 2.0**-bits, 2.0**-bits, 1).astype(x.dtype)
    # The nearest power of two, but not one whose fractions below are lost.
    least = float(kind.tiny) * 2.0 ** (60 * wide)
    power = jnp.maximum(lax.reduce_precision(top * shrink, kind.nexp, 0), least)
    with jax.enable_x64(True):
        double = partial(lax.convert_element_type, new_dtype=np.float64)
        factor, grid = double(shrink), double(power) * 2.0 ** (2 - kind.nmant)
        if wide:
            mean = jnp.mean(x * factor, axis, keepdims=True)
        else:
            mean = jnp.sum(double(x), axis, keepdims=True) / n * factor
        leading = jnp.round(mean / grid) * grid
        residue = jnp.mean(x * factor - leading, axis, keepdims=True) if wide else mean - leading
        single = partial(lax.convert_element_type, new_dtype=x.dtype)
        return shrink, single(leading), single(residue)


@_mean.defjvp
def _(axis: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Any, Any]:
    shrink, mean, residue = _mean(*primals, axis)
    slope = jnp.mean(tangents[0] * shrink, axis, keepdims=True)
    return (shrink, mean, residue), (jnp.zeros_like(shrink), slope, jnp.zeros_like(residue))


def with_norm_of(grad: Array, directed: Array) -> Array:
    """`directed`, scaled to the L2 norm of `grad`."""
    wide = jnp.promote_types(grad.dtype, jnp.float32)
    y = directed.astype(wide)
    return (y * _ratio(_norm(grad.astype(wide)), _norm(y))).astype(grad.dtype)


def _norm(x: Array) -> Array:
    """The L2 norm; squares of scaled entries neither overflow nor vanish."""
    top = jnp.max(jnp.abs(x))
    scale = jnp.where(top > 0, top, 1)
    return scale * jnp.sqrt(jnp.sum(jnp.square(x / scale)))


def _ratio(a: Array, b: Array) -> Array:
    """a / b, and 1 where b is 0: a zero gradient stays zero."""
    return a / jnp.where(b > 0, b, 1)
