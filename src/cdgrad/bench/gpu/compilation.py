"""Triton's compilation at first use: in processes of their own, so that the other sections need not wait."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from cdgrad.bench.candidates import METRICS
from cdgrad.bench.gpu.operator import DTYPES, floor_cases, gradients, parity_gradients
from cdgrad.bench.gpu.setup import Setup
from cdgrad.metrics import Metric
from cdgrad.ops import channel_directed_

_FAMILIES: tuple[Metric, ...] = tuple({type(metric): metric for metric in reversed(METRICS)}.values())


def items(setup: Setup) -> dict[str, Callable[[], Any]]:
    """By network and dtype, the seconds of the first call with each family of metrics, run side by side."""
    names = ["parity float64", *(case[0] for case in floor_cases(setup)), *(f"parity {d}" for d in DTYPES)]
    if setup.rehearsal:
        return {name: partial(compile_case, setup, name) for name in names[:2]}
    pool = _Pool(setup, names)
    return {name: partial(pool.result, name) for name in names}


class _Pool:
    """A process for each case, as many at once as there are cores but one."""

    def __init__(self, setup: Setup, names: list[str]) -> None:
        self._setup, self._waiting = setup, list(names)
        self._most = max(1, (os.cpu_count() or 2) - 1)
        self._begun: dict[str, subprocess.Popen[str]] = {}
        self._fill()

    def _fill(self) -> None:
        busy = sum(process.poll() is None for process in self._begun.values())
        for name in self._waiting[: self._most - busy]:
            command = [sys.executable, "-m", "cdgrad.bench.gpu.compilation", name]
            self._begun[name] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        del self._waiting[: self._most - busy]

    def result(self, name: str) -> Any:
        """Wait for a case while starting others; cases that exceed the section's time are killed."""
        while name not in self._begun or self._begun[name].poll() is None:
            if self._setup.over:
                self._waiting.clear()
                for process in self._begun.values():
                    process.kill()
                raise TimeoutError("not compiled in time")
            self._fill()
            time.sleep(0.05)
        process = self._begun[name]
        out, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"the process ended with status {process.returncode}")
        return json.loads(out)


def compile_case(setup: Setup, name: str) -> dict[str, float]:
    """Direct the gradients of one case once with each family; returns the seconds."""
    if name.startswith("parity "):
        dtype = getattr(torch, name.removeprefix("parity "))
        grads, dims = (list(each) for each in zip(*parity_gradients(setup, dtype), strict=True))
        groups = [1] * len(grads)
    else:
        cases = {title: (layers, dtype, layout) for title, layers, dtype, layout in floor_cases(setup)}
        layers, dtype, layout = cases[name]
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
    print(json.dumps(compile_case(Setup(torch.device("cuda")), sys.argv[1])))
