"""The operator for many steps: what depends on the forms of the gradients is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from cdgrad._torch_private import FormCheck
from cdgrad.dtensors import is_dtensor, local_part
from cdgrad.metrics import L2, Metric, differ_in_lam_at_most
from cdgrad.ops import local
from cdgrad.ops.addresses import DistinctAddresses, chosen
from cdgrad.ops.cpu import launch as cpu
from cdgrad.ops.overlaps import refuse_overlaps
from cdgrad.ops.sharded import operator as sharded
from cdgrad.ops.versions import wrote_behind_autograd

if TYPE_CHECKING:
    from cdgrad.ops.triton.launch import Plan


class Prepared:
    """The operator in place on gradients of given forms: shapes, strides, dtypes and devices.

    `matches` checks whether gradients have these forms; `run` does not check again. Their addresses may
    change. `cdgrad.ops.prepare` checks the arguments and returns it.
    """

    def __init__(
        self,
        grads: Sequence[torch.Tensor],
        metric: Metric,
        dims: Sequence[int],
        groups: Sequence[int],
        backend: str,
        names: Sequence[str] = (),
    ) -> None:
        self._names = names
        self._metric, self._dims, self._groups, self._backend = metric, dims, groups, backend
        self._idle = metric == L2()
        self.matches = FormCheck(grads)
        self._members: dict[str, list[int]] = {}
        self._plan: Plan | None = None
        self._sharded = any(map(is_dtensor, grads))
        if self._sharded:
            return
        self._addresses_of = DistinctAddresses(grads, names)
        for i, job in enumerate(zip(grads, dims, groups, strict=True)):
            self._members.setdefault(local.choose(backend, metric, *job)[0], []).append(i)
        if "triton" in self._members:
            from cdgrad.ops.triton.launch import Plan  # needs Triton, which is not on every machine

            self._plan = Plan(self._jobs(grads, "triton"), metric)

    @property
    def metric(self) -> Metric:
        """The metric. Another lam can be set, which captured CUDA graphs of the Triton kernels follow."""
        return self._metric

    @metric.setter
    def metric(self, metric: Metric) -> None:
        """Raises ValueError: the family or the boundary condition is another one."""
        if not self.can_become(metric):
            raise ValueError(f"only lam can change: {self._metric} cannot become {metric}; prepare again")
        if self._plan is not None:
            self._plan.metric = metric
        self._metric = metric

    def can_become(self, metric: Metric) -> bool:
        """Whether `metric` differs from the present one in lam at most."""
        return differ_in_lam_at_most(metric, self._metric)

    @property
    def replays_follow(self) -> bool:
        """Whether replays of a captured CUDA graph see another lam."""
        return set(self._members) == {"triton"}

    def run(self, grads: Sequence[torch.Tensor]) -> None:
        """The operator in place.

        Raises:
            ValueError: the gradients overlap in memory.
            RuntimeError: a CUDA graph is being captured before `run` ran once outside, with
                this metric.
        """
        if self._sharded:
            refuse_overlaps([local_part(grad) for grad in grads], self._names)
            sharded.directed_(grads, self._metric, self._dims, self._groups, self._backend, self._names)
            return
        if self._idle:
            return
        addresses = self._addresses_of(grads)
        if self._plan is not None:
            members = self._members["triton"]
            whole = len(members) == len(grads)
            self._plan.run_at(addresses if whole else chosen(addresses, members))
            wrote_behind_autograd(grads if whole else [grads[i] for i in members])
        if "cpu" in self._members:
            cpu.directed_(self._jobs(grads, "cpu"), self._metric)
        if "eager" in self._members:
            local.run_eager(self._jobs(grads, "eager"), self._metric)

    def _jobs(self, grads: Sequence[torch.Tensor], backend: str) -> list[tuple[torch.Tensor, int, int]]:
        return [(grads[i], self._dims[i], self._groups[i]) for i in self._members[backend]]
