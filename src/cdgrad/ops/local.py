"""The operator on ordinary tensors, in place, and the choice of its backend."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from cdgrad.metrics import L2, Metric
from cdgrad.ops import eager
from cdgrad.ops.cpu import launch as cpu

BACKENDS = ("eager", "cpu", "triton")


def directed_(jobs: Sequence[tuple[Tensor, int, int]], metric: Metric, backend: str) -> None:
    """The operator in place on (gradient, dim, groups), none of them a DTensor.

    Every backend is chosen before the first gradient is written.

    Args:
        jobs: gradients with a channel axis and a group count that they have.
        metric: a metric.
        backend: ``"auto"`` or a backend's name.

    Raises:
        ValueError: the backend cannot take a gradient.
    """
    by_backend: dict[str, list[tuple[Tensor, int, int]]] = {name: [] for name in BACKENDS}
    for job in jobs:
        by_backend[choose(backend, metric, *job)[0]].append(job)
    if metric == L2():
        return
    if by_backend["cpu"]:
        cpu.directed_(by_backend["cpu"], metric)
    if by_backend["triton"]:
        from cdgrad.ops.triton import launch  # needs Triton, which is not on every machine

        launch.directed_(by_backend["triton"], metric)
    run_eager(by_backend["eager"], metric)


def run_eager(jobs: Sequence[tuple[Tensor, int, int]], metric: Metric) -> None:
    """The operator in place, in plain torch operations."""
    with torch.no_grad():
        eager.directed_([distinct(as_channels(*job)) for job in jobs], metric)


def choose(backend: str, metric: Metric, grad: Tensor, dim: int, groups: int) -> tuple[str, str]:
    """The backend for one gradient, and why.

    Raises:
        ValueError: the one asked for cannot take it.
    """
    if backend == "eager" or isinstance(metric, L2):
        return "eager", "asked for" if backend == "eager" else "the ordinary gradient needs no work"
    if backend == "cpu" or (backend == "auto" and grad.device.type == "cpu"):
        refusal = cpu.refusal(grad, metric, dim, groups)
        if refusal is None:
            return "cpu", "fused CPU kernels, one read and one write per element"
    elif backend == "triton" or grad.device.type == "cuda":  # torch calls AMD's GPUs "cuda", too
        refusal = _triton_refusal(grad, dim, groups)
        if refusal is None:
            return "triton", "fused GPU kernel, one launch for all gradients of a dtype"
    else:
        refusal = "no fused kernel for this device"
    if backend != "auto":
        raise ValueError(f"backend={backend!r} cannot take this gradient: {refusal}; use backend='auto'")
    return "eager", refusal


def on_triton(backend: str, grad: Tensor) -> bool:
    """Whether kernels that only scale the gradient would be Triton's."""
    asked = backend == "triton" or (backend == "auto" and grad.device.type == "cuda")
    return asked and _triton_refusal(grad, 0, 1) is None


@cache
def _has_triton() -> bool:
    # Where it is missing, all folders of modules are searched: 43 microseconds for each gradient.
    return find_spec("triton") is not None


def _triton_refusal(grad: Tensor, dim: int, groups: int) -> str | None:
    if not _has_triton():
        return "Triton is not installed"
    from cdgrad.ops.triton import first_launch, launch

    return launch.refusal(grad, dim, groups) or first_launch.refusal(grad.device)


def as_channels(grad: Tensor, dim: int, groups: int) -> Tensor:
    """A view of shape (groups, channels per group, ...)."""
    channels = grad.movedim(dim, 0)
    # Splitting one axis is a view for any strides.
    return channels.view(groups, len(channels) // groups, *channels.shape[1:])


def distinct(x: Tensor) -> Tensor:
    """x with every expanded axis narrowed to the one slice in memory.

    In place this is all there is to write: the result is constant wherever x is, and a column that
    is constant along the channel is its own mean, which every metric keeps.
    """
    for axis, stride in enumerate(x.stride()):
        if stride == 0 and x.shape[axis] > 1:
            x = x.narrow(axis, 0, 1)
    return x
