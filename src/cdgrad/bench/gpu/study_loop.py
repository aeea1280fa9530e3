"""Images a second of the study's training loop, beside loops written by hand on the same network and data."""

# torch types its random numbers and compiler in part.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
import torch

from cdgrad.bench.gpu import mps
from cdgrad.bench.gpu.operator import Items
from cdgrad.bench.gpu.processes import Worker
from cdgrad.bench.gpu.setup import Setup, UnavailableError, captured, worker_setup
from cdgrad.bench.gpu.training import Training
from cdgrad.study.data import builtin
from cdgrad.study.data.cache import Arrays, Decoded, Description
from cdgrad.study.spec import LoopSetting, Model, Optimizer, Schedule, Task
from cdgrad.study.train import train

SOURCE = "noise of the benchmark"
_METRIC = "sobolev:lam=0.01"
MPS = "with MPS"


def items(setup: Setup) -> Items:
    """By network and batch, images a second of each loop, and the seconds that a run takes to start."""
    cases = {} if setup.rehearsal else {"resnet18": 128}
    cases |= {"resnet20": 512}
    loops: Items = {}
    for network, batch in cases.items():
        loops[f"{network}, batch {batch}, by hand"] = partial(_by_hand, setup, network, batch)
        for metric in ("none", _METRIC):
            loops[f"{network}, batch {batch}, study, {metric}"] = partial(
                _study, setup, network, batch, metric
            )
    return loops


def _by_hand(setup: Setup, network: str, batch: int) -> dict[str, float]:
    """Gather, normalize, forward, backward, SGD: one step after the other, and as one CUDA graph."""
    training = Training(setup, network, batch)
    count, side = training.batch * (2 if setup.rehearsal else 64), training.images.shape[-1]
    pixels = torch.randint(256, (count, 3, side, side), dtype=torch.uint8, device=setup.device)
    labels = torch.randint(10, (count,), device=setup.device)
    rows = torch.zeros(training.batch, dtype=torch.int64, device=setup.device)

    def step() -> None:
        images = pixels.index_select(0, rows).to(torch.float32).sub_(128.0).div_(74.0)
        training.images.copy_(images)
        training.labels.copy_(labels.index_select(0, rows))
        training.step()

    rates: dict[str, float] = {}
    for name, call in {"one by one": step, "graph": captured(setup, step)}.items():
        times: list[float] = []
        for _ in range(2):  # the first epoch warms up
            setup.synchronize()
            start = time.perf_counter()
            order = torch.randperm(count, device=setup.device)
            for first in range(0, count, training.batch):
                rows.copy_(order[first : first + training.batch])
                call()
            setup.synchronize()
            times.append(time.perf_counter() - start)
        rates[f"{name}, images a second"] = count / times[-1]
    return rates


def _study(setup: Setup, network: str, batch: int, metric: str) -> dict[str, Any]:
    count, ends = _ends_of_epochs(setup, network, batch, metric, batches=128, epochs=4)
    epoch = min(after - before for before, after in pairwise(ends[2:]))  # replays alone
    return {"images a second": count / epoch, "seconds of the start": ends[1] - ends[0] - epoch}


def _ends_of_epochs(
    setup: Setup, network: str, batch: int, metric: str, *, batches: int, epochs: int
) -> tuple[int, list[float]]:
    """Images of an epoch, and the clock at the beginning and after each epoch of a study's run."""
    batch = 4 if setup.rehearsal else batch
    count, side = batch * (2 if setup.rehearsal else batches), 8 if setup.rehearsal else 32
    setting = LoopSetting(
        task=Task(SOURCE, train=count, validation=batch, test=batch),
        model=Model("resnet8" if setup.rehearsal else network),
        schedule=Schedule(epochs=epochs, batch=batch, precision="bfloat16", channels_last=True),
        optimizer=Optimizer("torch.optim:SGD", 1e-3, {"momentum": 0.9, "nesterov": True}),
        metric=metric,
        evaluate="validation",
    )
    ends: list[float] = []

    def end_of_epoch(number: int, measured: dict[str, float]) -> None:
        ends.append(time.time())

    with noise(count + 2 * batch, side):
        ends.append(time.time())
        train(setting, 0, end_of_epoch, device=str(setup.device))
    return count, ends


def workers(setup: Setup) -> Items:
    """By how many processes train at the same time, the sum of their images a second."""
    start(setup)
    started: list[Worker] = setup.waiting.pop("workers")
    several: Items = {
        "1": partial(_together, setup, started[:1], again=True),
        str(len(started)): partial(_together, setup, started),
    }
    if setup.device.type == "cuda":
        several[f"{len(started)}, {MPS}"] = partial(_with_service, setup)
    return several


def _number(setup: Setup) -> int:
    return 2 if setup.rehearsal else 4


def start(setup: Setup) -> None:
    """Begin the processes, which initialize the device, and then wait for `workers`."""
    started = setup.waiting.setdefault("workers", [])
    while len(started) < _number(setup):
        started.append(Worker(_one, setup.rehearsal, {}, waits=True))


def _with_service(setup: Setup) -> dict[str, float]:
    with mps.service() as environment:
        started = [Worker(_one, setup.rehearsal, environment, waits=True) for _ in range(_number(setup))]
        try:
            return _together(setup, started)
        finally:
            for process in started:
                process.end()


def _one(rehearsal: bool, environment: dict[str, str], wait: Callable[[], object]) -> tuple[int, list[float]]:
    """What each of the processes does."""
    os.environ.update(environment)
    setup = worker_setup(rehearsal)
    Training(setup, "resnet20", 512).step()  # loads the libraries of the device
    setup.synchronize()
    wait()
    return _ends_of_epochs(setup, "resnet20", 512, "none", batches=64, epochs=5)


def _together(setup: Setup, started: list[Worker], *, again: bool = False) -> dict[str, float]:
    for process in started:
        process.go()
    while any(process.runs for process in started):
        if setup.over:
            raise UnavailableError("not trained in time")
        time.sleep(0.05)
    runs = [process.result() for process in started]
    for process in started if again else ():
        process.ask(setup.rehearsal, {})
    # Of each the epochs during which all the others trained, too.
    begin, end = max(ends[2] for _, ends in runs), min(ends[-1] for _, ends in runs)
    sums = 0.0
    for count, ends in runs:
        shared = [b - a for a, b in pairwise(ends[2:]) if begin <= a and b <= end]
        sums += count / (median(shared) if shared else (ends[-1] - ends[2]) / (len(ends) - 3))
    return {"images a second": sums}


@contextmanager
def noise(count: int, side: int) -> Generator[None]:
    """A data set of random images for a while."""
    pixels = np.random.default_rng(0).integers(256, size=(count, 3, side, side), dtype=np.uint8)
    arrays = Arrays(torch.from_numpy(pixels), torch.arange(count) % 10)
    builtin.SOURCES[SOURCE] = lambda: Decoded(arrays, None, Description({"train": "train"}, 10))  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        del builtin.SOURCES[SOURCE]
