"""`attach` links an optimizer to a metric and returns the user's handle.

`cdgrad.held_targets` finds the targets that the optimizer holds, `cdgrad.target_gradients` directs their
gradients, and the hooks of `cdgrad.step_hooks` determine when.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from cdgrad._torch_private import outside_graphs
from cdgrad.diagnostics import gradient_statistics
from cdgrad.dtensors import channel_mesh_dim, is_dtensor
from cdgrad.held_targets import HeldTargets
from cdgrad.messages import first_few
from cdgrad.metric_schedule import Metrics, Schedule, as_metrics, text_of
from cdgrad.metrics import Metric
from cdgrad.name_patterns import Patterns
from cdgrad.options import Options
from cdgrad.refusals import check_optimizer, refuse_partitions
from cdgrad.selection import Blocks, Direction, Selection, has_lazy, warn_of_nothing
from cdgrad.step_hooks import StepHooks
from cdgrad.target_gradients import TargetGradients, number_of_steps
from cdgrad.target_operator import DirectedInMetrics, Operate, Rescale

# The optimizer's hooks keep the gradients' owners alive, even if the user drops the handle.
_ATTACHED: weakref.WeakKeyDictionary[Optimizer, list[weakref.ref[TargetGradients]]] = (
    weakref.WeakKeyDictionary()
)


def attach(
    optimizer: Optimizer,
    model: nn.Module,
    metric: Metric | str | Mapping[str, Metric | str],
    *,
    direction: Direction = "output",
    linear: bool = False,
    include: Patterns = None,
    exclude: Patterns = None,
    blocks: Blocks | None = None,
    rescale: Rescale = "none",
    backend: str = "auto",
) -> Attachment:
    """Let `optimizer` see the gradients of `model`'s convolutions in `metric`.

    From now on each ``optimizer.step()`` first replaces, in place, the gradient g of every selected
    weight by its Riesz representative P g in the metric (`cdgrad.channel_directed`). With a closure,
    every evaluation inside the step is followed by the same. Nothing is wrapped or subclassed, and the
    optimizer's state dict does not change. The operator is linear, so it commutes with loss scaling,
    accumulation and averaging over workers. Lazy layers are selected in the first step.

    Args:
        optimizer: any `torch.optim.Optimizer` whose step runs its hooks.
        model: the module whose weights the optimizer holds.
        metric: a metric or its text, such as ``"reweighted:lam=3"``; or several, by shell patterns of
            parameter names, of which the first that matches holds: ``{"layer1.*": "sobolev:lam=0.01",
            "*": "reweighted:lam=3"}``. What none matches keeps the ordinary gradient.
        direction: the axis to direct along, see `cdgrad.select`.
        linear: direct the weights of `torch.nn.Linear` too.
        include: shell patterns of parameter names to process.
        exclude: shell patterns of parameter names to leave alone.
        blocks: parameters with several channel axes one after the other, see `cdgrad.select`.
        rescale: ``"none"``, or ``"norm"``: P g is scaled to the L2 norm of g, tensor by tensor, which
            separates the direction from the size of the step. Zero stays zero.
        backend: what computes the operator, see `cdgrad.channel_directed_`.

    Returns:
        An `Attachment`; `print` it for a table of what is processed and what is not, and why.

    Raises:
        TypeError: not an optimizer, a module or a metric.
        ValueError: an unknown option; a pattern without a match, or that matches nothing that can be
            processed; a parameter that is already attached to this optimizer; an optimizer that holds
            none of the selected parameters, that never runs its hooks, or that exchanges gradients with
            other workers inside its step; weights cut over ranks so that their channels are lost.

    Warns:
        UserWarning: the model has nothing to direct.

    Cost: linear in the number of weights, no optimizer state.
    Source: arXiv 2008.10766.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.LazyLinear(10))
    >>> optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    >>> handle = attach(optimizer, model, "reweighted:lam=3")
    >>> print(handle)
    reweighted:lam=3 along output, rescale none, on SGD
    <BLANKLINE>
    processed  shape    axis  groups
    0.weight   8x3x3x3  0     1
    <BLANKLINE>
    left alone  because
    0.bias      bias
    2.weight    Linear: off by default, linear=True processes it
    2.bias      bias
    """
    options = Options(direction, linear, include, exclude, blocks, rescale, backend)
    refuse_partitions(optimizer, model)
    return attach_operator(optimizer, model, as_metrics(metric), options)


def attach_operator(
    optimizer: Optimizer,
    model: nn.Module,
    metrics: Metrics,
    options: Options,
    selection: Selection | None = None,
    operate: Operate | None = None,
) -> Attachment:
    """`attach` with an operator, and a selection, of one's own: `operate` runs under L2, too."""
    chosen = options.select(model) if selection is None else selection
    check_optimizer(optimizer, {t.param: t.name for t in chosen.targets}, _attached_parameters)
    for target in chosen.targets:
        if is_dtensor(target.param):
            channel_mesh_dim(target.param, target.dim, target.name)
    if selection is None and not chosen.targets and not has_lazy(chosen):
        warn_of_nothing(model, chosen, options.direction, options.linear, stacklevel=4)  # of `attach`
    return Attachment(optimizer, model, chosen, metrics, options, operate)


