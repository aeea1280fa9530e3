"""Whole training steps: a ResNet-18 on 32 x 32 images, without and with the operator."""

# torch does not type its optimizers.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from cdgrad.attachment import attach
from cdgrad.bench.candidates import METRICS
from cdgrad.bench.records import Step
from cdgrad.study.models.resnet import ResNet18

BATCH, SIDE, CLASSES = 128, 32, 10


def resnet18() -> nn.Module:
    """As a study builds it, for CIFAR."""
    return ResNet18((3, SIDE, SIDE), CLASSES)


def measure(rounds: int, seconds: float) -> list[Step]:
    """Median seconds of a step of SGD, plain, with each metric, and with the second pass of SAM.

    ``operator`` is the median time of the operator within the step, just after the backward pass: the
    difference of two steps is smaller than the variation of a step.
    """
    torch.manual_seed(0)
    model = resnet18()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.randn(BATCH, 3, SIDE, SIDE), torch.randint(CLASSES, (BATCH,))

    def backward() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()

    def nothing() -> None:
        return

    variants: dict[str, tuple[str | None, Callable[[], None]]] = {
        "without": (None, nothing),
        **{str(metric): (str(metric), nothing) for metric in METRICS},
        "SAM's second pass": (None, backward),
    }
    steps: dict[str, list[float]] = {name: [] for name in variants}
    operators: dict[str, list[float]] = {name: [] for name in variants}
    stop = time.perf_counter() + seconds
    backward()
    for completed in range(rounds):
        if completed >= 3 and time.perf_counter() > stop:
            break
        for name, (metric, second) in variants.items():
            handle = attach(optimizer, model, metric) if metric else None
            start = time.perf_counter()
            backward()
            second()
            directed = time.perf_counter()
            if handle:
                handle.apply()
            operators[name].append(time.perf_counter() - directed)
            optimizer.step()
            steps[name].append(time.perf_counter() - start)
            if handle:
                handle.remove()
    plain = median(steps["without"])
    return [
        {
            "name": name,
            "seconds": median(steps[name]),
            "over_plain": median(steps[name]) / plain,
            "operator": median(operators[name]) if metric else None,
            "operator_over_step": median(operators[name]) / plain if metric else None,
            "rounds": len(steps[name]),
        }
        for name, (metric, _) in variants.items()
    ]
