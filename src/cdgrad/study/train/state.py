"""The state of one training run: network, optimizer, attachment, random generators and data."""

from __future__ import annotations

import inspect
import json
import math
from typing import Any

import torch
from torch import nn

from cdgrad.study import StudyError, models, streams
from cdgrad.study import data as datasets
from cdgrad.study.callables import call, load_callable
from cdgrad.study.spec import Model, Optimizer, Setting
from cdgrad.study.train.arms import Attachment, attach_arm
from cdgrad.study.train.average import MovingAverage
from cdgrad.study.train.checks import check_holds_all, check_small_batches
from cdgrad.study.train.execution import Execution, at_once
from cdgrad.study.train.outcome import Epoch
from cdgrad.study.train.ranks import Ranks
from cdgrad.study.train.schedule import Rates
from cdgrad.study.train.seeding import host_state, set_host_state
from cdgrad.study.train.step import Buffers


class TrainingState:
    """All that a run consists of between two epochs.

    Attributes:
        model: the network that is trained; `wrapped` is the same for a forward pass on several ranks.
        average: the moving average of the network's weights, or None.
        rates: the learning rates of the parameter groups.
        buffers: what a step reads and writes besides network and optimizer.
        execute: how steps and evaluations are executed: at once, or as CUDA graphs.
        order, augmentation: the random generators of the order and the augmentation of the images.
        test: the test split, where it is evaluated after every epoch; else None, and not read before the end.
        epochs: what was measured, one dict an epoch.
        finite: whether all weights were finite after the last step, whose loss no forward pass computes.
    """

    def __init__(self, setting: Setting, seed: int, device: torch.device, ranks: Ranks) -> None:
        task, network, schedule, optimizer = setting.tables()
        self.setting, self.schedule = setting, schedule
        self.device, self.ranks = device, ranks
        self.data = datasets.load(task, seed)
        self.training, self.validation = self.on_device(self.data.train), self.on_device(self.data.validation)
        self.model = _network(network, self.data).to(device)
        if schedule.channels_last:
            self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  torch types it for tensors only
        self.average = MovingAverage(self.model, schedule.ema) if schedule.ema else None
        self.wrapped = ranks.wrap(self.model, schedule)
        self.optimizer = _optimizer(optimizer, self.model)
        self.handle = _attached(setting, self.optimizer, self.model, seed)
        if ranks.size == 1:
            check_small_batches(self.model, self.training, schedule)
        if schedule.compile:
            self.wrapped.compile()
        self.rates = Rates(self.optimizer)
        self.buffers = Buffers(device)
        self.execute: Execution = at_once
        self.order = streams.generator(seed, streams.ORDER)
        self.augmentation = torch.Generator(device).manual_seed(streams.number(seed, streams.AUGMENTATION))
        every = schedule.test_every_epoch and setting.evaluate == "test"
        self.test = self.on_device(self.data.test) if every else None
        self.epochs: list[Epoch] = []
        self.finite = True

    @property
    def diverged(self) -> bool:
        """Whether the loss of the last epoch or a weight is not finite."""
        return bool(self.epochs) and not (self.finite and math.isfinite(self.epochs[-1]["loss"]))

    @property
    def over(self) -> bool:
        """Whether no epoch is left, or the run has diverged."""
        return len(self.epochs) == self.schedule.epochs or self.diverged

    @property
    def evaluated(self) -> nn.Module:
        """The network whose error counts: the average where there is one."""
        return self.average.module if self.average else self.model

    def on_device(self, split: datasets.Split) -> datasets.Split:
        """`split` on the run's device, in its memory layout."""
        layout = torch.channels_last if self.schedule.channels_last else torch.contiguous_format
        return split.to(self.device, layout)

    def precision(self) -> torch.autocast:
        """The context of forward passes."""
        half = self.schedule.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half)

    def state_dict(self) -> dict[str, Any]:
        """All that the next epoch depends on; the learning rate follows from the number of epochs."""
        cuda = self.device.type == "cuda"
        return {
            "epochs": self.epochs,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average
            and {"model": self.average.module.state_dict(), "steps": self.average.steps},
            "order": json.dumps(self.order.bit_generator.state),
            "augmentation": self.augmentation.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if cuda else None,
            "host": host_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.epochs = state["epochs"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.module.load_state_dict(state["average"]["model"])
            self.average.steps = state["average"]["steps"]
        self.order.bit_generator.state = json.loads(state["order"])
        self.augmentation.set_state(state["augmentation"])
        torch.set_rng_state(state["torch"])
        if state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"], self.device)
        if "host" in state:  # older files lack it
            set_host_state(state["host"])
        self.ranks.draw_apart(len(self.epochs))  # the state is the first rank's


def _network(network: Model, data: datasets.Data) -> nn.Module:
    model = models.build(network.name, data.image_shape, data.classes, network.arguments)
    if network.initialization == "fan-out":
        models.initialize_fan_out(model)
    return model


def _optimizer(table: Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer = call(
        load_callable(table.name), table.name, list(model.parameters()), lr=table.lr, **table.arguments
    )
    check_holds_all(optimizer, model, table.name)
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise StudyError(
            f"{table.name} needs a closure, which the built-in training loop does not provide; "
            'use your own training code: entry = "module:function"'
        )
    return optimizer


def _attached(
    setting: Setting, optimizer: torch.optim.Optimizer, model: nn.Module, seed: int
) -> Attachment | None:
    try:
        return attach_arm(setting, optimizer, model, seed)
    except (TypeError, ValueError) as error:
        raise StudyError(str(error)) from error
