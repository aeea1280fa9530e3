"""Images a second of the study's training loop, beside loops written by hand on the same network and data."""

# torch types its random numbers and compiler in part.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from cdgrad.bench.gpu.operator import Items
from cdgrad.bench.gpu.setup import Setup, captured
from cdgrad.bench.gpu.training import Training
from cdgrad.study.data import builtin
from cdgrad.study.data.cache import Arrays, Decoded, Description
from cdgrad.study.spec import LoopSetting, Model, Optimizer, Schedule, Task
from cdgrad.study.train import train

_SOURCE = "noise of the benchmark"
_METRIC = "sobolev:lam=0.01"


def items(setup: Setup) -> Items:
    """By network and batch, images a second of each loop, and seconds until the first epoch is over."""
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
        call()
        setup.synchronize()
        start = time.perf_counter()
        order = torch.randperm(count, device=setup.device)
        for first in range(0, count, training.batch):
            rows.copy_(order[first : first + training.batch])
            call()
        setup.synchronize()
        rates[f"{name}, images a second"] = count / (time.perf_counter() - start)
    return rates


def _study(setup: Setup, network: str, batch: int, metric: str) -> dict[str, Any]:
    batch = 4 if setup.rehearsal else batch
    count, epochs = batch * (2 if setup.rehearsal else 128), 3
    side = 8 if setup.rehearsal else 32
    setting = LoopSetting(
        task=Task(_SOURCE, train=count, validation=batch, test=batch),
        model=Model("resnet8" if setup.rehearsal else network),
        schedule=Schedule(epochs=epochs, batch=batch, precision="bfloat16", channels_last=True),
        optimizer=Optimizer("torch.optim:SGD", 1e-3, {"momentum": 0.9, "nesterov": True}),
        metric=metric,
        evaluate="validation",
    )
    ends = [time.perf_counter()]

    def end_of_epoch(number: int, measured: dict[str, float]) -> None:
        ends.append(time.perf_counter())

    with _noise(count + 2 * batch, side):
        train(setting, 0, end_of_epoch, device=str(setup.device))
    return {"images a second": count / (ends[-1] - ends[-2]), "seconds of the first epoch": ends[1] - ends[0]}


@contextmanager
def _noise(count: int, side: int) -> Generator[None]:
    """A data set of random images for a while."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    arrays = Arrays(pixels, torch.arange(count) % 10)
    builtin.SOURCES[_SOURCE] = lambda: Decoded(arrays, None, Description({"train": "train"}, 10))  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        del builtin.SOURCES[_SOURCE]