class Attachment:
    """The link between an optimizer and a metric, made by `attach`."""

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        selection: Selection,
        metrics: Metrics,
        options: Options,
        operate: Operate | None,
    ) -> None:
        _refuse_second(optimizer, selection)
        self._optimizer: Callable[[], Optimizer | None] = lambda: optimizer
        self._kind = type(optimizer).__name__
        self._options = options
        self._text = ""  # the table, when it was removed
        self._gradients = TargetGradients(
            HeldTargets(optimizer, model, selection, options, _held_targets),
            metrics,
            operate or DirectedInMetrics(options.rescale, options.backend),
            always=operate is not None,
        )
        self._hooks: StepHooks | None = StepHooks(optimizer, self._gradients)
        _ATTACHED.setdefault(optimizer, []).append(weakref.ref(self._gradients))

    @property
    def selection(self) -> Selection:
        """What is processed and what is not, see `cdgrad.Selection`; after `remove`, only the latter."""
        return self._gradients.held.selection

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer; a removed handle does not keep it alive."""
        optimizer = self._optimizer()
        if optimizer is None:
            raise RuntimeError(f"the {self._kind} of this handle no longer exists; attach to another")
        return optimizer

    @property
    def metric(self) -> Metric | Mapping[str, Metric]:
        """The metric, or metrics by patterns, of the next step. It can be set; a schedule overrides it."""
        return self._gradients.metrics

    @metric.setter
    @outside_graphs
    def metric(self, metric: Metric | str | Mapping[str, Metric | str]) -> None:
        self._gradients.metrics = as_metrics(metric)

    @property
    def enabled(self) -> bool:
        """Whether steps direct gradients.

        Set it to False to let the optimizer see ordinary gradients, to True to continue.
        """
        return self._gradients.enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        self._gradients.enabled = enabled

    @property
    def steps(self) -> int:
        """The number of steps since `attach`, the argument of a schedule; it can be set."""
        return self._gradients.steps

    @steps.setter
    def steps(self, steps: int) -> None:
        self._gradients.steps = number_of_steps(steps)

    @property
    def options(self) -> dict[str, Any]:
        """Plain data that attaches again, ``attach(optimizer, model, **handle.options)``.

        Copies and pickles of an optimizer lose their hooks; save this beside a checkpoint.
        """
        return {"metric": text_of(self._gradients.metrics), **asdict(self._options)}

    def schedule(self, fn: Schedule | None) -> None:
        """From the next step on, use ``fn(step)``: a metric, metrics by patterns, or lam of the present ones.

        It overrides `metric`; None ends it, in the metric of the last step.

        `step` counts the steps that ended since `attach`, from 0, over all runs where `state_dict` is
        saved and loaded. A step that a gradient scaler leaves out does not count, except with a fused
        optimizer, which is stepped all the same. The function is not saved: set it again on resuming.

        Raises:
            ValueError, TypeError: the metric of the next step is not one.
        """
        self._gradients.schedule(fn)

    def state_dict(self) -> dict[str, Any]:
        """Plain data to save beside the optimizer's state: the step count, the metric, `enabled`."""
        return {"steps": self.steps, "metric": text_of(self._gradients.metrics), "enabled": self.enabled}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume where `state_dict` was taken.

        Raises:
            KeyError: an entry is missing.
            ValueError, TypeError: a bad entry; nothing is changed then.
        """
        steps, enabled = number_of_steps(state["steps"]), state["enabled"]
        self._gradients.check_enabled(enabled)
        self.metric = state["metric"]
        self.enabled, self.steps = enabled, steps

    @outside_graphs
    def statistics(self) -> dict[str, float]:
        """What the operator does to the present gradients, and how rough the weights are, for any logger.

        For every directed weight: ``NAME/norm_ratio`` |P g| / |g|, ``NAME/cosine`` of g and P g, and
        ``NAME/roughness`` of the weight (`cdgrad.diagnostics.roughness`); without a name, the first two
        of all weights as one vector. Call it between the backward pass and `apply` or the step. Nothing
        is changed.

        Raises:
            RuntimeError: no gradients, or directed ones; the handle was removed, or is a copy.

        Cost: a copy of the gradients, one application of the operator, one wait for the device.
        """
        self._check_attached()
        self._gradients.refresh(self.optimizer, watch=False)
        return gradient_statistics(self._gradients.compare())

    @outside_graphs
    def apply(self) -> None:
        """Direct the gradients now, and not again in the next step.

        For what must come after the operator and before the step, such as clipping or masking the
        directed gradient, in place or by assigning a new one. Call it once a step, after the last
        backward pass. With a closure, call it inside the closure. A later backward pass makes the
        gradient ordinary again. One that is assigned or written by hand does not: then call `apply` again.
        It leaves what is directed and was not written since.

        Raises:
            RuntimeError: the handle was removed, or is a copy of one.
        """
        self._check_attached()
        self._gradients.memory.forget_changed()
        self._gradients.refresh(self.optimizer, watch=True)
        self._gradients.direct()

    def remove(self) -> None:
        """Detach from the optimizer; further steps see ordinary gradients. Harmless when repeated.

        A removed handle keeps no parameter.
        """
        if self._hooks is None:
            return
        self._text = str(self._gradients.held.shown(self._optimizer()))
        self._hooks.remove(self._optimizer())
        self._hooks = None
        if (optimizer := self._optimizer()) is not None:
            self._optimizer = weakref.ref(optimizer)
            attached = _ATTACHED.get(optimizer, [])
            _ATTACHED[optimizer] = [ref for ref in attached if ref() is not self._gradients]
        self._gradients.forget(DirectedInMetrics())

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse what would have no effect, such as ``handle.lam = 3``."""
        if not name.startswith("_") and not hasattr(type(self), name):
            raise AttributeError(
                f"a handle has no {name!r}, and setting it would have no effect; metric, enabled and steps "
                "can be set, for example handle.metric = 'reweighted:lam=3'"
            )
        super().__setattr__(name, value)

    def __str__(self) -> str:
        metrics, options = text_of(self._gradients.metrics), self._options
        head = f"{metrics} along {options.direction}, rescale {options.rescale}, on {self._kind}"
        head += ("" if self.enabled else ", not enabled") + ("" if self._hooks else ", not attached")
        return f"{head}\n\n{self._text or self._gradients.held.shown(self._optimizer())}"

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or what was pickled, is not attached: a copied optimizer has none of the hooks."""
        kept = {key: value for key, value in self.__dict__.items() if key not in ("_optimizer", "_gradients")}
        gradients = self._gradients
        return {
            **kept,
            "_hooks": None,
            "optimizer": self._optimizer(),
            "held": gradients.held,
            "state": self.state_dict(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        optimizer, held, values = (state.pop(key) for key in ("optimizer", "held", "state"))
        self.__dict__.update(state)
        self._optimizer = weakref.ref(optimizer) if optimizer is not None else lambda: None
        self._gradients = TargetGradients(
            held, as_metrics(values["metric"]), DirectedInMetrics(), always=False
        )
        self.load_state_dict(values)

    def _check_attached(self) -> None:
        if self._hooks is None:
            raise RuntimeError(
                "this handle is not attached: it was removed, or is a copy; attach again with "
                "cdgrad.attach(optimizer, model, **handle.options)"
            )


def _refuse_second(optimizer: Optimizer, selection: Selection) -> None:
    """Each parameter is attached at most once per optimizer."""
    attached = _attached_parameters(optimizer)
    if shared := [target.name for target in selection.targets if target.param in attached]:
        raise ValueError(
            f"already attached to this optimizer: {first_few(shared)}; the "
            "operator would apply twice; set handle.metric, or call handle.remove() before attaching again"
        )


def _attached_parameters(optimizer: Optimizer) -> set[Tensor]:
    """What the attachments of an optimizer direct."""
    return {target.param for held in _held_targets(optimizer) for target in held.selection.targets}


def _held_targets(optimizer: Optimizer) -> list[HeldTargets]:
    """Those of every attachment of an optimizer."""
    return [each.held for ref in _ATTACHED.get(optimizer, []) if (each := ref()) is not None]
