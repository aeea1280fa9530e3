"""Whole training steps with and without the operator: eager, compiled, and as one CUDA graph."""

# torch types its optimizers and compiler in part.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

import copyreg
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from cdgrad.attachment import attach
from cdgrad.bench.candidates import METRICS
from cdgrad.bench.gpu.operator import Items
from cdgrad.bench.gpu.setup import Setup, UnavailableError, captured, relative_error
from cdgrad.bench.shapes import Conv
from cdgrad.metrics import Metric
from cdgrad.study.models.resnet import CifarResNet, ResNet18

_WITHOUT = "without"
STEP = "compiled training step"
"""The case of the section on compilation that a compiled step needs."""


class Training:
    """SGD steps of a network on images of 32 x 32 pixels: bfloat16 by autocast, channels-last."""

    def __init__(self, setup: Setup, network: str, batch: int) -> None:
        torch.manual_seed(0)
        self.setup = setup
        self.batch, side = (4, 8) if setup.rehearsal else (batch, 32)
        model: nn.Module = nn.Sequential(nn.Conv2d(3, 10, 1), nn.AvgPool2d(side), nn.Flatten())
        if not setup.rehearsal:
            model = (ResNet18 if network == "resnet18" else CifarResNet)((3, side, side), 10)
        self.model = model.to(setup.device)
        self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        images = torch.randn(self.batch, 3, side, side, device=setup.device)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(10, (self.batch,), device=setup.device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9, nesterov=True)
        self.forward: Callable[[], Tensor] = self.loss

    def loss(self) -> Tensor:
        """The mean loss of the batch."""
        with torch.autocast(self.setup.device.type, torch.bfloat16):
            return F.cross_entropy(self.model(self.images), self.labels)

    def compile(self) -> None:
        """Compile forward and backward pass; a rehearsal only traces them."""
        # The compiler finds what another process compiled by a hash of pickled metadata, and by itself pickle
        # names a format by whichever module was imported first of those that have torch.
        copyreg.pickle(torch.memory_format, pickled_format)
        compiled: Any = torch.compile(self.loss, backend="eager" if self.setup.rehearsal else "inductor")
        self.forward = compiled

    def step(self) -> None:
        """One step on the batch."""
        self.optimizer.zero_grad(set_to_none=True)
        self.forward().backward()
        self.optimizer.step()


def pickled_format(memory_format: torch.memory_format) -> tuple[Callable[[str], Any], tuple[str]]:
    """How a memory format is pickled: the same in every process."""
    return _format, (str(memory_format).removeprefix("torch."),)


def _format(name: str) -> Any:
    return getattr(torch, name)


def steps(setup: Setup) -> Items:
    """Milliseconds of a step of ResNet-18 at batch 128, without and with each metric, in three ways."""
    training = Training(setup, "resnet18", 128)
    return {
        "graph": partial(_graphs, training),
        "eager": partial(_eager, training),
        "compiled": partial(_compiled, training),
    }


def _variants(setup: Setup) -> dict[str, Metric | None]:
    return {_WITHOUT: None, **{str(metric): metric for metric in setup.metrics}}


def _eager(training: Training) -> dict[str, Any]:
    handle = attach(training.optimizer, training.model, METRICS[0], backend="triton")

    def run(metric: Metric | None) -> None:
        handle.enabled = metric is not None
        if metric is not None and metric != handle.metric:
            handle.metric = metric
        training.step()

    calls = {name: partial(run, metric) for name, metric in _variants(training.setup).items()}
    try:
        for call in calls.values():
            call()
        return _longer(training.setup.per_call(calls, repeats=4))
    finally:
        handle.remove()


def _compiled(training: Training) -> dict[str, Any]:
    if STEP not in training.setup.compiled:
        raise UnavailableError("it was not compiled in time")
    training.compile()
    try:
        return _eager(training)
    finally:
        training.forward = training.loss


def _graphs(training: Training) -> dict[str, Any]:
    replays: dict[str, Callable[[], object]] = {}
    kept: list[object] = []  # what the graphs read
    for name, metric in _variants(training.setup).items():
        handle = metric and attach(training.optimizer, training.model, metric, backend="triton")
        training.optimizer.zero_grad(set_to_none=True)
        try:
            replays[name] = captured(training.setup, training.step)
        finally:
            if handle:
                handle.remove()
                kept.append(handle)
    return _longer(training.setup.per_call(replays, repeats=10))


def _longer(times: dict[str, float]) -> dict[str, Any]:
    plain = times[_WITHOUT]
    return {name: {"ms": ms, "longer_percent": 100 * (ms / plain - 1)} for name, ms in times.items()}


def graphs(setup: Setup) -> Items:
    """Whether replays of a captured backward pass and operator equal the same without a graph."""
    return {str(metric): partial(_replays, setup, metric) for metric in setup.metrics}


def graph_layers(setup: Setup) -> list[Conv]:
    """The convolutions of the section on graphs."""
    first, count, kernel = (6, 1, 1) if setup.rehearsal else (40, 20, 3)
    return [Conv(first + i, 6, kernel) for i in range(count)]


def _replays(setup: Setup, metric: Metric) -> dict[str, float]:
    torch.manual_seed(0)
    layers = graph_layers(setup)
    model = nn.ModuleList(nn.Conv2d(each.into, each.out, each.kernel, bias=False) for each in layers)
    model.to(setup.device)
    weights = list(model.parameters())
    optimizer = torch.optim.SGD(weights, lr=0.0)
    handle = attach(optimizer, model, metric, backend="triton")

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        sum(
            (weight.sin().square().sum() for weight in weights), torch.zeros((), device=setup.device)
        ).backward()
        optimizer.step()

    step()
    expected = [weight.grad.clone() for weight in weights if weight.grad is not None]
    replay = captured(setup, step)
    for weight in weights:
        if weight.grad is not None:
            weight.grad.zero_()
    worst = 0.0
    for _ in range(1 if setup.rehearsal else 3):
        replay()
        for weight, exact in zip(weights, expected, strict=True):
            assert weight.grad is not None
            worst = max(worst, relative_error(weight.grad, exact))
    handle.remove()
    return {"difference": worst}
