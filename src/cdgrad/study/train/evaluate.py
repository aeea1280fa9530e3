"""Errors and norms of a network as it is."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cdgrad.dtensors import local_part, whole_norms
from cdgrad.study import data as datasets


@torch.no_grad()
def error_percent(model: nn.Module, part: datasets.Split) -> float:
    """Misclassified images of `part` in percent, in evaluation mode."""
    model.eval()
    wrong = 0
    for start in range(0, len(part), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        wrong += mistakes(model(part.images(some)), part.labels[some])
    return 100 * int(wrong) / len(part)


_AT_ONCE = 1000  # images to evaluate: what a ResNet keeps of them fits in memory


def mistakes(logits: Tensor, labels: Tensor, count: int | None = None) -> Tensor:
    """Wrong answers among the first `count`; a diverged network's non-finite outputs are wrong ones."""
    if count is not None and count < len(labels):
        logits, labels = logits[:count], labels[:count]
    highest, answers = logits.max(1)  # nan counts as the highest
    return len(labels) - ((answers == labels) & (highest.abs() < math.inf)).sum()


def convolution_norm(model: nn.Module) -> float:
    weights = [p.detach() for p in model.parameters() if p.ndim > 2]
    parts = [local_part(w).double().square().sum().sqrt() for w in weights]
    return math.sqrt(sum(float(norm) ** 2 for norm in whole_norms(weights, parts)[0]))
