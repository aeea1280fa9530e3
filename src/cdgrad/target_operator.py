"""The operator of an attachment: gradients of targets in, replaced in place; no hooks, no state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from cdgrad.dtensors import channel_mesh_dim, is_dtensor, local_part, whole_norms
from cdgrad.metrics import L2, Metric
from cdgrad.ops import channel_directed_
from cdgrad.ops.local import distinct
from cdgrad.selection import Target

Rescale = Literal["none", "norm"]
Job = tuple[Target, Tensor, Metric]
"""A target, its gradient and the metric to direct it in."""
Operate = Callable[[Sequence[Job]], None]
"""Replaces each gradient in place."""


def directed_in_metrics(rescale: Rescale = "none", backend: str = "auto") -> Operate:
    """What `cdgrad.attach` does: each gradient g becomes P g in its metric, rescaled if so chosen."""

    def operate(jobs: Sequence[Job]) -> None:
        jobs = [job for job in jobs if job[2] != L2()]
        grads = [grad for _, grad, _ in jobs]
        parts = list(map(local_part, grads))
        before = _norms(parts) if rescale == "norm" else []
        by_metric: dict[Metric, list[tuple[Tensor, int, int]]] = {}
        for target, grad, metric in jobs:
            by_metric.setdefault(metric, []).extend(_intervals(target, grad))
        for metric, intervals in by_metric.items():
            tensors, dims, groups = zip(*intervals, strict=True)
            channel_directed_(tensors, metric, dims, groups, backend=backend)
        if rescale == "norm":
            for part, old, new in zip(parts, *whole_norms(grads, before, _norms(parts)), strict=True):
                distinct(part).mul_(torch.where(new > 0, old / new, 1.0))

    return operate


def _intervals(target: Target, grad: Tensor) -> list[tuple[Tensor, int, int]]:
    """(tensor, channel axis, groups): the gradient, or its blocks where they differ in size."""
    if not target.sizes:
        return [(grad, target.dim, target.groups)]
    if is_dtensor(grad):
        if channel_mesh_dim(grad, target.dim, target.name) is not None:
            raise ValueError(
                f"{target.name}: blocks of different sizes {list(target.sizes)} on a channel axis that is "
                "sharded; use equal blocks, shard another axis (fully_shard's shard_placement_fn), or "
                "exclude it"
            )
        grad = grad.to_local()
    return [(block, target.dim, 1) for block in torch.split(grad, list(target.sizes), target.dim)]


def _norms(grads: list[Tensor]) -> list[Tensor]:
    """L2 norms; in float64 where the device has it, so that scaled or tiny gradients keep theirs."""
    return [
        torch.linalg.vector_norm(  # pyright: ignore[reportUnknownMemberType]
            grad, dtype=torch.float32 if grad.device.type == "mps" else torch.float64
        )
        for grad in grads
    ]
