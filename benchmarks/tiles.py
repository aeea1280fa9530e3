"""Times tiles of the GPU kernels beside each other: `cdgrad.ops.triton.tables.TILES` is chosen by it.

    python benchmarks/tiles.py --out FILE.json [--rehearse]

Of every tile, metric and case: milliseconds on the device, cold, the ratio to an in-place multiplication of
the same tensors in the same rounds, and the error relative in norm. Eight processes compile first. The cases
are networks, and a layer whose columns take several tiles of every form.
"""

# torch types its random numbers in part.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

from cdgrad.bench.gpu import processes

METRICS = ("reweighted:lam=3", "mean-sobolev:lam=0.1", "sobolev:lam=0.01")
# Rows of a segment, segments, columns, warps, and columns that a thread loads at once. A thread holds 32
# elements of each; they differ in the longest column that is read once, and in what a thread loads.
TILES = ((16, 32, 16, 8, 2), (16, 16, 32, 8, 2), (8, 32, 32, 8, 4), (16, 32, 8, 4, 2))
CASES = (
    ("resnet50", "float32"),
    ("resnet50", "bfloat16"),
    ("resnet18-imagenet", "float32"),
    ("densenet121", "float32"),
    ("wide-16384", "float32"),
)
SECONDS = 2.0  # for the rounds of a case


def gradients(setup: Any, case: str, dtype: str) -> list[Any]:
    """Noise in the shapes of a network's weights."""
    import torch

    from cdgrad.bench.gpu import operator
    from cdgrad.bench.shapes import NETWORKS

    layers = setup.layers(NETWORKS[case]())
    return operator.gradients(setup, layers, getattr(torch, dtype), torch.contiguous_format)


def plan(grads: list[Any], metric: str, tile: tuple[int, ...], *, rehearsal: bool) -> Any:
    """The operator with one tile for all dtypes."""
    from cdgrad import parse_metric
    from cdgrad.ops.triton.launch import Plan
    from cdgrad.ops.triton.tables import Tile

    shape = Tile(4, 4, 8, 1) if rehearsal else Tile(*tile)
    return Plan([(grad, 0, 1) for grad in grads], parse_metric(metric), dict.fromkeys((2, 4, 8), shape))


def compiled(rehearsal: bool, case: str, dtype: str, metric: str, tile: tuple[int, ...]) -> None:
    """Call it once in a process of its own: the compiled kernel stays on disk."""
    from cdgrad.bench.gpu.setup import worker_setup

    setup = worker_setup(rehearsal)
    grads = gradients(setup, case, dtype)
    plan(grads, metric, tile, rehearsal=rehearsal).run(grads)
    setup.synchronize()


def timed(setup: Any, case: str, dtype: str) -> list[dict[str, Any]]:
    """All tiles and metrics on a case, in turns; no two in turn have the same kernel."""
    from cdgrad import parse_metric
    from cdgrad._torch_private import foreach_mul_
    from cdgrad.bench.candidates import FLOOR
    from cdgrad.bench.gpu.setup import relative_error
    from cdgrad.ops import eager
    from cdgrad.ops.local import as_channels

    grads = gradients(setup, case, dtype)
    candidates: dict[Any, Any] = {FLOOR: partial(foreach_mul_, grads, 1.0)}
    errors: dict[Any, float] = {}
    for tile in TILES:
        for metric in METRICS:
            these, before = gradients(setup, case, dtype), gradients(setup, case, dtype)
            operator = plan(these, metric, tile, rehearsal=setup.rehearsal)
            operator.run(these)
            exact = [eager.directed(as_channels(g.double(), 0, 1), parse_metric(metric)) for g in before]
            pairs = zip(these, exact, strict=True)
            errors[metric, tile] = max(relative_error(as_channels(g.double(), 0, 1), e) for g, e in pairs)
            candidates[metric, tile] = partial(operator.run, grads)
    setup.deadline = time.perf_counter() + SECONDS
    times = setup.interleaved(candidates)
    return [
        {"case": case, "dtype": dtype, "metric": metric, "tile": tile, "ms": times[metric, tile]}
        | {"over_floor": times[metric, tile] / times[FLOOR], "error": error}
        for (metric, tile), error in errors.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with TRITON_INTERPRET=1")
    arguments = parser.parse_args()
    processes.start_server()  # before PyTorch is imported

    from cdgrad.bench.gpu.record import machine
    from cdgrad.bench.gpu.setup import worker_setup

    cases, metrics = (CASES[:1], METRICS[:1]) if arguments.rehearse else (CASES, METRICS)
    waiting = [(*case, metric, tile) for case in cases for tile in TILES for metric in metrics]
    workers: list[processes.Worker] = []
    while waiting or workers:
        while waiting and len(workers) < 8:
            workers.append(processes.Worker(compiled, arguments.rehearse, *waiting.pop(0)))
        for worker in [each for each in workers if not each.runs]:
            worker.result()
            worker.end()
            workers.remove(worker)
        time.sleep(0.02)
    processes.end_all()
    setup = worker_setup(arguments.rehearse)
    rows: list[dict[str, Any]] = []
    for case, dtype in cases:
        rows += timed(setup, case, dtype)
        content = {"machine": machine(setup), "rows": rows}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")
        print(f"{case} {dtype}: {len(rows)} rows", flush=True)


if __name__ == "__main__":
    main()
