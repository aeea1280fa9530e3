"""The operator on the same tensors again and again: what their forms decide is found once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from cdgrad.dtensors import is_dtensor
from cdgrad.metrics import L2, Metric
from cdgrad.ops import local
from cdgrad.ops.cpu import launch as cpu
from cdgrad.ops.sharded import operator as sharded

if TYPE_CHECKING:
    from cdgrad.ops.triton.launch import Plan


class Prepared:
    """The operator in place on gradients of given forms: shapes, strides, dtypes and devices.

    `matches` says whether gradients have these forms; `run` does not look again. Their memory may be
    another one. `cdgrad.ops.prepare` checks the arguments and returns it.
    """

    def __init__(
        self,
        grads: Sequence[torch.Tensor],
        metric: Metric,
        dims: Sequence[int],
        groups: Sequence[int],
        backend: str,
    ) -> None:
        self._metric, self._dims, self._groups, self._backend = metric, dims, groups, backend
        self._forms = _forms(grads)
        self._members: dict[str, list[int]] = {}
        self._plan: Plan | None = None
        self._sharded = any(map(is_dtensor, grads))
        if not self._sharded:
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
        boundaries = [getattr(each, "boundary", None) for each in (metric, self._metric)]
        if type(metric) is not type(self._metric) or boundaries[0] != boundaries[1]:
            raise ValueError(f"only lam can change, from {self._metric} and not to {metric}; prepare anew")
        if self._plan is not None:
            self._plan.metric = metric
        self._metric = metric

    def matches(self, grads: Sequence[torch.Tensor]) -> bool:
        """Whether `run` can take these gradients."""
        return _forms(grads) == self._forms

    def run(self, grads: Sequence[torch.Tensor]) -> None:
        """The operator in place.

        Raises:
            RuntimeError: a CUDA graph is being captured before `run` ran once outside.
        """
        if self._sharded:
            sharded.directed_(grads, self._metric, self._dims, self._groups, self._backend)
            return
        if self._metric == L2():
            return
        if self._plan is not None:
            self._plan.run([grads[i] for i in self._members["triton"]])
        if "cpu" in self._members:
            cpu.directed_(self._jobs(grads, "cpu"), self._metric)
        if "eager" in self._members:
            local.run_eager(self._jobs(grads, "eager"), self._metric)

    def _jobs(self, grads: Sequence[torch.Tensor], backend: str) -> list[tuple[torch.Tensor, int, int]]:
        return [(grads[i], self._dims[i], self._groups[i]) for i in self._members[backend]]


def _forms(grads: Sequence[torch.Tensor]) -> list[object]:
    return [(grad.shape, grad.stride(), grad.dtype, grad.device, is_dtensor(grad)) for grad in grads]
