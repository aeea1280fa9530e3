"""Hooks an optimizer so that each step sees channel-directed gradients. The only file that knows hooks.

An optimizer reads `param.grad`, so the gradient is directed in place just before: in a step pre-hook,
or, where the step evaluates a closure, after every evaluation of it. Gradients directed once are
remembered, see `cdgrad.directed_gradients`, because a step may reach the hook twice (a subclass whose
`step` calls the hooked `step` of its parent) and because the user may have directed them earlier.
"""

from __future__ import annotations

import operator
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from cdgrad import selection as selecting
from cdgrad._torch_private import outside_graphs, steps_under_way
from cdgrad.diagnostics import gradient_statistics
from cdgrad.directed_gradients import DirectedGradients
from cdgrad.dtensors import channel_mesh_dim, is_dtensor
from cdgrad.metric_schedule import Metrics, Schedule, as_metrics, metric_of, scheduled, text_of
from cdgrad.metrics import L2, Metric
from cdgrad.ops.local import BACKENDS
from cdgrad.refusals import check_gradient, check_optimizer, parameters, refuse_partitions
from cdgrad.selection import Blocks, Direction, Patterns, Selection, Skipped, Target
from cdgrad.step_probe import StepProbe
from cdgrad.target_operator import Operate, Rescale, directed_in_metrics

_ATTACHED: weakref.WeakKeyDictionary[Optimizer, list[weakref.ref[Attachment]]] = weakref.WeakKeyDictionary()


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


@dataclass(frozen=True)
class Options:
    """The keywords of `attach`."""

    direction: Direction = "output"
    linear: bool = False
    include: Patterns = None
    exclude: Patterns = None
    blocks: Blocks | None = None
    rescale: Rescale = "none"
    backend: str = "auto"

    def __post_init__(self) -> None:
        if self.rescale not in get_args(Rescale):
            raise ValueError(f"rescale must be one of {', '.join(get_args(Rescale))}, got {self.rescale!r}")
        if self.backend not in ("auto", *BACKENDS):
            raise ValueError(f"backend must be one of auto, {', '.join(BACKENDS)}, got {self.backend!r}")

    def select(self, model: nn.Module) -> Selection:
        """The targets of a model."""
        return selecting.find_targets(
            model, self.direction, self.linear, self.include, self.exclude, self.blocks
        )


def attach_operator(
    optimizer: Optimizer,
    model: nn.Module,
    metrics: Metrics,
    options: Options,
    selection: Selection | None = None,
    operate: Operate | None = None,
) -> Attachment:
    """`attach` with an operator, and a selection, of one's own: `operate` runs under L2, too."""
    own, selection = selection is not None, selection or options.select(model)
    check_optimizer(optimizer, {t.param: t.name for t in selection.targets}, _attached_parameters)
    for target in selection.targets:
        if is_dtensor(target.param):
            channel_mesh_dim(target.param, target.dim, target.name)
    if not selection.targets and not own and not selecting.has_lazy(selection):
        selecting.warn_of_nothing(model, selection, options.direction, options.linear)
    return Attachment(optimizer, model, selection, metrics, options, operate)


