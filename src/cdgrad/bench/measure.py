"""The record of ``cdgrad bench``: what the operator costs on this machine, as data.

Every time is divided by a floor measured in the same rounds: `torch._foreach_mul_` on the same tensors,
which reads and writes each element once.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from importlib.metadata import version

import torch

from cdgrad.bench import jax_rows, steps
from cdgrad.bench.candidates import FLOOR, METRICS, composition, floor, operators, peers
from cdgrad.bench.records import Machine, Network, Record
from cdgrad.bench.shapes import NETWORKS
from cdgrad.bench.timing import FLUSHED_BYTES, extra_bytes, interleaved
from cdgrad.machine import cpu_name
from cdgrad.ops import select_backend


def record(args: argparse.Namespace) -> Record:
    """Measure what the options of ``cdgrad bench`` ask for; progress goes to standard error."""
    measured: Record = {"machine": machine(), "networks": {}, "steps": [], "jax": []}
    for name in args.networks:
        print(f"measuring {name}", file=sys.stderr, flush=True)
        measured["networks"][name] = measure(name, args.rounds, with_peers=name in args.peers)
    if not args.no_steps:
        print("measuring training steps", file=sys.stderr, flush=True)
        measured["steps"] = steps.measure(args.rounds, seconds=60)
    if not args.no_jax:
        print("measuring in JAX", file=sys.stderr, flush=True)
        measured["jax"] = jax_rows.measure(args.rounds)
    return measured


def machine() -> Machine:
    """Where and with what this runs."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "numba": version("numba"),
        "numpy": version("numpy"),
        "cold": f"after {FLUSHED_BYTES >> 20} MiB of other writes",
    }


def measure(network: str, rounds: int, *, with_peers: bool) -> Network:
    """Times, ratios to the floor and extra memory of every candidate on one network's gradients."""
    torch.manual_seed(0)
    layers = NETWORKS[network]()
    grads = [layer.gradient() for layer in layers]
    groups = [layer.groups for layer in layers]
    backends = list(dict.fromkeys(("eager", select_backend(grads[0], METRICS[0])[0])))
    candidates = floor(grads) | operators(grads, groups, backends) | composition(grads)
    if with_peers:
        candidates |= peers(grads)
    size = sum(grad.nbytes for grad in grads)
    original = [grad.clone() for grad in grads]

    def restore() -> None:
        # Directed a hundred times, a gradient would be subnormal, and slow for that reason alone.
        for grad, values in zip(grads, original, strict=True):
            grad.copy_(values)

    cold, warm = (interleaved(candidates, restore, cold=cold, rounds=rounds) for cold in (True, False))
    memory = {name: extra_bytes(run) for name, run in candidates.items()}
    chosen = {str(m): select_backend(grads[0], m)[0] for m in METRICS}
    return {
        "tensors": len(grads),
        "bytes": size,
        "chosen": chosen,
        "rows": [
            {
                "name": name,
                "cold": cold[name],
                "warm": warm[name],
                "cold_over_floor": cold[name] / cold[FLOOR],
                "warm_over_floor": warm[name] / warm[FLOOR],
                # Each element in and out once, as the operator needs; peers may move more.
                "bytes_per_second": 2 * size / cold[name],
                "extra_bytes": memory[name],
            }
            for name in candidates
        ],
    }
