"""The Optax transformation: thin; it walks the tree and hands each kernel to the operator."""

# jax and optax type their arrays, but few of their functions.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from cdgrad.metrics import Metric
from cdgrad.optax import batches
from cdgrad.optax.operator import Rescale, direct, with_lam, with_norm_of
from cdgrad.optax.selection import Blocks, Select, Target, selection, warn_of_doubts


class ChannelDirectedState(NamedTuple):
    """The number of updates so far, from which a schedule computes lam."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]  tuples have a method of that name


def channel_directed(
    metric: Metric | str,
    *,
    axis: int | None = None,
    select: Select | None = None,
    groups: Mapping[str, int] | None = None,
    blocks: Blocks | None = None,
    lam: ArrayLike | Callable[[ArrayLike], ArrayLike] | None = None,
    rescale: Rescale = "none",
) -> optax.GradientTransformation:
    """Replaces the gradients of convolution kernels by those in `metric` along the output channels.

    Every selected leaf g becomes its Riesz representative P g in the metric (`directed`); the others
    pass unchanged. Put it first in `optax.chain`, before what reads the gradient. It is linear (with
    ``rescale="none"``) and so commutes with accumulation, averaging over devices and loss scaling.

    Args:
        metric: a metric or its text, such as ``"reweighted:lam=3"``.
        axis: the channel axis of every selected leaf, in place of the recognized one.
        select: ``{pattern: axis or None}`` or a predicate ``(name, leaf) -> bool``, where recognition
            is not enough. See `selection`, which takes the same arguments and prints the outcome.
        groups: ``{pattern: count}`` for grouped kernels.
        blocks: ``{pattern: count or sizes}`` for kernels with several channel axes one after the other.
        lam: in place of the metric's lam: a number; a schedule, called with the number of updates so
            far; or a scalar array, which may be traced, so that `optax.inject_hyperparams` can set
            it. No value of it recompiles.
        rescale: ``"none"``, or ``"norm"``: P g is scaled to the L2 norm of g, leaf by leaf, which
            separates the direction from the size of the step. Zero stays zero.

    Returns:
        An `optax.GradientTransformation`; without state unless lam is a schedule.

    Raises:
        TypeError: not a metric; a traced axis.
        ValueError: an unknown rescale; a bad metric text; lam for a metric without; and from
            `selection`, when the transformation meets a tree.

    Warns:
        UserWarning: on init, the tree has nothing to direct, or kernels that may be convolutions and
            are left alone.

    Cost: linear in the number of weights.
    Source: arXiv 2008.10766.

    >>> params = {"Conv_0": {"kernel": jnp.ones((3, 3, 4, 8)), "bias": jnp.ones(8)}}
    >>> optimizer = optax.chain(channel_directed("sobolev:lam=0.01"), optax.sgd(0.1, momentum=0.9))
    >>> state = optimizer.init(params)
    >>> updates, state = optimizer.update(params, state, params)
    """
    if rescale not in get_args(Rescale):
        raise ValueError(f"rescale must be one of {', '.join(get_args(Rescale))}, got {rescale!r}")
    schedule = lam if callable(lam) else None
    # Checked now, so that a mistake shows where it was made.
    static, value = with_lam(metric, None if callable(lam) else lam)

    def init(params: Any) -> ChannelDirectedState | optax.EmptyState:
        warn_of_doubts(selection(params, axis=axis, select=select, groups=groups, blocks=blocks))
        return ChannelDirectedState(jnp.zeros([], jnp.int32)) if schedule else optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        now = value
        if schedule:
            _, now = with_lam(metric, schedule(state.count))
            state = state._replace(count=optax.safe_increment(state.count))
        leaves, tree = jax.tree.flatten(updates)
        chosen = selection(updates, axis=axis, select=select, groups=groups, blocks=blocks).leaves
        targets = {i: target for i, target in enumerate(chosen) if isinstance(target, Target)}
        if batches.worth_batches(static):
            leaves = batches.directed_together(leaves, targets, static, now, rescale)
        directed = [
            _directed(leaf, static, now, targets[i], rescale) if i in targets else leaf
            for i, leaf in enumerate(leaves)
        ]
        return jax.tree.unflatten(tree, directed), state

    return optax.GradientTransformation(init, update)


def _directed(leaf: jax.Array, metric: Metric, lam: ArrayLike, target: Target, rescale: Rescale) -> jax.Array:
    """The leaf directed, block by block where its blocks differ in size."""
    if not target.sizes:
        return direct(leaf, metric, lam, axis=target.axis, groups=target.groups, rescale=rescale)
    blocks = jnp.split(leaf, list(accumulate(target.sizes))[:-1], target.axis)
    parts = [direct(block, metric, lam, axis=target.axis, groups=1, rescale="none") for block in blocks]
    whole = jnp.concatenate(parts, target.axis)
    return whole if rescale == "none" else with_norm_of(leaf, whole)
