"""Errors and norms of a network as it is."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cdgrad.dtensors import local_part, whole_norms
from cdgrad.study import data as datasets

_AT_ONCE = 1000  # images in a forward pass: a ResNet's activations for them fit in memory


@torch.no_grad()
def count_mistakes(model: nn.Module, split: datasets.Split, wrong: Tensor) -> None:
    """Write the number of misclassified images of `split`, in evaluation mode, to `wrong`, an integer."""
    model.eval()
    wrong.zero_()
    for start in range(0, len(split), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        wrong += mistakes(model(split.images(rows)), split.labels[rows])


def mistakes(logits: Tensor, labels: Tensor, count: int | None = None) -> Tensor:
    """The number of wrong answers among the first `count`; a non-finite output counts as wrong."""
    if count is not None and count < len(labels):
        logits, labels = logits[:count], labels[:count]
    highest, answers = logits.max(1)  # nan counts as the highest
    return len(labels) - ((answers == labels) & (highest.abs() < math.inf)).sum()


def convolution_norm(model: nn.Module) -> float:
    """The L2 norm of all convolution weights as one vector, over all ranks."""
    weights = [p.detach() for p in model.parameters() if p.ndim > 2]
    parts = [local_part(w).double().square().sum().sqrt() for w in weights]
    norms = whole_norms(weights, parts)[0]
    values: list[float] = torch.stack(norms).tolist() if norms else []  # pyright: ignore[reportUnknownVariableType]
    return math.sqrt(sum(norm**2 for norm in values))
