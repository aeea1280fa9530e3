"""Leaves with equally many channels as one array: a solve is some fifteen small kernels, whatever its size.

ResNet-50's 53 convolutions have six channel counts. On an accelerator the launch of kernels takes longer than
their work, and the compiler takes seconds for each solve; on a CPU the copies would cost more than they save.
"""

# jax types its arrays, but few of their functions.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cdgrad.metrics import MeanSobolev, Metric, Sobolev
from cdgrad.optax.operator import Rescale, direct, with_norm_of
from cdgrad.optax.targets import Target


def worth_batches(metric: Metric) -> bool:
    """Whether `metric` needs a solve, on one accelerator: leaves split over devices are better left apart."""
    one_accelerator = jax.default_backend() != "cpu" and jax.device_count() == 1
    return one_accelerator and isinstance(metric, Sobolev | MeanSobolev)


def directed_together(
    leaves: Sequence[Any], targets: dict[int, Target], metric: Metric, lam: ArrayLike, rescale: Rescale
) -> list[Any]:
    """The leaves, with those directed that have as many channels as another; `targets` keeps the rest."""
    done = list(leaves)
    for members in _batches(leaves, targets):
        moved = [jnp.moveaxis(leaves[i], targets[i].axis, -1) for i in members]
        n = moved[0].shape[-1] // targets[members[0]].groups
        rows = [each.reshape(-1, n) for each in moved]
        all_rows = direct(jnp.concatenate(rows), metric, lam, axis=-1, groups=1, rescale="none")
        parts = jnp.split(all_rows, list(accumulate(map(len, rows)))[:-1])
        for i, each, part in zip(members, moved, parts, strict=True):
            leaf = jnp.moveaxis(part.reshape(each.shape), -1, targets.pop(i).axis)
            done[i] = leaf if rescale == "none" else with_norm_of(leaves[i], leaf)
    return done


def _batches(leaves: Sequence[Any], targets: dict[int, Target]) -> list[list[int]]:
    """The places of leaves that can be one array: two or more with equally many channels, of one dtype."""
    places: dict[tuple[int, Any], list[int]] = {}
    for i, target in targets.items():
        if not target.sizes and _is_plain(leaves[i]):
            places.setdefault((leaves[i].shape[target.axis] // target.groups, leaves[i].dtype), []).append(i)
    return [members for members in places.values() if len(members) > 1]


def _is_plain(leaf: object) -> bool:
    """Whether the leaf is an array of the operator's kind that no explicit mesh places."""
    if not isinstance(leaf, jax.Array) or not jnp.issubdtype(leaf.dtype, jnp.floating) or not leaf.size:
        return False
    return jax.sharding.AxisType.Explicit not in jax.typeof(leaf).sharding.mesh.axis_types
