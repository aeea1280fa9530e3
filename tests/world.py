"""A world of gloo processes on this machine, for tests of what is distributed."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils._python_dispatch import TorchDispatchMode

import cdgrad

TIMEOUT = timedelta(seconds=60)
"""A rank that waits longer for the others fails, and with it the world."""


def free_address() -> dict[str, str]:
    """Where ranks can meet on this machine, as their environment has it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}


def in_worlds(sizes: tuple[int, ...], *checks: Callable[[], None]) -> None:
    """Run each check, a function of a module, on every rank of worlds of these sizes, largest first.

    The first failure of a rank is raised. Smaller worlds are made of the same processes, and where that is
    safe one process imports everything and forks them, because starting them takes most of the time.
    """
    with TemporaryDirectory() as folder:
        arguments = sorted(sizes, reverse=True), folder, checks
        if sys.platform == "linux":
            mp.spawn(_fork, arguments, nprocs=1)
        else:
            mp.spawn(_rank, arguments, nprocs=max(sizes))


def _fork(_: int, sizes: list[int], folder: str, checks: tuple[Callable[[], None], ...]) -> None:
    """The ranks; each would otherwise import the compiler, and load or compile the kernels, by itself."""
    torch.set_num_threads(1)
    import_module("torch._dynamo")
    for metric in ("reweighted:lam=2", "sobolev:lam=1", "mean-sobolev:lam=1"):
        cdgrad.channel_directed_([torch.ones(2, 2, dtype=torch.float64)], metric)
    mp.start_processes(_rank, (sizes, folder, checks), nprocs=max(sizes), start_method="fork")


def _rank(rank: int, sizes: list[int], folder: str, checks: tuple[Callable[[], None], ...]) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    for size in [size for size in sizes if rank < size]:
        init_method = Path(folder, str(size)).as_uri()
        dist.init_process_group("gloo", init_method=init_method, rank=rank, world_size=size, timeout=TIMEOUT)
        for check in checks:
            try:
                check()
            except BaseException as error:
                error.add_note(f"in {check.__name__} on rank {rank} of {size}")
                raise
        dist.destroy_process_group()


class Traffic(TorchDispatchMode):
    """Counts the collectives issued inside it, and the bytes of what they return on this rank."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("c10d", "_c10d_functional"):
            tensors = [x for x in torch.utils._pytree.tree_leaves(args[0]) if isinstance(x, torch.Tensor)]
            self.calls.append((func.__name__, sum(x.numel() * x.itemsize for x in tensors)))
        return func(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    """Lists the operations dispatched inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))
