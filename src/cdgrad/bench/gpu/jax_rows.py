"""`cdgrad.optax` under `jit` on JAX's GPU, over multiplying the same gradients by a number."""

# jax and optax type their functions in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false, reportMissingTypeStubs=false
from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from statistics import median
from typing import Any

from cdgrad.bench.candidates import METRICS
from cdgrad.bench.gpu.operator import Items
from cdgrad.bench.gpu.setup import Setup, UnavailableError

# Kernels (h, w, I, O), 73 MB in float32: more than an L2 cache holds.
_KERNELS = [(3, 3, 512, 512)] * 5 + [(1, 1, 512, 2048)] * 4 + [(3, 3, 256, 256)] * 4
_REPEATS = 20


def items(setup: Setup) -> Items:
    """By metric, microseconds and the ratio to the floor, in a loop that is compiled as a whole."""
    if not find_spec("jax"):
        raise UnavailableError("JAX is not installed")
    # JAX would take most of the memory at its start, which PyTorch needs, too.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    if not setup.rehearsal and jax.default_backend() != "gpu":
        raise UnavailableError(f"JAX finds no GPU: its backend is {jax.default_backend()}")
    floor: list[float] = []
    metrics: Items = {str(metric): partial(_metric, setup, str(metric), floor) for metric in METRICS}
    return {"multiply": partial(_floor, setup, floor), **metrics}


def _floor(setup: Setup, floor: list[float]) -> dict[str, float]:
    import jax

    floor.append(_seconds(setup, lambda tree: jax.tree.map(lambda g: g * 0.999, tree)))
    return {"us": 1e6 * floor[0], "over_floor": 1.0}


def _metric(setup: Setup, metric: str, floor: list[float]) -> dict[str, float]:
    seconds = _seconds(setup, _with_optax(metric) if find_spec("optax") else _without_optax(metric))
    return {"us": 1e6 * seconds, "over_floor": seconds / floor[0]}


def _with_optax(metric: str) -> Callable[[Any], Any]:
    import optax

    from cdgrad.optax import channel_directed

    return lambda tree: channel_directed(metric).update(tree, optax.EmptyState())[0]


def _without_optax(metric: str) -> Callable[[Any], Any]:
    """What the transformation does to these kernels."""
    import jax

    from cdgrad.optax import directed

    return lambda tree: jax.tree.map(lambda kernel: directed(kernel, metric, axis=-1), tree)


def _seconds(setup: Setup, function: Callable[[Any], Any]) -> float:
    """The median time of one application among `_REPEATS` in a loop on the device."""
    import jax

    shapes = [(3, 3, 2, 4)] if setup.rehearsal else _KERNELS
    repeats, rounds = (2, 1) if setup.rehearsal else (_REPEATS, 7)
    keys = jax.random.split(jax.random.key(0), len(shapes))
    tree = {f"conv{i}": {"kernel": jax.random.normal(keys[i], shape)} for i, shape in enumerate(shapes)}

    def loop(tree: Any) -> Any:
        return jax.lax.fori_loop(0, repeats, lambda _, each: function(each), tree)

    program = jax.jit(loop).lower(tree).compile()
    jax.block_until_ready(program(tree))
    times: list[float] = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(program(tree))
        times.append((time.perf_counter() - start) / repeats)
    return median(times)
