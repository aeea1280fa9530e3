"""The operator of an attachment: gradients of targets in, replaced in place; no hooks.

What depends on shapes, strides, metrics and backends is computed once for the same targets
(`cdgrad.ops.prepare`), and again when the gradients no longer have these forms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from typing import Literal, NamedTuple, TypeGuard

import torch
from torch import Tensor

from cdgrad._torch_private import FormCheck, foreach_norm
from cdgrad.dtensors import channel_mesh_dim, is_dtensor, local_part, whole_norms
from cdgrad.machine import has_float64
from cdgrad.metrics import L2, Metric
from cdgrad.ops import graphs, prepare
from cdgrad.ops.addresses import remember
from cdgrad.ops.prepared import Prepared
from cdgrad.ops.rescaling import Rescaling
from cdgrad.refusals import check_gradient
from cdgrad.selection import Target

Rescale = Literal["none", "norm"]
Job = tuple[Target, Tensor, Metric]
"""A target, its gradient and the metric to direct it in."""
Operate = Callable[[Sequence[Job]], None]
"""Replaces each gradient in place."""

_MOST_PLANS = 256  # an operator that takes one target at a time has one for each


class DirectedInMetrics:
    """What `cdgrad.attach` does: each gradient g becomes P g in its metric, rescaled if so chosen."""

    def __init__(self, rescale: Rescale = "none", backend: str = "auto") -> None:
        self._rescale: Rescale = rescale
        self._backend = backend
        self._plans: dict[tuple[Target, ...], _Plan] = {}
        self._captured: list[_Plan] = []

    def __call__(self, jobs: Sequence[Job]) -> None:
        """Direct the gradients.

        Raises:
            TypeError, ValueError: as `cdgrad.channel_directed_`; nothing is written then.
        """
        if jobs:
            self.direct(*zip(*jobs, strict=True))

    def direct(
        self, targets: tuple[Target, ...], grads: Sequence[Tensor], metrics: tuple[Metric, ...]
    ) -> None:
        """The same, of jobs column by column."""
        if not self.repeat(grads, targets, metrics):
            plan = _Plan(targets, grads, metrics, self._rescale, self._backend)
            self._run(remember(self._plans, targets, plan, _MOST_PLANS), grads)

    def repeat(
        self, grads: Sequence[Tensor | None], targets: tuple[Target, ...], metrics: tuple[Metric, ...]
    ) -> TypeGuard[Sequence[Tensor]]:
        """`direct` if every target has a gradient of the form that it had before; else returns False."""
        plan = self._plans.get(targets)
        if plan is None or not plan.fits(grads, metrics):
            return False
        self._run(plan, grads)
        return True

    def _run(self, plan: _Plan, grads: Sequence[Tensor]) -> None:
        if graphs.capturing() and plan not in self._captured:
            self._captured.append(plan)
        plan.run(grads)

    def reach_replays(self, metric_of: Mapping[Target, Metric]) -> bool:
        """Give captured CUDA graphs other metrics; False if they cannot see them, and nothing changed."""
        metrics = [tuple(metric_of[target] for target in plan.targets) for plan in self._captured]
        plans = list(zip(self._captured, metrics, strict=True))
        if not all(
            plan.metrics == new or (plan.replays_follow and plan.can_follow(new)) for plan, new in plans
        ):
            return False
        for plan, new in plans:
            plan.follow(new)
        return True


class _Part(NamedTuple):
    """The targets that share a metric."""

    chosen: list[bool]  # which of the targets
    targets: list[Target]
    prepared: Prepared


class _Plan:
    """The operator on the gradients of some targets.

    Attributes:
        targets: the targets.
        metrics: the metric of each.
    """

    def __init__(
        self,
        targets: tuple[Target, ...],
        grads: Sequence[Tensor],
        metrics: tuple[Metric, ...],
        rescale: Rescale,
        backend: str,
    ) -> None:
        for target, grad in zip(targets, grads, strict=True):
            check_gradient(target.name, grad)
        self.targets, self.metrics = targets, metrics
        self._rescale = rescale
        self._directed = [metric != L2() for metric in metrics]
        self._have_forms = FormCheck(grads)
        self._parts: list[_Part] = []
        for metric in dict.fromkeys(compress(metrics, self._directed)):
            chosen = [each == metric for each in metrics]
            members = list(compress(targets, chosen))
            names, tensors, dims, groups = zip(
                *_intervals(members, list(compress(grads, chosen))), strict=True
            )
            prepared = prepare(tensors, metric, dims, groups, backend, names)
            self._parts.append(_Part(chosen, members, prepared))
        # Where one metric is all there is to do, its preparation takes the gradients as they are.
        alone = rescale == "none" and len(self._parts) == 1 and all(self._directed)
        whole = not any(target.sizes for target in targets)
        kept = list(compress(grads, self._directed)) if rescale == "norm" else []
        self._rescaling = Rescaling([local_part(grad) for grad in kept], backend)
        self._alone: Prepared | None = self._parts[0].prepared if alone and whole else None

    def fits(
        self, grads: Sequence[Tensor | None], metrics: tuple[Metric, ...]
    ) -> TypeGuard[Sequence[Tensor]]:
        """Whether `run` can take these gradients; metrics that differ in lam only are taken over."""
        if not self._have_forms(grads):
            return False
        if metrics != self.metrics:
            if not self.can_follow(metrics):
                return False
            self.follow(metrics)
        return True

    @property
    def replays_follow(self) -> bool:
        """Whether replays of a captured CUDA graph see what `follow` takes over."""
        return all(part.prepared.replays_follow for part in self._parts)

    def can_follow(self, metrics: tuple[Metric, ...]) -> bool:
        """Whether the metrics differ from the present ones in lam only, alike within each part."""
        for part in self._parts:
            first, *others = compress(metrics, part.chosen)
            if not part.prepared.can_become(first) or any(other != first for other in others):
                return False
        return self._directed == [metric != L2() for metric in metrics]

    def follow(self, metrics: tuple[Metric, ...]) -> None:
        """Take over metrics that differ in lam only."""
        for part in self._parts:
            metric = next(compress(metrics, part.chosen))
            if metric != part.prepared.metric:  # for a captured graph it is a wait for the device
                part.prepared.metric = metric
        self.metrics = metrics

    def run(self, grads: Sequence[Tensor]) -> None:
        """The operator in place."""
        if self._alone is not None:
            self._alone.run(grads)
            return
        with torch.no_grad():
            if self._rescale == "none":
                self._run_parts(grads)
                return
            directed = list(compress(grads, self._directed))
            parts = list(map(local_part, directed))
            before = _norms(parts)
            self._run_parts(grads)
            old, new = whole_norms(directed, before, _norms(parts))
            self._rescaling.run(parts, old, new)

    def _run_parts(self, grads: Sequence[Tensor]) -> None:
        for part in self._parts:
            part.prepared.run(_tensors(part.targets, list(compress(grads, part.chosen))))


def _tensors(targets: Sequence[Target], grads: Sequence[Tensor]) -> Sequence[Tensor]:
    """The gradients, or their blocks where these differ in size."""
    if not any(target.sizes for target in targets):
        return grads
    return [tensor for _, tensor, _, _ in _intervals(targets, grads)]


def _intervals(targets: Sequence[Target], grads: Sequence[Tensor]) -> list[tuple[str, Tensor, int, int]]:
    """(name, tensor, channel axis, groups): the gradients, or their blocks where these differ in size."""
    return [
        interval for target, grad in zip(targets, grads, strict=True) for interval in _blocks(target, grad)
    ]


def _blocks(target: Target, grad: Tensor) -> list[tuple[str, Tensor, int, int]]:
    name = f"the gradient of {target.name}"
    if not target.sizes:
        return [(name, grad, target.dim, target.groups)]
    if is_dtensor(grad):
        if channel_mesh_dim(grad, target.dim, target.name) is not None:
            raise ValueError(
                f"{target.name}: blocks of different sizes {list(target.sizes)} on a channel axis that is "
                "sharded; use equal blocks, shard another axis (fully_shard's shard_placement_fn), or "
                "exclude it"
            )
        grad = grad.to_local()
    return [(name, block, target.dim, 1) for block in torch.split(grad, list(target.sizes), target.dim)]


def _norms(grads: list[Tensor]) -> list[Tensor]:
    """L2 norms; in float64 where the device has it, so that scaled or tiny gradients keep theirs."""
    exact = torch.float64 if all(has_float64(grad.device) for grad in grads) else torch.float32
    return list(foreach_norm(grads, 2.0, exact))
