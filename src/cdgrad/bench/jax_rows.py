"""The same operator in JAX, over multiplying the same gradients by a number."""

# jax and optax type their functions in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from cdgrad.bench.candidates import METRICS
from cdgrad.bench.records import JaxRow
from cdgrad.bench.timing import interleaved

FLOOR = "jax.tree.map(multiply)"
# Kernels (h, w, I, O) of the four stages of a residual network.
CHANNELS = (64, 128, 256, 512)


def measure(rounds: int) -> list[JaxRow]:
    """A row for each channel count and metric, compiled beforehand; none where JAX is not installed."""
    if not (find_spec("jax") and find_spec("optax")):
        return []
    import jax
    import jax.numpy as jnp
    import optax  # pyright: ignore[reportMissingTypeStubs]  it has no types

    from cdgrad.optax import channel_directed

    rows: list[JaxRow] = []
    for channels in CHANNELS:
        shape = (3, 3, channels, channels)
        values = jnp.asarray(np.random.default_rng(0).standard_normal(shape), "float32")
        gradients = {"conv": {"kernel": values}}

        def compiled(function: Callable[[Any], Any], tree: Any = gradients) -> Callable[[], object]:
            program = jax.jit(function).lower(tree).compile()
            return lambda: jax.block_until_ready(program(tree))

        def direct(tree: Any, metric: str) -> Any:
            return channel_directed(metric).update(tree, optax.EmptyState())[0]

        candidates = {FLOOR: compiled(lambda tree: jax.tree.map(lambda g: g * 0.5, tree))}
        candidates |= {str(m): compiled(partial(direct, metric=str(m))) for m in METRICS}
        times = interleaved(candidates, lambda: None, cold=True, rounds=rounds)
        for name, t in times.items():
            rows.append(JaxRow(channels=channels, name=name, cold=t, cold_over_floor=t / times[FLOOR]))
    return rows
