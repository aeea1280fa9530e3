"""The gradients of an attachment's targets: each is directed once, in the metric of the step."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import compress, repeat
from typing import NamedTuple, SupportsIndex

import torch
from torch import Tensor
from torch.optim import Optimizer

from cdgrad._torch_private import outside_graphs
from cdgrad.directed_gradients import DirectedGradients
from cdgrad.held_targets import HeldTargets
from cdgrad.metric_schedule import Metrics, Schedule, metric_of, scheduled
from cdgrad.metrics import L2, Metric
from cdgrad.ops import graphs
from cdgrad.refusals import check_gradient
from cdgrad.selection import Target
from cdgrad.step_probe import StepProbe
from cdgrad.target_operator import DirectedInMetrics, Job, Operate

_grad_of = operator.attrgetter("grad")
_WHEN = "call handle.statistics() after the backward pass and before handle.apply() or optimizer.step()"


class NoGradientError(RuntimeError):
    """There is nothing to measure: before the backward pass, or while all weights are frozen."""


class _Gradients(NamedTuple):
    """Targets with their gradients, column by column: a list of jobs costs time in every step."""

    indices: Sequence[int]
    targets: tuple[Target, ...]
    grads: Sequence[Tensor]
    metrics: tuple[Metric, ...]

    def where(self, chosen: Sequence[bool]) -> _Gradients:
        """A part of them."""
        return _Gradients(
            list(compress(self.indices, chosen)),
            tuple(compress(self.targets, chosen)),
            list(compress(self.grads, chosen)),
            tuple(compress(self.metrics, chosen)),
        )

    def jobs(self) -> list[Job]:
        return list(zip(self.targets, self.grads, self.metrics, strict=True))


class TargetGradients:
    """The gradients of the targets that an optimizer holds, and which of them are directed already.

    Attributes:
        held: the targets.
        memory: which gradients are directed already.
        steps: the number of steps that ended.
        probe: checks the first step; None once the question is answered.
    """

    def __init__(self, held: HeldTargets, metrics: Metrics, operate: Operate, *, always: bool) -> None:
        self.held = held
        self.steps = 0
        self.probe: StepProbe | None = None if always else StepProbe()
        self._operate = operate
        self._always = always  # under L2, too
        self._enabled = True
        self._captured = False
        self._schedule: Schedule | None = None
        self._set(metrics)
        self.memory = DirectedGradients(held.selection.targets)

    @property
    def metrics(self) -> Metrics:
        """The metric, or metrics by patterns."""
        return self._metrics

    @metrics.setter
    def metrics(self, metrics: Metrics) -> None:
        if self._captured and metrics != self._metrics:
            new = dict(zip(self.held.selection.targets, metric_of(metrics, self.held.selection), strict=True))
            if not (isinstance(self._operate, DirectedInMetrics) and self._operate.reach_replays(new)):
                self._refuse_after_capture("handle.metric")
        self._set(metrics)

    @property
    def enabled(self) -> bool:
        """Whether steps direct gradients."""
        return self._enabled

    @enabled.setter
    @outside_graphs
    def enabled(self, enabled: bool) -> None:
        self.check_enabled(enabled)
        self._enabled = enabled

    def check_enabled(self, enabled: object) -> None:
        """Refuse what `enabled` cannot be set to."""
        if not isinstance(enabled, bool):
            raise TypeError(f"handle.enabled is True or False, got {enabled!r}")
        if enabled != self._enabled:
            self._refuse_after_capture("handle.enabled")

    def schedule(self, fn: Schedule | None) -> None:
        """The metric as a function of the step; None for the present one."""
        self._refuse_after_capture("handle.schedule")
        if fn is not None:
            metric_of(scheduled(fn, self.steps, self._metrics), self.held.selection)
        self._schedule = fn

    def refresh(self, optimizer: Optimizer, *, watch: bool) -> None:
        """Follow the optimizer's groups, frozen parameters and lazy layers.

        With `watch`, backward passes are recorded from now on.
        """
        if self.held.refresh(optimizer):
            self.memory.close()
            self.memory = DirectedGradients(self.held.selection.targets)
        if self.held.indices is not self._indices:
            self._set(self._metrics)
        if watch:
            self.memory.listen()

    def direct(self) -> None:
        """Direct every gradient that is not directed yet, and remember it."""
        capturing = graphs.capturing()
        if capturing and self._schedule is not None:
            raise RuntimeError(
                "a CUDA graph is being captured, and its replays would not see handle.schedule; capture "
                "with a constant metric, or do not capture the step"
            )
        self._follow_schedule()
        if self._active() and not self._repeat():
            self._direct_pending()
        self._captured = self._captured or capturing  # only now: a capture that fails has no replays

    def _direct_pending(self) -> None:
        pending = self._pending()
        if not pending.targets:
            return
        if self.probe is not None:
            self.probe.before_operator(pending.jobs())
        self._operate_on(pending)
        self.memory.add(pending.indices, pending.grads)

    def missed(self) -> Target | None:
        """A target whose gradient should be directed and is not."""
        if len(self.memory) >= len(self.held.targets) or not self._active():
            return None
        pending = self._pending().targets
        return pending[0] if pending else None

    @torch.no_grad()
    def compare(self) -> list[tuple[Target, Tensor, Tensor]]:
        """Each target with its gradient and a copy of it, directed in the metric of this step.

        Raises:
            NoGradientError: no weight has a gradient.
            RuntimeError: the gradients are directed already.
        """
        gradients = self._with_gradients()
        if not gradients.targets:
            raise NoGradientError(f"no weight that this handle directs has a gradient; {_WHEN}")
        if any(self.memory.is_directed(i) or self.memory.is_used(i) for i in gradients.indices):
            raise RuntimeError(f"these gradients are directed already; {_WHEN}")
        present = self._metrics
        try:
            self._follow_schedule()
            gradients = self._with_gradients()
            copies = gradients._replace(grads=[grad.detach().clone() for grad in gradients.grads])
            if self._active():
                self._operate_on(copies)
        finally:
            self._set(present)
        return list(zip(gradients.targets, gradients.grads, copies.grads, strict=True))

    def forget(self, operate: Operate) -> None:
        """Drop all references to parameters."""
        self.memory.close()
        self.held.forget()
        self.memory = DirectedGradients(())
        self._operate = operate
        self._held_metrics = ()

    def _set(self, metrics: Metrics) -> None:
        metric_by_index = metric_of(metrics, self.held.selection)
        self._metrics = metrics
        self._indices = self.held.indices  # of these metrics: a refused one is refused in every step
        self._held_metrics = tuple([metric_by_index[i] for i in self._indices])
        self._changes = self._always or any(metric != L2() for metric in metric_by_index)

    def _follow_schedule(self) -> None:
        if self._schedule is not None:
            self._set(scheduled(self._schedule, self.steps, self._metrics))

    def _repeat(self) -> bool:
        """Direct all, if they have the forms of the last step: one check for all costs the least time."""
        if self.probe is not None or not isinstance(self._operate, DirectedInMetrics) or len(self.memory):
            return False
        held = self.held
        grads: list[Tensor | None] = list(map(_grad_of, held.params))
        if not self._operate.repeat(grads, held.targets, self._held_metrics):
            return False
        self.memory.add(held.indices, grads)
        return True

    def _operate_on(self, gradients: _Gradients) -> None:
        if isinstance(self._operate, DirectedInMetrics):
            self._operate.direct(*gradients[1:])
            return
        for target, grad in zip(gradients.targets, gradients.grads, strict=True):
            check_gradient(target.name, grad)
        with torch.no_grad():
            self._operate(gradients.jobs())

    def _with_gradients(self) -> _Gradients:
        """The held targets that have a gradient."""
        held = self.held
        grads = list(map(_grad_of, held.params))
        gradients = _Gradients(held.indices, held.targets, grads, self._held_metrics)
        if all(map(operator.is_not, grads, repeat(None))):
            return gradients
        return gradients.where([grad is not None for grad in grads])

    def _pending(self) -> _Gradients:
        """Those whose gradient is not directed yet."""
        gradients = self._with_gradients()
        if not len(self.memory):
            return gradients
        directed = set(self.memory.indices)
        return gradients.where([i not in directed for i in gradients.indices])

    def _active(self) -> bool:
        return self._enabled and self._changes

    def _refuse_after_capture(self, what: str) -> None:
        if self._captured:
            raise RuntimeError(
                f"{what} was changed after a CUDA graph captured a step, and replays would not see it; "
                "attach again, and capture the step again"
            )


def number_of_steps(steps: object) -> int:
    """What `handle.steps` can be set to."""
    if not isinstance(steps, SupportsIndex) or operator.index(steps) < 0:
        raise ValueError(f"handle.steps is a number of steps, an integer of at least 0, got {steps!r}")
    return operator.index(steps)
