"""What must hold of a network and its optimizer before they are trained."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.optim import Optimizer

from cdgrad.messages import first_few
from cdgrad.study import StudyError
from cdgrad.study.data import Split
from cdgrad.study.spec import Schedule

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def check_holds_all(optimizer: Optimizer, model: nn.Module, name: str) -> None:
    """Refuse an optimizer that leaves trainable parameters of `model` out: they would never change.

    Raises:
        StudyError: with the names of the first parameters that it does not hold.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    trainable = {key: p for key, p in model.named_parameters() if p.requires_grad}
    missing = [key for key, parameter in trainable.items() if id(parameter) not in held]
    if missing:
        held_count = len(trainable) - len(missing)
        raise StudyError(
            f"{name} holds {held_count} of the {len(trainable)} trainable parameters, not "
            f"{first_few(missing)}: give it all of them, or set requires_grad = False for those that must "
            "not change"
        )


def set_mode(optimizer: Optimizer, *, training: bool) -> None:
    """Call ``train()`` or ``eval()`` of a schedule-free optimizer: it is evaluated elsewhere than it trains.

    Defazio et al., *The Road Less Scheduled*, 2024 (arXiv 2405.15682). Other optimizers have no modes.
    """
    change = getattr(optimizer, "train" if training else "eval", None)
    if callable(change):
        change()


def check_small_batches(model: nn.Module, split: Split, schedule: Schedule) -> None:
    """Refuse a schedule whose last batch is one image where batch norm needs more values per channel.

    Costs a forward pass of one image where there is such a batch; model and random state stay as they are.

    Raises:
        StudyError: training would fail at that batch.
    """
    if 1 not in _batch_sizes(len(split), schedule) or not any(
        isinstance(m, _BATCH_NORMS) for m in model.modules()
    ):
        return
    devices = [split.device] if split.device.type == "cuda" else []  # dropout draws from its generator
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        try:
            copy.deepcopy(model).train()(split.images(slice(1)))
        except ValueError as error:
            raise StudyError(
                f"task.train = {len(split)}, schedule.batch = {schedule.batch} and schedule.accumulate = "
                f"{schedule.accumulate} leave a batch of 1 image, on which batch norm cannot train: {error}; "
                f"change one of the three"
            ) from error


def _batch_sizes(n: int, schedule: Schedule) -> set[int]:
    """The sizes of all micro-batches of an epoch, as `torch.Tensor.chunk` cuts them."""
    sizes: set[int] = set()
    for batch in {min(schedule.batch, n), n % schedule.batch} - {0}:
        size = -(-batch // schedule.accumulate)
        sizes |= {size, batch - size * ((batch - 1) // size)}
    return sizes
