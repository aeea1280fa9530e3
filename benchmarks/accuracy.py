"""Measure the float32 error of every backend that runs here: python benchmarks/accuracy.py

The error is the norm of the difference to the same operator on the same numbers in float64, relative
to the norm of the float64 result, at its worst over channel counts, lam and three kinds of columns.
Writes results/accuracy.json beside this file.
"""

import json
import platform
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch

from cdgrad import MeanSobolev, ReweightedL2, Sobolev, channel_directed_
from cdgrad.ops import eager
from cdgrad.ops.local import BACKENDS
from cdgrad.optax.operator import directed as optax_directed

JAX = "cdgrad.optax"  # not a backend: the operator of JAX users, on the same numbers
COUNTS = (60, 64, 1000, 1024, 8192, 16384)
LAMS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3)
FAMILIES = {
    "reweighted": ReweightedL2,
    "sobolev": Sobolev,
    "sobolev, periodic": lambda lam: Sobolev(lam, "periodic"),
    "mean-sobolev": MeanSobolev,
    "mean-sobolev, periodic": lambda lam: MeanSobolev(lam, "periodic"),
}


def columns(n):
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((n, 16)))
    return {"noise": noise, "noise of zero mean": noise - noise.mean(0), "noise + 100": noise + 100}


def worst(backend, family, kind):
    errors = []
    for n in COUNTS:
        x = columns(n)[kind].float()
        for lam in LAMS:
            y = directed(x, FAMILIES[family](lam), backend)
            exact = eager.directed(x.double()[None], FAMILIES[family](lam))[0]
            errors.append(((y - exact).norm() / exact.norm()).item())
    return max(errors)


def directed(x, metric, backend):
    if backend == JAX:
        return torch.from_numpy(np.array(optax_directed(jnp.array(x.numpy()), metric, axis=0)))
    y = x.clone()
    channel_directed_([y], metric, backend=backend)
    return y


def runs_here(backend):
    try:
        channel_directed_([torch.ones(2, 1)], "sobolev:lam=1", backend=backend)
    except ValueError as refusal:
        print(refusal)
        return False
    return True


def main():
    rows = [
        {"backend": backend, "metric": family, "columns": kind, "error": worst(backend, family, kind)}
        for backend in [*filter(runs_here, BACKENDS), JAX]
        for family in FAMILIES
        for kind in columns(1)
    ]
    record = {
        "what": "float32 against float64, relative error in norm, worst over channels and lam",
        "channels": COUNTS,
        "lam": LAMS,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "jax": jax.__version__,
        "rows": rows,
    }
    path = Path(__file__).parent / "results" / "accuracy.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    for row in rows:
        print(f"{row['backend']:8}  {row['metric']:24}  {row['columns']:20}  {row['error']:.1e}")


if __name__ == "__main__":
    main()
