"""What the operator costs in JAX, relative to multiplying the same gradients by a number.

Run as a script it prints the rows; `rows` is what other benchmarks call.
"""

import json
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cdgrad.optax import channel_directed

# Kernels (h, w, I, O) of the four stages of a residual network.
SHAPES = {f"{channels} channels": (3, 3, channels, channels) for channels in (64, 128, 256, 512)}
METRICS = (
    "reweighted:lam=3",
    "sobolev:lam=0.01",
    "sobolev:lam=0.01,boundary=periodic",
    "mean-sobolev:lam=0.05",
)


def rows(shapes=SHAPES, metrics=METRICS, repeats=20):
    """One dict a metric and gradient: seconds for it and for the floor, their ratio, and compilation."""
    found = []
    for name, shape in shapes.items():
        gradients = {
            "conv": {"kernel": jnp.asarray(np.random.default_rng(0).standard_normal(shape), "float32")}
        }
        multiply, _ = compiled(lambda tree: jax.tree.map(lambda g: g * 0.5, tree), gradients)
        for metric in metrics:
            tx = channel_directed(metric)
            directed, compile_seconds = compiled(
                lambda tree, tx=tx: tx.update(tree, optax.EmptyState())[0], gradients
            )
            # Alternating, so that a busy machine slows both.
            times = [(seconds(multiply, gradients), seconds(directed, gradients)) for _ in range(repeats)]
            floor, cost = map(min, zip(*times, strict=True))
            found.append(
                {
                    "backend": "jax",
                    "device": jax.devices()[0].device_kind,
                    "gradient": name,
                    "metric": metric,
                    "seconds": cost,
                    "multiply_seconds": floor,
                    "ratio": cost / floor,
                    "compile_seconds": compile_seconds,
                }
            )
    return found


def compiled(function, gradients):
    start = time.perf_counter()
    program = jax.jit(function).lower(gradients).compile()
    taken = time.perf_counter() - start
    return partial(call, program), taken


def call(program, gradients):
    jax.block_until_ready(program(gradients))


def seconds(run, gradients):
    start = time.perf_counter()
    run(gradients)
    return time.perf_counter() - start


if __name__ == "__main__":
    print(json.dumps({"jax": jax.__version__, "rows": rows()}, indent=1))