class Attachment:
    """The link between an optimizer and a metric, made by `attach`.

    Attributes:
        selection: what is processed and what is not, see `cdgrad.Selection`; after `remove`, only the latter.
        metric: the metric, or metrics by patterns; set it at any time between steps.
        enabled: set to False to let the optimizer see ordinary gradients, to True to continue.
        steps: the number of steps since `attach`, the argument of a schedule.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        selection: Selection,
        metrics: Metrics,
        options: Options,
        operate: Operate | None = None,
    ) -> None:
        self._optimizer: Callable[[], Optimizer | None] = lambda: optimizer
        self._kind = type(optimizer).__name__
        self._options = options
        self._operate = operate or directed_in_metrics(options.rescale, options.backend)
        self._always = operate is not None
        self._metrics = metrics
        self._schedule: Schedule | None = None
        self._enabled = True
        self._captured = False
        self.steps = 0
        self._thread: int | None = None  # the one whose step is running, or failed
        self._nested = False
        self._probe: StepProbe | None = None if self._always else StepProbe()
        self._known: set[Tensor] = parameters(optimizer).union(model.parameters())
        self._noticed: set[Tensor] = set()
        self._lazy_model = model if selecting.has_lazy(selection) else None
        self._text = ""
        self._refuse_second(optimizer, selection)
        self._take(selection)
        _ATTACHED.setdefault(optimizer, []).append(weakref.ref(self))
        self._hooks: list[RemovableHandle] = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def _take(self, selection: Selection) -> None:
        self.selection = selection
        self._directed = DirectedGradients(selection.targets)
        self._held: list[Tensor] = []
        self._live: list[tuple[int, Target]] = []
        self._metric_of = metric_of(self._metrics, selection)

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer; a removed handle does not keep it alive."""
        optimizer = self._optimizer()
        if optimizer is None:
            raise RuntimeError(f"the {self._kind} of this handle no longer exists; attach to another")
        return optimizer

    @property
    def metric(self) -> Metric | Mapping[str, Metric]:
        """The metric of the next step, or metrics by patterns; a schedule overrides it."""
        return self._metrics

    @metric.setter
    def metric(self, metric: Metric | str | Mapping[str, Metric | str]) -> None:
        metrics = as_metrics(metric)
        by_target = metric_of(metrics, self.selection)
        if metrics != self._metrics:
            self._refuse_after_capture("handle.metric")
        self._metrics, self._metric_of = metrics, by_target

    @property
    def enabled(self) -> bool:
        """Whether steps direct gradients."""
        return self._enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        if enabled != self._enabled:
            self._refuse_after_capture("handle.enabled")
        self._enabled = enabled

    @property
    def options(self) -> dict[str, Any]:
        """Plain data that attaches again, ``attach(optimizer, model, **handle.options)``.

        Copies and pickles of an optimizer lose their hooks; save this beside a checkpoint.
        """
        return {"metric": text_of(self._metrics), **asdict(self._options)}

    def schedule(self, fn: Callable[[int], float | Metric | str | Mapping[str, Metric | str]]) -> None:
        """From the next step on, use ``fn(step)``: a metric, metrics by patterns, or lam of the present ones.

        `step` counts the steps that ended since `attach`, from 0, over all runs where `state_dict` is
        saved and loaded. A step that a gradient scaler leaves out does not count, except with a fused
        optimizer, which is stepped all the same. The function is not saved: set it again on resuming.

        Raises:
            ValueError, TypeError: the metric of the next step is not one.
        """
        self._refuse_after_capture("handle.schedule")
        scheduled(fn, self.steps, self._metrics)
        self._schedule = fn

    def state_dict(self) -> dict[str, Any]:
        """Plain data to save beside the optimizer's state: the step count, the metric, `enabled`."""
        return {"steps": self.steps, "metric": text_of(self._metrics), "enabled": self._enabled}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume where `state_dict` was taken.

        Raises:
            KeyError: an entry is missing.
            ValueError, TypeError: a bad metric.
        """
        self.metric, self.enabled, self.steps = state["metric"], state["enabled"], int(state["steps"])

    def statistics(self) -> dict[str, float]:
        """What the operator does to the present gradients, and how rough the weights are, for any logger.

        For every directed weight: ``NAME/norm_ratio`` |P g| / |g|, ``NAME/cosine`` of g and P g, and
        ``NAME/roughness`` of the weight (`cdgrad.diagnostics.roughness`); without a name, the first two
        of all weights as one vector. Call it between the backward pass and `apply` or the step. Nothing
        is changed.

        Raises:
            RuntimeError: the gradients are directed already; the handle was removed, or is a copy.

        Cost: a copy of the gradients, one application of the operator, one wait for the device.
        """
        self._check_attached()
        self._refresh()
        there = self._with_gradients()
        if any(i in self._directed.records or self._directed.is_used(i) for i, _, _ in there):
            raise RuntimeError(
                "these gradients are directed already; call handle.statistics() after the backward pass and "
                "before handle.apply() or optimizer.step()"
            )
        with torch.no_grad():
            jobs = [(t, g.detach().clone(), self._metric_of[i]) for i, t, g in there]
            if self._active():
                self._operate(jobs)
        return gradient_statistics([(t, g, job[1]) for (_, t, g), job in zip(there, jobs, strict=True)])

    def apply(self) -> None:
        """Direct the gradients now, and not again in the next step.

        For what must come after the operator and before the step, such as clipping or masking the
        directed gradient, in place or by assigning a new one. Call it once a step, after the last
        backward pass. With a closure, call it inside the closure. A later backward pass makes the
        gradient ordinary again. One that is assigned by hand does not: then call `apply` again.

        Raises:
            RuntimeError: the handle was removed, or is a copy of one.
        """
        self._check_attached()
        self._directed.records.clear()
        self._refresh()
        self._direct()

    def remove(self) -> None:
        """Detach from the optimizer; further steps see ordinary gradients. Harmless when repeated.

        A removed handle keeps no parameter.
        """
        if not self._hooks:
            return
        self._text = str(self)
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if (optimizer := self._optimizer()) is not None:
            self._optimizer = weakref.ref(optimizer)
            _ATTACHED[optimizer] = [ref for ref in _ATTACHED.get(optimizer, []) if ref() is not self]
        self._directed.close()
        self._take(Selection((), self.selection.skipped))
        self._known, self._noticed, self._lazy_model = set[Tensor](), set[Tensor](), None
        self._operate = directed_in_metrics()

    def __str__(self) -> str:
        head = f"{text_of(self._metrics)} along {self._options.direction}, rescale {self._options.rescale}, "
        head += f"on {self._kind}" + ("" if self._enabled else ", not enabled")
        if self._text:
            return f"{head}, not attached\n\n{self._text.partition(chr(10) * 2)[2]}"
        optimizer = self._optimizer()
        held = parameters(optimizer) if optimizer is not None else set[Tensor]()
        targets = [t for t in self.selection.targets if t.param in held and t.param.requires_grad]
        idle = [
            Skipped(t.name, "frozen" if t.param in held else f"not held by this {self._kind}")
            for t in self.selection.targets
            if t not in targets
        ]
        new = [
            Skipped(f"{_size(param)} parameter", "new since attach: remove() this handle and attach again")
            for param in held - self._known
        ]
        shown = Selection(tuple(targets), (*idle, *self.selection.skipped, *new))
        return f"{head}{'' if self._hooks else ', not attached'}\n\n{shown}"

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or what was pickled, is not attached: a copied optimizer has none of the hooks."""
        lost = {"_optimizer", "_directed", "_operate", "_schedule", "_probe", "_lazy_model", "_live", "_held"}
        kept = {key: value for key, value in self.__dict__.items() if key not in lost}
        return {**kept, "_hooks": [], "_thread": None, "optimizer": self._optimizer()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        optimizer = state.pop("optimizer")
        self.__dict__.update(state)
        self._optimizer = weakref.ref(optimizer) if optimizer is not None else lambda: None

    # A compiled step leaves its graph for the hooks: they depend on what was directed when, and on settings
    # of the handle.
    @outside_graphs
    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._enter_step(optimizer)
        self._refresh()
        # args[0] is the optimizer itself.
        if callable(closure := kwargs.get("closure")):
            return args, {**kwargs, "closure": self._directing(closure)}
        if len(args) > 1 and callable(args[1]):
            return (args[0], self._directing(args[1]), *args[2:]), kwargs
        self._direct()
        if self._probe is not None:
            self._probe.before_update()
        return None

    def _enter_step(self, optimizer: Optimizer) -> None:
        """Tell a step from one around it, from one that failed, and from one in another thread."""
        thread, last = threading.get_ident(), self._thread
        self._thread = thread
        if last is None:
            return
        if last != thread:
            if steps_under_way(optimizer, last):
                self._thread = last
                raise RuntimeError(
                    f"{self._kind}.step is running in another thread, and cdgrad directs gradients in place; "
                    "let one thread at a time step an optimizer, or attach to one optimizer per thread"
                )
        elif steps_under_way(optimizer, thread) > 1:
            self._nested = True
            return
        self._nested = False
        # The last step failed. What it directed is directed still, unless something wrote it since.
        self._directed.forget_changed(dict(self._directed.records))

    @outside_graphs
    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._nested and steps_under_way(optimizer, threading.get_ident()) > 1:
            return
        missed = len(self._directed.records) < len(self._live) and self._active() and self._pending()
        probe, self._probe = self._probe, None
        self._nested, self._thread = False, None
        self._directed.end_step()
        if missed:
            raise RuntimeError(
                f"{self._kind} recomputed the gradient of {missed[0][1].name} inside step() without the "
                "closure, so this update used the ordinary gradient; call handle.apply() after every "
                "backward pass inside the step"
            )
        if probe is not None and not probe.check_update(self._kind):
            self._probe = probe
        self.steps += 1

    def _directing(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure, followed by the operator on the gradients that it computed."""

        def evaluate() -> Any:
            before, state = dict(self._directed.records), self._directed.state()
            result = closure()
            # What was directed earlier and not computed anew is directed still.
            self._directed.forget_changed(state, only=before)
            self._direct()
            if self._probe is not None:
                self._probe.before_update()
            return result

        return evaluate

    def _with_gradients(self) -> list[tuple[int, Target, Tensor]]:
        return [(i, t, grad) for i, t in self._live if (grad := t.param.grad) is not None]

    def _pending(self) -> list[tuple[int, Target, Tensor]]:
        """The gradients that are not directed yet."""
        return [pending for pending in self._with_gradients() if pending[0] not in self._directed.records]

    @torch.no_grad()
    def _direct(self) -> None:
        """Direct every gradient that is not directed yet, and remember it."""
        if self._schedule is not None:
            self._metrics = scheduled(self._schedule, self.steps, self._metrics)
            self._metric_of = metric_of(self._metrics, self.selection)
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
        if self._probe is not None:
            self._probe.before_operator(jobs)
        self._operate(jobs)
        self._directed.add([i for i, _, _ in pending], [grad for _, _, grad in pending])

    def _active(self) -> bool:
        return self._enabled and (self._always or any(metric != L2() for metric in self._metric_of))

    def _refresh(self) -> None:
        """Follow the optimizer's groups, frozen parameters and lazy layers."""
        if self._lazy_model is not None:
            self._select_materialized(self._lazy_model)
        self._directed.listen()
        optimizer = self.optimizer
        held = [param for group in optimizer.param_groups for param in group["params"]]
        if len(held) == len(self._held) and all(map(operator.is_, held, self._held)):
            return
        holds = set(held)
        self._live = [(i, t) for i, t in enumerate(self.selection.targets) if t.param in holds]
        if self.selection.targets and not self._live:
            raise RuntimeError(
                f"this {self._kind} no longer holds any of the selected parameters "
                f"({self.selection.targets[0].name}, ...): something exchanged them, such as DeepSpeed's "
                "ZeRO; attach after that, or use torch.distributed.fsdp.fully_shard"
            )
        self._held = held
        if new := holds - self._known - self._noticed:
            self._warn_of_new(new)

    def _select_materialized(self, model: nn.Module) -> None:
        selection = self._options.select(model)
        if not selecting.has_lazy(selection):
            self._lazy_model = None
            if len(selection.targets) != len(self.selection.targets):
                self._directed.close()
                self._take(selection)
            if not selection.targets:
                selecting.warn_of_nothing(model, selection, self._options.direction, self._options.linear)

    def _warn_of_new(self, new: set[Tensor]) -> None:
        """Warn, once each, of parameters that nobody could select."""
        self._noticed |= new
        sizes = list(map(_size, new))
        shapes = ", ".join(sizes[:3]) + (", ..." if len(sizes) > 3 else "")
        warnings.warn(
            f"{self._kind} holds {len(new)} parameters ({shapes}) that the model did not have when it was "
            "attached, and they are not directed; handle.remove() and attach again",
            stacklevel=3,
        )

    def _check_attached(self) -> None:
        if not self._hooks:
            raise RuntimeError(
                "this handle is not attached: it was removed, or is a copy; call cdgrad.attach again, with "
                "**handle.options for the same"
            )

    def _refuse_after_capture(self, what: str) -> None:
        if self._captured:
            raise RuntimeError(
                f"{what} was changed after a CUDA graph captured a step, and replays would not see it; "
                "capture the step again with a handle attached anew"
            )

    def _refuse_second(self, optimizer: Optimizer, selection: Selection) -> None:
        """Each parameter is attached at most once per optimizer."""
        attached = _attached_parameters(optimizer)
        if shared := [target.name for target in selection.targets if target.param in attached]:
            raise ValueError(
                f"already attached to this optimizer: {shared[0]} and {len(shared) - 1} more; the "
                "operator would apply twice: set handle.metric, or handle.remove() the first"
            )


def _attached_parameters(optimizer: Optimizer) -> set[Tensor]:
    """What the attachments of an optimizer direct."""
    handles = (ref() for ref in _ATTACHED.get(optimizer, []))
    return {target.param for handle in handles if handle for target in handle.selection.targets}


def _capturing() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _size(param: Tensor) -> str:
    return "x".join(map(str, param.shape)) or "scalar"
