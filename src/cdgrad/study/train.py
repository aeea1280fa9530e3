"""One run: build, train, measure. The same seed gives every arm the same start, data and order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from cdgrad.study import data as datasets
from cdgrad.study import models
from cdgrad.study.arms import attach_arm, direct_and_compare
from cdgrad.study.averaging import WeightAverage
from cdgrad.study.spec import Schedule, Setting

Epoch = dict[str, float]


@dataclass
class Outcome:
    """What a run measured. `error` is in percent, on the part of the data that the study evaluates.

    `epochs` holds one dict an epoch: mean training loss, training error and validation error in
    percent, L2 norm of the convolution weights, learning rate of the last step, and of the last
    gradient g of the epoch, over all weights that the arm changes at once, the cosine of g and P g
    and the ratio of their norms (1 where nothing is changed). With a weight average, the validation
    error and `error` are the average's. A run whose loss stops being finite ends there: it is
    "diverged" and evaluated as it is. `measures` holds further final numbers of the user's own code.
    """

    status: Literal["ok", "diverged"] = "ok"
    error: float = math.nan
    epochs: list[Epoch] = field(default_factory=list[Epoch])
    measures: dict[str, float] = field(default_factory=dict[str, float])
    model: nn.Module = field(default_factory=nn.Module, repr=False)


def train(
    setting: Setting, seed: int, on_epoch: Callable[[int, Epoch], None], *, device: str = "cpu"
) -> Outcome:
    """Train once and measure; the global random state is left as it was.

    Args:
        setting: everything but the seed.
        seed: decides the split, the initialization, the order and the augmentation of the data.
        on_epoch: called after each epoch with its number from 1 and what was measured in it.
        device: where to train, such as ``"cuda:0"``; data and network are held there.

    Raises:
        StudyError: the model or optimizer cannot be built, or the data set is too small.
    """
    with torch.random.fork_rng():  # pyright: ignore[reportUnknownMemberType]
        torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
        return _train(setting, seed, on_epoch, torch.device(device))


def _train(
    setting: Setting, seed: int, on_epoch: Callable[[int, Epoch], None], device: torch.device
) -> Outcome:
    task, network, schedule, base = setting.tables()
    data = datasets.load(task, seed)
    layout = torch.channels_last if schedule.channels_last else torch.contiguous_format
    training, validation = data.train.to(device, layout), data.validation.to(device, layout)
    model = models.build(network.name, data.image_shape, data.classes, network.arguments).to(device)
    if schedule.channels_last:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue, reportUnknownMemberType]
    optimizer: torch.optim.Optimizer = models.call(
        models.load_callable(base.name), base.name, model.parameters(), lr=base.lr, **base.arguments
    )
    handle = attach_arm(setting, optimizer, model, seed)
    average = WeightAverage(model, schedule.ema) if schedule.ema else None
    evaluated = average.model if average else model
    if schedule.compile:
        model.compile()  # pyright: ignore[reportUnknownMemberType]
    rates: list[float] = [group["lr"] for group in optimizer.param_groups]
    steps = math.ceil(len(training) / schedule.batch)
    order = np.random.default_rng([seed, _ORDER_STREAM])
    changes = torch.Generator(device).manual_seed(_stream_seed(seed, _AUGMENTATION_STREAM))

    outcome = Outcome(model=evaluated)
    for epoch in range(1, schedule.epochs + 1):
        model.train()
        loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        wrong = torch.zeros((), dtype=torch.int64, device=device)
        compared, factor = (1.0, 1.0), 1.0
        for index, rows in enumerate(_batches(len(training), schedule.batch, order)):
            factor = rate_factor(schedule, (epoch - 1) * steps + index, steps)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimizer.zero_grad()
            rows = rows.to(device)
            images = datasets.augment(training.images(rows), task.augment, changes)
            parts = zip(*(t.chunk(schedule.accumulate) for t in (images, training.labels[rows])), strict=True)
            for some, labels in parts:
                with _precision(schedule, device):
                    logits = model(some)
                    loss = cross_entropy(logits, labels, label_smoothing=schedule.label_smoothing)
                (loss * (len(labels) / len(rows))).backward()  # pyright: ignore[reportUnknownMemberType]
                loss_sum += loss.detach() * len(labels)
                wrong += _mistakes(logits.detach(), labels)
            if index == steps - 1:
                compared = direct_and_compare(handle)
            elif handle is not None and schedule.clip:
                handle.apply()
            if schedule.clip:
                clip_grad_norm_(model.parameters(), schedule.clip)
            optimizer.step()
            if average:
                average.update()
        measured = {
            "loss": float(loss_sum) / len(training),
            "train_error": 100 * int(wrong) / len(training),
            "validation_error": error_percent(evaluated, validation, schedule),
            "weight_norm": _convolution_norm(model),
            "cosine": compared[0],
            "norm_ratio": compared[1],
            "lr": rates[0] * factor,
        }
        outcome.epochs.append(measured)
        on_epoch(epoch, measured)
        if not math.isfinite(measured["loss"]):
            outcome.status = "diverged"
            break
    part = data.test.to(device, layout) if setting.evaluate == "test" else validation
    outcome.error = error_percent(evaluated, part, schedule)
    return outcome


# Separate random streams of one seed: the order must not move when, say, the augmentation does.
_ORDER_STREAM = 2
_AUGMENTATION_STREAM = 3


def _stream_seed(seed: int, stream: int) -> int:
    """A seed for generators that take a single number."""
    return int(np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def rate_factor(schedule: Schedule, step: int, steps: int) -> float:
    """The learning rate of a step over its initial value; `step` counts from 0, `steps` make an epoch."""
    warmup, total = schedule.warmup * steps, schedule.epochs * steps
    if step < warmup:
        return (step + 1) / warmup
    if schedule.decay == "none":
        return 1.0
    return (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


def _batches(n: int, size: int, order: np.random.Generator) -> Iterator[Tensor]:
    rows = torch.tensor(order.permutation(n))
    yield from (rows[start : start + size] for start in range(0, n, size))


@torch.no_grad()
def error_percent(model: nn.Module, part: datasets.Part, schedule: Schedule) -> float:
    """Misclassified images of `part` in percent, in evaluation mode and the schedule's precision."""
    model.eval()
    wrong = 0
    with _precision(schedule, part.device):
        for start in range(0, len(part), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            wrong += _mistakes(model(part.images(some)), part.labels[some])
    return 100 * int(wrong) / len(part)


_AT_ONCE = 1000  # images to evaluate: what a ResNet keeps of them fits in memory


def _mistakes(logits: Tensor, labels: Tensor) -> Tensor:
    """Wrong answers; a diverged network's non-finite outputs are no answers, and so wrong."""
    right = (logits.argmax(1) == labels) & logits.isfinite().all(1)
    return len(labels) - right.sum()


def _precision(schedule: Schedule, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=schedule.precision == "bfloat16")


def _convolution_norm(model: nn.Module) -> float:
    weights = [p.detach() for p in model.parameters() if p.ndim > 2]
    return math.sqrt(sum(float(w.double().square().sum()) for w in weights))
