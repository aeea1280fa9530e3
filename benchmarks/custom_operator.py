"""The operator in a compiled step as a `torch.library.custom_op`: python benchmarks/custom_operator.py

`attach` leaves a compiled graph for the operator, which is a precompiled call between two graphs. Here the
same call is made part of a graph, as an operator of torch that writes its arguments, and both are timed in
turns: 53 small gradients on the CPU, multiplied by numbers in the graph before and after. Writes
results/custom_operator.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from cdgrad import channel_directed_
from cdgrad.machine import cpu_name

RECORD = Path(__file__).parent / "results/custom_operator.json"
METRIC = "sobolev:lam=0.01"
GRADIENTS = 53


@torch.library.custom_op("cdgrad_benchmark::directed_", mutates_args=("grads",))
def directed_(grads: list[Tensor]) -> None:
    """The operator in place, as an operator of torch."""
    channel_directed_(grads, METRIC)


def within(grads: list[Tensor]) -> None:
    """A step whose graph contains the operator."""
    for grad in grads:
        grad.mul_(1.01)
    directed_(grads)
    for grad in grads:
        grad.mul_(0.99)


def between(grads: list[Tensor]) -> None:
    """A step of two graphs, with the operator between them."""
    for grad in grads:
        grad.mul_(1.01)
    channel_directed_(grads, METRIC)
    for grad in grads:
        grad.mul_(0.99)


def milliseconds(backend: str, rounds: int) -> dict[str, float]:
    """Median time of each way of a step."""
    grads = [torch.randn(16, 8, 3, 3) for _ in range(GRADIENTS)]
    steps: dict[str, Callable[[list[Tensor]], None]] = {}
    for name, step in (("between two graphs", between), ("custom operator", within)):
        steps[name] = torch.compile(step, backend=backend)
        for _ in range(3):
            steps[name](grads)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step(grads)
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: median(each) for name, each in times.items()}


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RECORD)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = {backend: milliseconds(backend, args.rounds) for backend in ("inductor", "aot_eager")}
    record = {"cpu": cpu_name(), "torch": torch.__version__, "gradients": GRADIENTS, "ms": rows}
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
