"""One run on several processes that `torchrun` started, data-parallel (DDP) or fully sharded (FSDP2).

A step is the same as on one process: every rank knows the whole batch, its order and its augmentation,
and computes the gradient of its own share. DDP and FSDP2 average over ranks, so a share's loss is
weighted such that the average is the mean over the batch, whatever the shares' sizes. What differs is
rounding, dropout (ranks draw their own masks), and batch norm: its statistics in training are those of
a rank's share of a micro-batch, and the running ones are averaged over the ranks before each evaluation.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cdgrad.study import StudyError
from cdgrad.study.shown import brief
from cdgrad.study.spec import Schedule

PATIENCE = timedelta(minutes=10)
"""How long a rank waits for the others in one collective operation, before it fails."""

_ENVIRONMENT = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ranks:
    """The processes that train one network, as seen by one of them.

    Attributes:
        rank: this process, from 0.
        size: how many there are.
        kind: how they share the training; "" for a single process.
        device: the device of this process.
    """

    rank: int = 0
    size: int = 1
    kind: Literal["", "ddp", "fsdp2"] = ""
    device: str = "cpu"

    def wrap(self, model: nn.Module, schedule: Schedule) -> nn.Module:
        """What to call in training in the place of `model`, whose parameters FSDP2 shards in place.

        Raises:
            StudyError: the schedule asks for what FSDP2 cannot do here.
        """
        self.draw_apart()
        if self.kind == "ddp":
            from torch.nn.parallel import DistributedDataParallel

            # Every rank keeps the statistics of its own shares. torch 2.13 renamed the option.
            make: Any = DistributedDataParallel
            renamed = "forward_sync_buffers" in inspect.signature(make).parameters
            own_statistics = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
            return make(model, gradient_as_bucket_view=True, **own_statistics)
        if self.kind == "fsdp2":
            for option in ("ema", "channels_last", "compile"):
                if getattr(schedule, option):
                    raise StudyError(f"schedule.{option} is not supported with --parallel fsdp2; use ddp")
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(self.device.partition(":")[0], (self.size,))
            # After an evaluation, too, the parameters must be the shards that the optimizer holds.
            fully_shard(model, mesh=mesh, reshard_after_forward=True)
        return model

    def draw_apart(self, epochs: int = 0) -> None:
        """After `epochs`, let dropout draw other masks than the first rank's, whose draws stay."""
        if self.rank:
            torch.manual_seed(torch.initial_seed() + self.rank + self.size * epochs)

    def share(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, int]:
        """The part of a micro-batch that is this rank's, and how many of its images count.

        Every rank must take part in every step, so one without a share gets an image that does not count.
        """
        if self.size == 1:
            return images, labels, len(labels)
        low, high = (len(labels) * rank // self.size for rank in (self.rank, self.rank + 1))
        part = slice(low, high) if low < high else slice(0, 1)
        return images[part], labels[part], high - low

    def add_up(self, *sums: Tensor) -> None:
        """Replace each by its sum over all ranks."""
        for total in sums if self.size > 1 else ():
            dist.all_reduce(total)

    def unite_buffers(self, model: nn.Module) -> None:
        """Average the floating-point buffers, such as the running statistics of batch norm."""
        for buffer in model.buffers() if self.size > 1 else ():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer.div_(self.size)

    def state_dict(self, model: nn.Module) -> dict[str, Any]:
        """The whole state dict, on every rank, which all must call."""
        state: dict[str, Any] = model.state_dict()
        return {
            key: value.full_tensor() if hasattr(value, "full_tensor") else value
            for key, value in state.items()
        }


ALONE = Ranks()


class LostRanksError(StudyError):
    """The connection to another rank broke; the process group still stands."""


def lost_connection(error: Exception) -> bool:
    """Whether the error says that the connection to another rank broke."""
    # gloo has no class of its own for this.
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo/transport" in str(error)
    )


@contextmanager
def join(kind: Literal["ddp", "fsdp2"] | None, device: str) -> Generator[Ranks]:
    """The ranks that ``torchrun`` started, connected until the block ends; None: this process alone.

    Args:
        kind: how they share the training.
        device: ``"cpu"``, or ``"cuda"``, where each rank takes the GPU of its local number.

    Raises:
        StudyError: a kind without torchrun, or torchrun without a kind; no GPU; or, in the block, the
            connection to another rank broke.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if kind is None:
        if started > 1:
            raise StudyError(
                f"torchrun started {started} processes, which would all execute the same run; add --parallel "
                "ddp or --parallel fsdp2"
            )
        yield Ranks(device=device)
        return
    if missing := [name for name in _ENVIRONMENT if name not in os.environ]:
        raise StudyError(
            f"--parallel {kind} needs the environment that torchrun sets, and {missing[0]} is missing; start "
            "it with torchrun --nproc-per-node 2 -m cdgrad train ..."
        )
    if device != "cpu" and not torch.cuda.is_available():
        raise StudyError(f"device {device}: PyTorch finds no CUDA device; use cpu")
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if device == "cpu" else "nccl", timeout=PATIENCE)
    rank = dist.get_rank()
    try:
        yield Ranks(rank, dist.get_world_size(), kind, device)
    except RuntimeError as error:
        if lost_connection(error):
            raise LostRanksError(
                f"rank {rank} lost its connection to the other ranks and ends ({brief(error)}); see which "
                "rank failed first, then start all of them again"
            ) from error
        raise
    # Not after an error: the others may wait in a collective, and only the end of this process ends it.
    dist.destroy_process_group()
