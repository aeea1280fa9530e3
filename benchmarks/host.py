"""Measure the host's time of an attachment per step: python benchmarks/host.py [--rounds N]

53 gradients, the convolutions of ResNet-50, among its 161 parameters, on the Triton path with the launch
stubbed: what the optimizer's hooks and the parameters' hooks take, all checks included, and nothing of
what a GPU would do. Gradients keep their tensors (zero_grad(set_to_none=False)), are new tensors at the same
addresses (zero_grad(), where the allocator returns the same blocks, as on GPUs), return to the addresses of
three steps before, or lie where none lay before. A time is the lowest of several medians of N rounds, since
others may use the machine; that of hooks in backward passes, the difference of two medians, is the median of
several. Writes results/host.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import nn

from cdgrad.attachment import attach
from cdgrad.bench.shapes import resnet50
from cdgrad.machine import cpu_name
from cdgrad.ops.triton import launch

RECORD = Path(__file__).parent / "results/host.json"
METRICS = ("reweighted:lam=3", "sobolev:lam=0.01", "mean-sobolev:lam=0.1")
KEPT, REUSED = "same gradients", "new gradients at the same addresses"
RETURNING, NEW = "addresses of three steps before", "new addresses"
MEMORIES = (KEPT, REUSED, RETURNING, NEW)
PASSES = 15


class Stub:
    """A kernel that does nothing."""

    def __getitem__(self, grid: object) -> Callable[..., None]:
        """A launch of the grid."""
        return lambda *args, **kwargs: None


class OwnStep(torch.optim.SGD):
    """An optimizer that is not torch's own."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing."""


OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "torch.optim.SGD": torch.optim.SGD,
    "an optimizer of another library": OwnStep,
}


def model() -> nn.Module:
    """Parameters of ResNet-50's number and shapes, thin ones for speed: only their count matters."""
    layers: list[nn.Module] = []
    for layer in resnet50():
        # The height and width are kept, the channels cut: shapes cost nothing here, but memory does.
        layers += [nn.Conv2d(max(4, layer.into // 32), max(4, layer.out // 32), layer.kernel, bias=False)]
        layers += [nn.BatchNorm2d(max(4, layer.out // 32))]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def twin(grad: torch.Tensor) -> torch.Tensor:
    """Another tensor in the same memory, as the allocator returns it in the next step."""
    return torch.empty(0).set_(grad.untyped_storage(), 0, grad.shape, grad.stride())  # pyright: ignore


def step_seconds(kind: type[torch.optim.Optimizer], metric: str, rounds: int, memory: str) -> float:
    """Median time of the optimizer's hooks in a pass of so many rounds."""
    network = model()
    optimizer = kind(network.parameters(), lr=0.0)  # pyright: ignore[reportCallIssue]
    handle = attach(optimizer, network, metric, backend="triton")
    before = list(optimizer._optimizer_step_pre_hooks.values())  # pyright: ignore
    after = list(optimizer._optimizer_step_post_hooks.values())  # pyright: ignore
    params = [target.param for target in handle.selection.targets]
    count = {RETURNING: 3, NEW: 20}.get(memory, 1)  # addresses of 16 steps are remembered
    sets = [[torch.randn_like(param) for param in params] for _ in range(count)]
    times: list[float] = []
    for completed in range(rounds):
        for param, grad in zip(params, sets[completed % len(sets)], strict=True):
            param.grad = grad if memory == KEPT else twin(grad)
            for hook in (getattr(param, "_post_accumulate_grad_hooks", None) or {}).values():
                hook(param)  # as the backward pass does; `backward_seconds` measures it
        start = time.perf_counter()
        for hook in before:
            hook(optimizer, (optimizer,), {})
        for hook in after:
            hook(optimizer, (optimizer,), {})
        times.append(time.perf_counter() - start)
    handle.remove()
    return median(times[rounds // 10 :])


def backward_seconds(kind: type[torch.optim.Optimizer], rounds: int) -> float:
    """What hooks on parameters add to a backward pass, alternating with none; 0 where there are none."""
    network = model()
    convolutions = [param for param in network.parameters() if param.ndim == 4]
    views = [param.view_as(param) for param in convolutions]
    ones = [torch.ones_like(view) for view in views]

    def passes() -> list[float]:
        times: list[float] = []
        for _ in range(20):
            network.zero_grad()
            start = time.perf_counter()
            torch.autograd.backward(views, ones, retain_graph=True)
            times.append(time.perf_counter() - start)
        return times

    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds // 20):
        optimizer = kind(network.parameters(), lr=0.0)  # pyright: ignore[reportCallIssue]
        handle = attach(optimizer, network, METRICS[0], backend="triton")
        passes()
        optimizer.step()  # registers the hooks that this optimizer needs
        if not any(getattr(param, "_post_accumulate_grad_hooks", None) for param in convolutions):
            return 0.0
        times[1].extend(passes())
        handle.remove()
        times[0].extend(passes())
    return median(times[1]) - median(times[0])


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=RECORD)
    args = parser.parse_args()
    torch.set_num_threads(1)
    launch.named_kernel = lambda name: Stub()  # pyright: ignore
    cases = list(product(OPTIMIZERS, METRICS, MEMORIES))
    backward: dict[str, list[float]] = {name: [] for name in OPTIMIZERS}
    steps: dict[tuple[str, str, str], list[float]] = {case: [] for case in cases}
    for _ in range(PASSES):
        for name, kind in OPTIMIZERS.items():
            backward[name].append(backward_seconds(kind, args.rounds))
        for name, metric, memory in cases:
            steps[name, metric, memory].append(step_seconds(OPTIMIZERS[name], metric, args.rounds, memory))
    rows: list[dict[str, Any]] = []
    for name, metric, memory in cases:
        times = {"step_hooks": min(steps[name, metric, memory]), "backward_hooks": median(backward[name])}
        row = {"optimizer": name, "metric": metric, "memory": memory, **times, "total": sum(times.values())}
        print({k: round(1e6 * v, 1) if isinstance(v, float) else v for k, v in row.items()})
        rows.append(row)
    record = {
        "machine": {"cpu": cpu_name(), "torch": torch.__version__},
        "rounds": args.rounds,
        "passes": PASSES,
        "tensors": sum(layer.kernel > 0 for layer in resnet50()),
        "rows": rows,
    }
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
