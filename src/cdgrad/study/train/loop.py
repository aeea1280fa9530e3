"""One run: build, train, measure. The same seed gives every arm the same start, data and order."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from cdgrad.dtensors import local_part
from cdgrad.study import StudyError, models, streams
from cdgrad.study import data as datasets
from cdgrad.study.callables import call, load_callable
from cdgrad.study.spec import Schedule, Setting
from cdgrad.study.train.arms import attach_arm, direct_and_compare
from cdgrad.study.train.average import WeightAverage
from cdgrad.study.train.checkpoint import Checkpoint
from cdgrad.study.train.checks import check_holds_all, check_small_batches, set_mode
from cdgrad.study.train.evaluate import convolution_norm, error_percent, mistakes
from cdgrad.study.train.outcome import Epoch, OnEpoch, Outcome
from cdgrad.study.train.ranks import ALONE, Ranks


def train(
    setting: Setting,
    seed: int,
    on_epoch: OnEpoch,
    *,
    device: str = "cpu",
    checkpoint: Path | None = None,
    every: float = 30.0,
    ranks: Ranks = ALONE,
) -> Outcome:
    """Train once and measure; the global random state is left as it was.

    Args:
        setting: everything but the seed.
        seed: decides the split, the initialization, the order and the augmentation of the data.
        on_epoch: called after each epoch with its number from 1 and what was measured in it.
        device: where to train, such as ``"cuda:0"``; data and network are held there.
        checkpoint: a file to keep the state in, and to go on from where it exists: on the CPU to the
            same bits as without interruption. It is removed when the run is over.
        every: seconds from one save to the next, at least; saves happen between epochs.
        ranks: the processes that train together. All of them call this, and all return the same numbers.

    Raises:
        StudyError: the device is not there; the model or optimizer cannot be built, or the arm not
            attached; the data set is too small; the checkpoint is of another run or cannot be
            written, or the weights are sharded.

    Warns:
        UserWarning: the checkpoint is damaged, and the run starts over.
    """
    try:
        where = torch.device(device)
    except RuntimeError as error:  # a list of torch's kinds, most of them not there
        raise StudyError(f"unknown device {device!r}; expected cpu, cuda or cuda:N") from error
    if where.type == "cuda" and not torch.cuda.is_available():
        raise StudyError(f"there is no device {device} here; use cpu")
    if checkpoint and ranks.kind == "fsdp2":
        raise StudyError("a checkpoint of sharded weights is not supported; use ddp")
    kept = checkpoint and Checkpoint(checkpoint, setting, seed, where.type, every)
    # Named, because torch warns where there are several devices and none is.
    forked = [where] if where.type == "cuda" else []
    with torch.random.fork_rng(devices=forked):  # pyright: ignore[reportUnknownMemberType]
        torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
        run = _Run(setting, seed, where, ranks)
        if kept and (state := kept.load()):
            try:
                run.restore(state)
            except Exception as error:  # whatever the values lead torch to
                raise StudyError(
                    f"{kept.path} does not hold the state of this run ({type(error).__name__}); move it "
                    "away, or name another file"
                ) from error
        while not run.over:
            run.epoch()
            on_epoch(len(run.epochs), run.epochs[-1])
            if kept and kept.due and not run.over and ranks.rank == 0:
                kept.save(run.state())
        outcome = run.outcome()
    if kept and ranks.rank == 0:
        kept.remove()
    return outcome


class _Run:
    """A network on its way through the schedule."""

    def __init__(self, setting: Setting, seed: int, device: torch.device, ranks: Ranks) -> None:
        task, network, schedule, base = setting.tables()
        self.setting, self.schedule, self.augment = setting, schedule, task.augment
        self.device, self.ranks = device, ranks
        self.data = datasets.load(task, seed)
        self.training, self.validation = self._here(self.data.train), self._here(self.data.validation)
        shape, classes = self.data.image_shape, self.data.classes
        self.model = models.build(network.name, shape, classes, network.arguments)
        if network.initialization == "fan-out":
            models.initialize_fan_out(self.model)
        self.model.to(device)
        if schedule.channels_last:
            self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue, reportUnknownMemberType]
        self.average = WeightAverage(self.model, schedule.ema) if schedule.ema else None
        self.wrapped = ranks.wrap(self.model, schedule)
        self.optimizer: torch.optim.Optimizer = call(
            load_callable(base.name), base.name, list(self.model.parameters()), lr=base.lr, **base.arguments
        )
        check_holds_all(self.optimizer, self.model, base.name)
        if _needs_closure(self.optimizer):
            raise StudyError(
                f"{base.name} needs a closure, which the built-in training loop does not provide; "
                'use your own training code: entry = "module:function"'
            )
        try:
            self.handle = attach_arm(setting, self.optimizer, self.model, seed)
        except (TypeError, ValueError) as error:  # a refusal, in one line
            raise StudyError(str(error)) from error
        if ranks.size == 1:
            check_small_batches(self.model, self.training, schedule)
        if schedule.compile:
            self.wrapped.compile()  # pyright: ignore[reportUnknownMemberType]
        self.rates: list[float] = [group["lr"] for group in self.optimizer.param_groups]
        self.order = streams.generator(seed, streams.ORDER)
        self.changes = torch.Generator(device).manual_seed(streams.number(seed, streams.AUGMENTATION))
        every = schedule.test_every_epoch and setting.evaluate == "test"
        self.test = self._here(self.data.test) if every else None  # None: not read before the end
        self.epochs: list[Epoch] = []
        self.finite = True  # the weights after the last step, which no loss has seen

    @property
    def over(self) -> bool:
        return len(self.epochs) == self.schedule.epochs or self.diverged

    @property
    def diverged(self) -> bool:
        return bool(self.epochs) and not (self.finite and math.isfinite(self.epochs[-1]["loss"]))

    @property
    def evaluated(self) -> nn.Module:
        return self.average.model if self.average else self.model

    def epoch(self) -> None:
        """Pass once over the training images, and measure."""
        schedule, n = self.schedule, len(self.training)
        steps = math.ceil(n / schedule.batch)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        wrong = torch.zeros((), dtype=torch.int64, device=self.device)
        compared, factor = (1.0, 1.0), 1.0
        self.wrapped.train()
        set_mode(self.optimizer, training=True)
        for index, rows in enumerate(_batches(n, schedule.batch, self.order)):
            factor = rate_factor(schedule, len(self.epochs) * steps + index, steps)
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * factor * self.setting.rounding
            self.optimizer.zero_grad()
            for part in self._micro_batches(rows):
                images, labels, count = self.ranks.share(*part)
                with self._precision():
                    logits = self.wrapped(images)
                    loss = cross_entropy(logits, labels, label_smoothing=schedule.label_smoothing)
                # The mean over the batch of all ranks, whose gradients the backward pass averages.
                weight = self.ranks.size * count / len(rows)
                (loss if weight == 1 else loss * weight).backward()  # pyright: ignore[reportUnknownMemberType]
                loss_sum += loss.detach() * count
                wrong += mistakes(logits.detach(), labels, count)
            if index == steps - 1:
                compared = direct_and_compare(self.handle)
            elif self.handle is not None and schedule.clip:
                self.handle.apply()
            if schedule.clip:
                clip_grad_norm_(self.model.parameters(), schedule.clip)
            step_with_rounding(self.optimizer, self.setting.rounding)
            if self.average:
                self.average.update()
        set_mode(self.optimizer, training=False)
        self.ranks.add_up(loss_sum, wrong)
        self.ranks.unite_buffers(self.model)
        if self.average:
            self.ranks.unite_buffers(self.average.model)
        measured = {
            "loss": float(loss_sum) / n,
            "train_error": 100 * int(wrong) / n,
            "validation_error": self._error(self.validation),
            "weight_norm": convolution_norm(self.model),
            "cosine": compared[0],
            "norm_ratio": compared[1],
            "lr": self.rates[0] * factor,
        }
        if self.test is not None:
            measured["test_error"] = self._error(self.test)
        self.epochs.append(measured)
        infinite = torch.zeros((), device=self.device)
        for parameter in self.model.parameters():
            infinite += (~local_part(parameter.detach()).isfinite()).sum()
        self.ranks.add_up(infinite)
        self.finite = not infinite

    def outcome(self) -> Outcome:
        """Evaluate the end of the schedule; without `test_every_epoch` the only place that reads the test
        part.
        """
        part = self._here(self.data.test) if self.setting.evaluate == "test" else self.validation
        status = "diverged" if self.diverged else "ok"
        return Outcome(status, self._error(part), self.epochs, selected_errors(self.epochs), self.evaluated)

    def state(self) -> dict[str, Any]:
        """All that the next epoch depends on; the learning rate follows from the number of epochs."""
        cuda = self.device.type == "cuda"
        return {
            "epochs": self.epochs,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average
            and {"model": self.average.model.state_dict(), "steps": self.average.steps},
            "order": json.dumps(self.order.bit_generator.state),
            "augmentation": self.changes.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if cuda else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.epochs = state["epochs"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.model.load_state_dict(state["average"]["model"])
            self.average.steps = state["average"]["steps"]
        self.order.bit_generator.state = json.loads(state["order"])
        self.changes.set_state(state["augmentation"])
        torch.set_rng_state(state["torch"])
        if state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"], self.device)

    def _micro_batches(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        rows = rows.to(self.device)
        images = datasets.augment(self.training.images(rows), self.augment, self.changes)
        labels, parts = self.training.labels[rows], self.schedule.accumulate
        if parts == 1:
            yield images, labels
        else:
            yield from zip(images.chunk(parts), labels.chunk(parts), strict=True)

    def _error(self, part: datasets.Split) -> float:
        with self._precision():
            return error_percent(self.evaluated, part)

    def _here(self, part: datasets.Split) -> datasets.Split:
        layout = torch.channels_last if self.schedule.channels_last else torch.contiguous_format
        return part.to(self.device, layout)

    def _precision(self) -> torch.autocast:
        half = self.schedule.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half)


def _needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def rate_factor(schedule: Schedule, step: int, steps: int) -> float:
    """The learning rate of a step over its initial value; `step` counts from 0, `steps` make an epoch."""
    warmup, total = schedule.warmup * steps, schedule.epochs * steps
    if step < warmup:
        return (step + 1) / warmup
    if schedule.decay == "none":
        return 1.0
    if schedule.decay == "steps":
        return schedule.step_factor ** (step // (schedule.step_epochs * steps))
    return (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


@torch.no_grad()
def step_with_rounding(optimizer: torch.optim.Optimizer, k: int) -> None:
    """One step of `optimizer`, whose learning rates are k times the intended ones, with its updates divided
    by k.

    w + (w' - w) / k, with w' the weights after the step: the step of the intended learning rate in exact
    arithmetic, if the update is proportional to the learning rate. Costs a copy of the weights where k > 1.
    """
    if k == 1:
        optimizer.step()
        return
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in weights]
    optimizer.step()
    for weight, old in zip(weights, before, strict=True):
        weight.sub_(old).div_(k).add_(old)


def selected_errors(epochs: list[Epoch]) -> dict[str, float]:
    """The smallest test error of any epoch and the mean of the last ten, where the epochs have test errors.

    Both choose by the test set: they belong beside the error of the last epoch, to show what such a choice
    gains, and never in its place.
    """
    errors = [epoch["test_error"] for epoch in epochs if "test_error" in epoch]
    if not errors:
        return {}
    last = errors[-10:]
    return {"best_epoch_test_error": min(errors), "last_ten_epochs_test_error": math.fsum(last) / len(last)}


def _batches(n: int, size: int, order: np.random.Generator) -> Iterator[Tensor]:
    rows = torch.tensor(order.permutation(n))
    yield from (rows[start : start + size] for start in range(0, n, size))
