"""The gradients of an attachment's targets: each is directed once, in the metric of the step."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from cdgrad.directed_gradients import DirectedGradients
from cdgrad.held_targets import HeldTargets
from cdgrad.metric_schedule import Metrics, Schedule, metric_of, scheduled
from cdgrad.metrics import L2
from cdgrad.refusals import check_gradient
from cdgrad.selection import Selection, Target
from cdgrad.step_probe import StepProbe
from cdgrad.target_operator import Job, Operate


class TargetGradients:
    """The gradients of the targets that an optimizer holds, and which of them are directed already.

    Attributes:
        held: the targets.
        memory: which gradients are directed already.
        steps: the number of steps that ended.
        probe: watches the first step; None when it has seen enough.
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
        if metrics != self._metrics:
            self._refuse_after_capture("handle.metric")
        self._set(metrics)

    @property
    def enabled(self) -> bool:
        """Whether steps direct gradients."""
        return self._enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        if enabled != self._enabled:
            self._refuse_after_capture("handle.enabled")
        self._enabled = enabled

    def schedule(self, fn: Schedule) -> None:
        """The metric as a function of the step."""
        self._refuse_after_capture("handle.schedule")
        scheduled(fn, self.steps, self._metrics)
        self._schedule = fn

    def refresh(self, optimizer: Optimizer) -> None:
        """Follow the optimizer's groups, frozen parameters and lazy layers."""
        if self.held.refresh(optimizer):
            self.memory.close()
            self._set(self._metrics)
            self.memory = DirectedGradients(self.held.selection.targets)
        self.memory.listen()

    @torch.no_grad()
    def direct(self) -> None:
        """Direct every gradient that is not directed yet, and remember it."""
        if self._schedule is not None:
            self._set(scheduled(self._schedule, self.steps, self._metrics))
        if _capturing():
            self._captured = True
            if self._schedule is not None:
                raise RuntimeError(
                    "a CUDA graph is being captured, and its replays would not see handle.schedule; capture "
                    "with a constant metric, or do not capture the step"
                )
        if not self._active() or not (pending := self._pending()):
            return
        for _, target, grad in pending:
            check_gradient(target.name, grad)
        jobs = [(target, grad, self._metric_of[i]) for i, target, grad in pending]
        if self.probe is not None:
            self.probe.before_operator(jobs)
        self._operate(jobs)
        self.memory.add([i for i, _, _ in pending], [grad for _, _, grad in pending])

    def missed(self) -> Target | None:
        """A target whose gradient should be directed and is not."""
        if len(self.memory.records) >= len(self.held.targets) or not self._active():
            return None
        pending = self._pending()
        return pending[0][1] if pending else None

    @torch.no_grad()
    def compare(self) -> list[tuple[Target, Tensor, Tensor]]:
        """Each target with its gradient and a directed copy of it.

        Raises:
            RuntimeError: the gradients are directed already.
        """
        there = self._with_gradients()
        if any(i in self.memory.records or self.memory.is_used(i) for i, _, _ in there):
            raise RuntimeError(
                "these gradients are directed already; call handle.statistics() after the backward pass and "
                "before handle.apply() or optimizer.step()"
            )
        jobs: list[Job] = [(t, g.detach().clone(), self._metric_of[i]) for i, t, g in there]
        if self._active():
            self._operate(jobs)
        return [(t, g, job[1]) for (_, t, g), job in zip(there, jobs, strict=True)]

    def forget(self, operate: Operate) -> None:
        """Keep no parameter."""
        self.memory.close()
        self.held.forget()
        self.memory = DirectedGradients(())
        self._operate = operate
        self._metric_of = metric_of(self._metrics, Selection((), ()))

    def _set(self, metrics: Metrics) -> None:
        self._metric_of = metric_of(metrics, self.held.selection)
        self._metrics = metrics

    def _with_gradients(self) -> list[tuple[int, Target, Tensor]]:
        held = zip(self.held.indices, self.held.targets, strict=True)
        return [(i, t, grad) for i, t in held if (grad := t.param.grad) is not None]

    def _pending(self) -> list[tuple[int, Target, Tensor]]:
        """The gradients that are not directed yet."""
        return [pending for pending in self._with_gradients() if pending[0] not in self.memory.records]

    def _active(self) -> bool:
        return self._enabled and (self._always or any(metric != L2() for metric in self._metric_of))

    def _refuse_after_capture(self, what: str) -> None:
        if self._captured:
            raise RuntimeError(
                f"{what} was changed after a CUDA graph captured a step, and replays would not see it; "
                "capture the step again with a handle attached anew"
            )


def _capturing() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
