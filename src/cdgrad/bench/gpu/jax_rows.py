"""`cdgrad.optax` under `jit` on JAX's GPU, over multiplying the same gradients by a number."""

from __future__ import annotations

import time
from functools import partial
from importlib.util import find_spec
from typing import Any

from cdgrad.bench.candidates import METRICS
from cdgrad.bench.gpu import jax_process
from cdgrad.bench.gpu.operator import Items
from cdgrad.bench.gpu.processes import Process
from cdgrad.bench.gpu.setup import Setup, UnavailableError, alternating


def items(setup: Setup) -> Items:
    """By metric, microseconds and the ratio to the floor, from another process."""
    if not find_spec("jax"):
        raise UnavailableError("JAX is not installed")
    if "jax" not in setup.waiting:
        start(setup)
    (process,) = setup.waiting.pop("jax")
    process.go()
    backend = _printed(setup, process, "backend")["backend"]
    if not setup.rehearsal and backend != "gpu":
        raise UnavailableError(f"JAX finds no GPU: its backend is {backend}")
    return {name: partial(_row, setup, process, name) for name in (jax_process.FLOOR, *_metrics())}


def start(setup: Setup) -> None:
    """Begin the process, which imports JAX and compiles its programs, and then waits for `items`."""
    if find_spec("jax"):
        rehearse = ["--rehearse"] if setup.rehearsal else []
        setup.waiting["jax"] = [Process(jax_process.__name__, *_metrics(), *rehearse, waits=True)]


def _metrics() -> list[str]:
    return [str(metric) for metric in alternating(METRICS)]


def _row(setup: Setup, process: Process, name: str) -> dict[str, float]:
    return _printed(setup, process, name)["rows"][name]


def _printed(setup: Setup, process: Process, name: str) -> dict[str, Any]:
    """What the process printed last, once that has the name, or a row of that name."""
    while True:
        runs = process.runs  # asked first: it may print and end in between
        printed = process.printed()
        if printed and (name in printed or name in printed["rows"]):
            return printed
        if not runs:
            process.result()
            raise RuntimeError(f"the process ended without {name}")
        if setup.over:
            raise UnavailableError("not measured in time")
        time.sleep(0.05)
