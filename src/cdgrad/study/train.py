"""One run: build, train, measure. The same seed gives every arm the same start, data and order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR

from cdgrad.attachment import Attachment, attach
from cdgrad.diagnostics import agreement
from cdgrad.study import data as datasets
from cdgrad.study import models
from cdgrad.study.spec import BASELINE_METRIC, Setting

Epoch = dict[str, float]


@dataclass
class Outcome:
    """What a run measured. `error` is in percent, on the part of the data that the study evaluates.

    `epochs` holds one dict an epoch: mean training loss, training error and validation error in
    percent, L2 norm of the convolution weights, and of the last gradient g of the epoch, over all
    directed weights at once, the cosine of g and P g and the ratio of their norms (1 where nothing
    is directed). A run whose loss stops being finite ends there: it is "diverged" and evaluated as
    it is.
    """

    status: Literal["ok", "diverged"] = "ok"
    error: float = math.nan
    epochs: list[Epoch] = field(default_factory=list[Epoch])
    model: nn.Module = field(default_factory=nn.Module, repr=False)


def train(setting: Setting, seed: int, on_epoch: Callable[[int, Epoch], None]) -> Outcome:
    """Train once and measure; the global random state is left as it was.

    Args:
        setting: everything but the seed.
        seed: decides the split, the initialization and the order of the data.
        on_epoch: called after each epoch with its number from 1 and what was measured in it.

    Raises:
        StudyError: the model or optimizer cannot be built, or the data set is too small.
    """
    with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
        torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
        return _train(setting, seed, on_epoch)


def _train(setting: Setting, seed: int, on_epoch: Callable[[int, Epoch], None]) -> Outcome:
    data = datasets.load(setting.task, seed)
    model = models.build(setting.model.name, data.image_shape, data.classes, setting.model.arguments)
    optimizer: torch.optim.Optimizer = models.call(
        models.load_callable(setting.optimizer.name),
        setting.optimizer.name,
        model.parameters(),
        lr=setting.optimizer.lr,
        **setting.optimizer.arguments,
    )
    handle = None
    if setting.metric != BASELINE_METRIC:
        options: dict[str, Any] = {"direction": setting.direction, "rescale": setting.rescale}
        handle = attach(optimizer, model, setting.metric, linear=setting.linear, **options)
    steps = setting.schedule.epochs * math.ceil(len(data.train) / setting.schedule.batch)
    schedule = CosineAnnealingLR(optimizer, T_max=steps)
    order = np.random.default_rng([seed, _ORDER_STREAM])

    outcome = Outcome(model=model)
    for epoch in range(1, setting.schedule.epochs + 1):
        model.train()
        loss_sum, wrong, directed = 0.0, 0, (1.0, 1.0)
        batches = list(_batches(len(data.train), setting.schedule.batch, order))
        for index, rows in enumerate(batches):
            labels = data.train.labels[rows]
            optimizer.zero_grad()
            logits = model(data.train.images[rows])
            loss = cross_entropy(logits, labels)
            loss.backward()  # pyright: ignore[reportUnknownMemberType]
            if handle is not None and index == len(batches) - 1:
                directed = _direct_and_compare(handle)
            optimizer.step()
            schedule.step()
            loss_sum += loss.item() * len(labels)
            wrong += _mistakes(logits, labels)
        measured = {
            "loss": loss_sum / len(data.train),
            "train_error": 100 * wrong / len(data.train),
            "validation_error": error_percent(model, data.validation),
            "weight_norm": _convolution_norm(model),
            "cosine": directed[0],
            "norm_ratio": directed[1],
        }
        outcome.epochs.append(measured)
        on_epoch(epoch, measured)
        if not math.isfinite(loss_sum):
            outcome.status = "diverged"
            break
    outcome.error = error_percent(model, data.test if setting.evaluate == "test" else data.validation)
    return outcome


_ORDER_STREAM = 2


def _batches(n: int, size: int, order: np.random.Generator) -> Iterator[Tensor]:
    rows = torch.tensor(order.permutation(n))
    yield from (rows[start : start + size] for start in range(0, n, size))


@torch.no_grad()
def error_percent(model: nn.Module, part: datasets.Part) -> float:
    """Misclassified images of `part` in percent, in evaluation mode."""
    model.eval()
    return 100 * _mistakes(model(part.images), part.labels) / len(part)


def _mistakes(logits: Tensor, labels: Tensor) -> int:
    """Wrong answers; a diverged network's non-finite outputs are no answers, and so wrong."""
    right = (logits.argmax(1) == labels) & logits.isfinite().all(1)
    return len(labels) - int(right.sum())


def _direct_and_compare(handle: Attachment) -> tuple[float, float]:
    """Direct the gradients ahead of the step; the cosine and norm ratio of what came out."""
    grads = [t.param.grad for t in handle.selection.targets if t.param.grad is not None]
    raw = [grad.clone() for grad in grads]
    handle.apply()
    return agreement(raw, grads)


def _convolution_norm(model: nn.Module) -> float:
    weights = [p.detach() for p in model.parameters() if p.ndim > 2]
    return math.sqrt(sum(float(w.double().square().sum()) for w in weights))
