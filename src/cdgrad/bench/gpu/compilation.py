"""What is compiled at first use: in processes side by side, before the other sections need it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from cdgrad.bench.candidates import METRICS
from cdgrad.bench.gpu import jax_rows, study_loop
from cdgrad.bench.gpu.operator import DTYPES, floor_cases, gradients, parity_gradients
from cdgrad.bench.gpu.processes import Worker
from cdgrad.bench.gpu.setup import Setup, UnavailableError, worker_setup
from cdgrad.bench.gpu.training import STEP, Training, graph_layers
from cdgrad.bench.shapes import Conv
from cdgrad.metrics import MeanSobolev, Metric, ReweightedL2, Sobolev
from cdgrad.ops import channel_directed_
from cdgrad.ops.memory_layout import columns_of
from cdgrad.ops.triton import tables
from cdgrad.study.models.resnet import CifarResNet

# By name, the one whose kernels take longest to compile first.
_FAMILIES: dict[str, Metric] = {
    kind.family: next(metric for metric in METRICS if isinstance(metric, kind))
    for kind in (Sobolev, MeanSobolev, ReweightedL2)
}
_FIRST = ("resnet50 float32", "resnet50 bfloat16")  # their numbers are targets
_PARITY = "parity "
_BEFORE_END = 1.0  # seconds in which every case is recorded before the section's time is over
_Case = tuple[list[Conv], torch.dtype, torch.memory_format]


def items(setup: Setup) -> dict[str, Callable[[], Any]]:
    """By case, the seconds of the first call with each family of metrics, or of a compiled training step.

    Other sections' processes are started here, too, where nothing is timed on the device; they wait.
    """
    names = [STEP, *_FIRST, *(_PARITY + name for name in (*DTYPES, "float64"))]
    names += [name for name in _distinct(setup) if name not in names]
    if setup.rehearsal:
        names = [STEP, _FIRST[0]]
    # The server imports the compiler, too, and is not ready before.
    import_module("torch._dynamo")
    pool = _Pool(setup, names)
    setup.collect = pool.collect
    for start in (jax_rows.start, study_loop.start):
        with suppress(Exception):  # their sections start them again, and record why that fails
            start(setup)
    setup.synchronize()  # initializes CUDA in this process, too
    # The step, which takes longest, is awaited last: the others are recorded meanwhile.
    return {name: partial(pool.row, name) for name in (*names[1:], STEP)}


def _cases(setup: Setup) -> Iterator[tuple[str, _Case]]:
    """The gradients of the sections, those first that matter most."""
    for name, layers, dtype, layout in floor_cases(setup):
        yield name, (layers, dtype, layout)
    contiguous = torch.contiguous_format
    yield "resnet20 float32", (_convolutions(CifarResNet((3, 32, 32), 10)), torch.float32, contiguous)
    yield "graph float32", (graph_layers(setup), torch.float32, contiguous)


def _distinct(setup: Setup) -> list[str]:
    """A case for each compiled kernel: several networks may need the same."""
    found: dict[tuple[torch.dtype, *tuple[int, ...]], str] = {}
    for name, (layers, dtype, _) in _cases(setup):
        forms = [(layer, torch.empty(layer.shape, device="meta").stride()) for layer in layers]
        columns = [columns_of(layer.shape, strides, 0, layer.groups) for layer, strides in forms]
        aligned = [(each, True) for each in columns if each]
        tiles = [tables.TILES[type(metric)][dtype.itemsize] for metric in _FAMILIES.values()]
        used = [tables.records(aligned, sobolev=False, tile=tile).used for tile in tiles]
        found.setdefault((dtype, *used), name)
    return list(found.values())


def _convolutions(model: nn.Module) -> list[Conv]:
    return [Conv(m.out_channels, m.in_channels, m.kernel_size[0], m.groups) for m in model.modules()
            if isinstance(m, nn.Conv2d)]  # fmt: skip


class _Pool:
    """A worker for each case and family, as many at once as half the cores: two threads share a core."""

    def __init__(self, setup: Setup, names: list[str]) -> None:
        self._setup, self._until = setup, setup.deadline - _BEFORE_END
        self._tasks = {name: [STEP] if name == STEP else list(_FAMILIES) for name in names}
        self._waiting = [(name, task) for name, tasks in self._tasks.items() for task in tasks]
        self._most = max(1, (os.cpu_count() or 2) // 2)
        self._workers: dict[tuple[str, str], Worker] = {}
        self._idle: list[Worker] = []
        self._seconds: dict[str, dict[str, float]] = {name: {} for name in names}
        self._failures: dict[str, dict[str, str]] = {name: {} for name in names}
        self._fill()

    def _fill(self) -> None:
        while self._waiting and len(self._workers) < self._most:
            task = self._waiting.pop(0)
            arguments = (self._setup.rehearsal, *task)
            try:
                if self._idle:
                    self._workers[task] = self._idle.pop()
                    self._workers[task].ask(*arguments)
                else:
                    self._workers[task] = Worker(compile_task, *arguments)
            except RuntimeError as error:
                self._failures[task[0]][task[1]] = str(error)

    def collect(self) -> dict[str, dict[str, float]]:
        """Take the results that are there, in any order; returns all seconds so far, by case."""
        for (name, task), worker in [*self._workers.items()]:
            if worker.runs:
                continue
            del self._workers[name, task]
            try:
                self._seconds[name]["seconds" if task == STEP else task] = worker.result()
            except RuntimeError as error:
                self._failures[name][task] = str(error)
                continue
            if task == STEP:  # it has processes of its own, which would stay
                worker.end()
            else:
                self._idle.append(worker)
            if len(self._seconds[name]) == len(self._tasks[name]):
                self._setup.compiled.add(name)
        return self._seconds

    def row(self, name: str) -> dict[str, float]:
        """The seconds of a case's families once all are there, or of those that are when the time is over.

        Results that come later are added to the same dictionary.

        Raises:
            RuntimeError: a family failed.
            UnavailableError: none is there in time.
        """
        seconds, failures = self._seconds[name], self._failures[name]
        while len(seconds) + len(failures) < len(self._tasks[name]):
            if not self._setup.rehearsal and time.perf_counter() > self._until:
                break
            self._fill()
            time.sleep(0.02)
            self.collect()
        if failures:
            raise RuntimeError(
                "; ".join(f"{task}: {why}" for task, why in failures.items()) + f" ({seconds})"
            )
        if not seconds:
            raise UnavailableError("not compiled in time")
        return seconds


def compile_task(rehearsal: bool, name: str, family: str) -> float:
    """Seconds of directing the gradients of a case for the first time, or of making a compiled step."""
    setup = worker_setup(rehearsal)
    if name == STEP:
        training = Training(setup, "resnet18", 128)
        call = training.step
        training.compile()
    else:
        call = partial(_direct, *_gradients(setup, name), _FAMILIES[family])
    setup.synchronize()
    start = time.perf_counter()
    call()
    setup.synchronize()
    return round(time.perf_counter() - start, 2)


def _direct(grads: list[Tensor], dims: list[int], groups: list[int], metric: Metric) -> None:
    channel_directed_(grads, metric, dims, groups, backend="triton")


def _gradients(setup: Setup, name: str) -> tuple[list[Tensor], list[int], list[int]]:
    """Gradients of a case, their channel axes and groups."""
    if name.startswith(_PARITY):
        dtype = getattr(torch, name.removeprefix(_PARITY))
        grads, dims = (list(each) for each in zip(*parity_gradients(setup, dtype), strict=True))
        return grads, dims, [1] * len(grads)
    layers, dtype, layout = dict(_cases(setup))[name]
    groups = [layer.groups for layer in layers]
    return gradients(setup, layers, dtype, layout), [0] * len(layers), groups
