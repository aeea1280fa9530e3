"""What is compiled at first use: in processes side by side, before the other sections need it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from cdgrad.bench.candidates import METRICS
from cdgrad.bench.gpu.operator import DTYPES, floor_cases, gradients, parity_gradients
from cdgrad.bench.gpu.processes import Process
from cdgrad.bench.gpu.setup import Setup, UnavailableError, small_tiles
from cdgrad.bench.gpu.training import STEP, Training, graph_layers
from cdgrad.bench.shapes import Conv
from cdgrad.metrics import Metric
from cdgrad.ops import channel_directed_
from cdgrad.ops.memory_layout import columns_of
from cdgrad.ops.triton import tables
from cdgrad.study.models.resnet import CifarResNet

_FAMILIES: tuple[Metric, ...] = tuple({type(metric): metric for metric in reversed(METRICS)}.values())
_Case = tuple[list[Conv], torch.dtype, torch.memory_format]


def items(setup: Setup) -> dict[str, Callable[[], Any]]:
    """By case, the seconds of the first call with each family of metrics, or of a compiled training step."""
    names = [STEP, *_distinct(setup), "parity float64", *(f"parity {name}" for name in DTYPES)]
    if setup.rehearsal:
        names = [STEP, "resnet50 float32"]
    pool = _Pool(setup, names)
    return {name: partial(pool.result, name) for name in names}


def _cases(setup: Setup) -> Iterator[tuple[str, _Case]]:
    """The gradients of the sections, those first that matter most."""
    for name, layers, dtype, layout in floor_cases(setup):
        yield name, (layers, dtype, layout)
    contiguous = torch.contiguous_format
    yield "resnet20 float32", (_convolutions(CifarResNet((3, 32, 32), 10)), torch.float32, contiguous)
    yield "graph float32", (graph_layers(setup), torch.float32, contiguous)


def _distinct(setup: Setup) -> list[str]:
    """A case for each compiled kernel: several networks may need the same."""
    found: dict[tuple[torch.dtype, int], str] = {}
    for name, (layers, dtype, _) in _cases(setup):
        forms = [(layer, torch.empty(layer.shape, device="meta").stride()) for layer in layers]
        columns = [columns_of(layer.shape, strides, 0, layer.groups) for layer, strides in forms]
        tile = tables.TILES[dtype.itemsize]
        aligned = [(each, True) for each in columns if each]
        found.setdefault((dtype, tables.records(aligned, False, dtype.itemsize, tile).used), name)
    return list(found.values())


def _convolutions(model: nn.Module) -> list[Conv]:
    return [Conv(m.out_channels, m.in_channels, m.kernel_size[0], m.groups) for m in model.modules()
            if isinstance(m, nn.Conv2d)]  # fmt: skip


class _Pool:
    """A process for each case, as many at once as there are cores but two."""

    def __init__(self, setup: Setup, names: list[str]) -> None:
        self._setup, self._waiting = setup, list(names)
        self._most = max(1, (os.cpu_count() or 2) - 2)
        self._begun: dict[str, Process] = {}
        self._fill()

    def _fill(self) -> None:
        busy = sum(process.runs for process in self._begun.values())
        for name in self._waiting[: max(0, self._most - busy)]:
            rehearse = ["--rehearse"] if self._setup.rehearsal else []
            self._begun[name] = Process(__name__, name, *rehearse)
            self._waiting.remove(name)

    def result(self, name: str) -> Any:
        """Wait for a case while starting others; those that exceed the section's time are not awaited."""
        while name not in self._begun or self._begun[name].runs:
            if self._setup.over:
                raise UnavailableError("not compiled in time")
            self._fill()
            time.sleep(0.05)
        seconds = self._begun[name].result()
        self._setup.compiled.add(name)
        return seconds


def compile_case(setup: Setup, name: str) -> dict[str, float]:
    """Direct the gradients of a case once with each family, or make a compiled step; returns the seconds."""
    if name == STEP:
        start = time.perf_counter()
        training = Training(setup, "resnet18", 128)
        training.compile()
        training.step()
        setup.synchronize()
        return {"seconds": round(time.perf_counter() - start, 2)}
    if name.startswith("parity "):
        dtype = getattr(torch, name.removeprefix("parity "))
        grads, dims = (list(each) for each in zip(*parity_gradients(setup, dtype), strict=True))
        groups = [1] * len(grads)
    else:
        layers, dtype, layout = dict(_cases(setup))[name]
        grads = gradients(setup, layers, dtype, layout)
        dims, groups = [0] * len(layers), [layer.groups for layer in layers]
    seconds: dict[str, float] = {}
    for metric in _FAMILIES:
        setup.synchronize()
        start = time.perf_counter()
        channel_directed_(grads, metric, dims, groups, backend="triton")
        setup.synchronize()
        seconds[metric.family] = round(time.perf_counter() - start, 2)
    return seconds


if __name__ == "__main__":
    _rehearsal = "--rehearse" in sys.argv
    if _rehearsal:
        small_tiles()
    _device = torch.device("cpu" if _rehearsal else "cuda")
    print(json.dumps(compile_case(Setup(_device, _rehearsal), sys.argv[1])))
