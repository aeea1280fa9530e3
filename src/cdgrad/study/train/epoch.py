"""One epoch: a pass over the training images, and what is measured after it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from cdgrad.dtensors import local_part
from cdgrad.study import data as datasets
from cdgrad.study.train.arms import direct_and_compare
from cdgrad.study.train.checks import set_mode
from cdgrad.study.train.evaluate import convolution_norm, error_percent, mistakes
from cdgrad.study.train.outcome import Epoch
from cdgrad.study.train.schedule import batches, rate_factor, step_with_rounding
from cdgrad.study.train.state import TrainingState


def run_epoch(state: TrainingState) -> None:
    """Train on every image once, and append what was measured to ``state.epochs``."""
    n, schedule = len(state.training), state.schedule
    steps = math.ceil(n / schedule.batch)
    loss = torch.zeros((), dtype=torch.float64, device=state.device)
    wrong = torch.zeros((), dtype=torch.int64, device=state.device)
    alignment, factor = (1.0, 1.0), 1.0
    state.wrapped.train()
    set_mode(state.optimizer, training=True)
    for index, rows in enumerate(batches(n, schedule.batch, state.order)):
        factor = rate_factor(schedule, len(state.epochs) * steps + index, steps)
        _set_rates(state, factor)
        _backward(state, rows, loss, wrong)
        if index == steps - 1:
            alignment = direct_and_compare(state.handle)
        elif state.handle is not None and schedule.clip:
            state.handle.apply()  # before clipping; `apply` directs a gradient anew whenever it is called
        _update(state)
    set_mode(state.optimizer, training=False)
    state.ranks.add_up(loss, wrong)
    state.ranks.unite_buffers(state.model)
    if state.average:
        state.ranks.unite_buffers(state.average.module)
    measured = {"loss": float(loss) / n, "train_error": 100 * int(wrong) / n, **_measure(state)}
    measured |= {"cosine": alignment[0], "norm_ratio": alignment[1], "lr": state.rates[0] * factor}
    if state.test is not None:
        measured["test_error"] = error(state, state.test)
    state.epochs.append(measured)
    state.finite = _all_finite(state)


def error(state: TrainingState, split: datasets.Split) -> float:
    """The error of the run's network on `split`, in percent."""
    with state.precision():
        return error_percent(state.evaluated, split)


def _set_rates(state: TrainingState, factor: float) -> None:
    for group, rate in zip(state.optimizer.param_groups, state.rates, strict=True):
        group["lr"] = rate * factor * state.setting.rounding


def _backward(state: TrainingState, rows: Tensor, loss_sum: Tensor, wrong: Tensor) -> None:
    """Compute the gradient of the mean loss over a batch; add its losses and mistakes to the sums."""
    state.optimizer.zero_grad()
    for micro_batch in _micro_batches(state, rows):
        images, labels, count = state.ranks.share(*micro_batch)
        with state.precision():
            logits = state.wrapped(images)
            loss = cross_entropy(logits, labels, label_smoothing=state.schedule.label_smoothing)
        # The mean over the batch of all ranks, whose gradients the backward pass averages.
        weight = state.ranks.size * count / len(rows)
        (loss if weight == 1 else loss * weight).backward()  # pyright: ignore[reportUnknownMemberType]
        loss_sum += loss.detach() * count
        wrong += mistakes(logits.detach(), labels, count)


def _micro_batches(state: TrainingState, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    rows = rows.to(state.device)
    task = state.setting.tables()[0]
    images = datasets.augment(state.training.images(rows), task.augment, state.augmentation)
    labels, parts = state.training.labels[rows], state.schedule.accumulate
    if parts == 1:
        yield images, labels
    else:
        yield from zip(images.chunk(parts), labels.chunk(parts), strict=True)


def _update(state: TrainingState) -> None:
    """Clip the gradient, step, and average the weights."""
    if state.schedule.clip:
        clip_grad_norm_(state.model.parameters(), state.schedule.clip)
    step_with_rounding(state.optimizer, state.setting.rounding)
    if state.average:
        state.average.update_parameters(state.model)


def _measure(state: TrainingState) -> Epoch:
    return {
        "validation_error": error(state, state.validation),
        "weight_norm": convolution_norm(state.model),
    }


def _all_finite(state: TrainingState) -> bool:
    """Whether all weights are finite, on all ranks."""
    infinite = torch.zeros((), device=state.device)
    for parameter in state.model.parameters():
        infinite += (~local_part(parameter.detach()).isfinite()).sum()
    state.ranks.add_up(infinite)
    return not infinite
