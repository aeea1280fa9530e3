"""One epoch: a pass over the training images, and what is measured after it."""

from __future__ import annotations

import math
from functools import partial

import torch

from cdgrad.dtensors import local_part
from cdgrad.study import data as datasets
from cdgrad.study.train.arms import alignment_of
from cdgrad.study.train.checks import set_mode
from cdgrad.study.train.evaluate import convolution_norm, count_mistakes
from cdgrad.study.train.outcome import Epoch
from cdgrad.study.train.schedule import batches, rate_factor
from cdgrad.study.train.state import TrainingState
from cdgrad.study.train.step import training_step


def run_epoch(state: TrainingState) -> None:
    """Train on every image once, and append what was measured to ``state.epochs``."""
    n, schedule, buffers = len(state.training), state.schedule, state.buffers
    steps, factor = math.ceil(n / schedule.batch), 1.0
    state.wrapped.train()
    set_mode(state.optimizer, training=True)
    buffers.start_epoch()
    for index, rows in enumerate(batches(n, schedule.batch, state.order, state.device)):
        factor = rate_factor(schedule, len(state.epochs) * steps + index, steps)
        state.rates.set(factor, state.setting.rounding)
        if state.average:
            state.average.begin_step()
        buffers.write_rows(rows)
        size, last = len(rows), index == steps - 1
        state.execute(("step", size, last), partial(training_step, state, size, compare=last))
    set_mode(state.optimizer, training=False)
    state.ranks.add_up(buffers.loss, buffers.wrong)
    state.ranks.unite_buffers(state.model)
    if state.average:
        state.ranks.unite_buffers(state.average.module)
    measured = {"loss": float(buffers.loss) / n, "train_error": 100 * int(buffers.wrong) / n}
    measured |= _measure(state, state.rates.initial[0] * factor)
    if state.test is not None:
        measured["test_error"] = error(state, state.test)
    state.epochs.append(measured)
    state.finite = _all_finite(state)


def error(state: TrainingState, split: datasets.Split) -> float:
    """The error of the run's network on `split`, in percent."""
    state.execute(("evaluate", id(split)), partial(_evaluate, state, split))
    return 100 * int(state.buffers.evaluated) / len(split)


def _evaluate(state: TrainingState, split: datasets.Split) -> None:
    with state.precision():
        count_mistakes(state.evaluated, split, state.buffers.evaluated)


def _measure(state: TrainingState, rate: float) -> Epoch:
    alignment = alignment_of(state.buffers.products)
    return {
        "validation_error": error(state, state.validation),
        "weight_norm": convolution_norm(state.model),
        "cosine": alignment.cosine,
        "norm_ratio": alignment.norm_ratio,
        "lr": rate,
    }


def _all_finite(state: TrainingState) -> bool:
    """Whether all weights are finite, on all ranks."""
    infinite = torch.zeros((), device=state.device)
    for parameter in state.model.parameters():
        infinite += (~local_part(parameter.detach()).isfinite()).sum()
    state.ranks.add_up(infinite)
    return not infinite
