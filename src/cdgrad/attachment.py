"""Hooks an optimizer so that each step sees channel-directed gradients. The only file that knows hooks.

An optimizer reads `param.grad`, so the gradient is directed in place just before: in a step pre-hook,
or, where the step evaluates a closure, after every evaluation of it. Gradients directed once are
remembered until the step is over, because a step may reach the hook twice (a subclass whose `step`
calls the hooked `step` of its parent) and because the user may have directed them earlier.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo  # pyright: ignore[reportPrivateUsage, reportUnknownVariableType]
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from cdgrad.dtensors import channel_mesh_dim, is_dtensor, local_part, whole_norms
from cdgrad.metrics import L2, Metric, as_metric
from cdgrad.ops import channel_directed_
from cdgrad.ops.local import BACKENDS, distinct
from cdgrad.partition import refuse_partitions
from cdgrad.refusals import check_gradient, check_optimizer, parameters
from cdgrad.selection import Direction, Patterns, Selection, Skipped, Target, select

Rescale = Literal["none", "norm"]


def attach(
    optimizer: Optimizer,
    model: nn.Module,
    metric: Metric | str,
    *,
    direction: Direction = "output",
    linear: bool = False,
    include: Patterns = None,
    exclude: Patterns = None,
    rescale: Rescale = "none",
    backend: str = "auto",
) -> Attachment:
    """Let `optimizer` see the gradients of `model`'s convolutions in `metric`.

    From now on each ``optimizer.step()`` first replaces, in place, the gradient g of every selected
    weight by its Riesz representative P g in the metric (`cdgrad.channel_directed`). With a closure,
    every evaluation inside the step is followed by the same. Nothing is wrapped or subclassed, and the
    optimizer's state dict does not change. The operator is linear, so it commutes with loss scaling,
    accumulation and averaging over workers.

    Args:
        optimizer: any `torch.optim.Optimizer` whose step runs its hooks.
        model: the module whose weights the optimizer holds.
        metric: a metric or its text, such as ``"reweighted:lam=3"``.
        direction: the axis to direct along, see `cdgrad.select`.
        linear: direct the weights of `torch.nn.Linear` too.
        include: shell patterns of parameter names to process.
        exclude: shell patterns of parameter names to leave alone.
        rescale: ``"none"``, or ``"norm"``: P g is scaled to the L2 norm of g, tensor by tensor, which
            separates the direction from the size of the step. Zero stays zero.
        backend: what computes the operator, see `cdgrad.channel_directed_`.

    Returns:
        An `Attachment`; `print` it for a table of what is processed and what is not, and why.

    Raises:
        TypeError: not an optimizer, a module or a metric.
        ValueError: an unknown option; a pattern without a match; a parameter that is already attached
            to this optimizer; an optimizer that holds none of the selected parameters, or that never
            runs its hooks; weights cut over ranks so that their channels are lost.

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
    refuse_partitions(optimizer, model)
    if rescale not in get_args(Rescale):
        raise ValueError(f"rescale must be one of {', '.join(get_args(Rescale))}, got {rescale!r}")
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"backend must be one of auto, {', '.join(BACKENDS)}, got {backend!r}")
    metric = as_metric(metric)
    selection = select(model, direction=direction, linear=linear, include=include, exclude=exclude)
    check_optimizer(optimizer, {target.param: target.name for target in selection.targets})
    for target in selection.targets:
        if is_dtensor(target.param):
            channel_mesh_dim(target.param, target.dim, target.name)
    options = {"direction": direction, "linear": linear, "include": include, "exclude": exclude}
    options |= {"rescale": rescale, "backend": backend}
    return Attachment(optimizer, model, selection, metric, options)


class Attachment:
    """The link between an optimizer and a metric, made by `attach`.

    Attributes:
        selection: what is processed and what is not, see `cdgrad.Selection`.
        metric: the metric; set it, to a `Metric` or a text, at any time between steps.
        enabled: set to False to let the optimizer see ordinary gradients, to True to go on.
        optimizer: the optimizer it is attached to.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        selection: Selection,
        metric: Metric,
        options: dict[str, Any],
    ) -> None:
        self.optimizer = optimizer
        self.selection = selection
        self.enabled = True
        self._metric = metric
        self._options = options
        self._directed: dict[Target, weakref.ref[Tensor]] = {}
        self._stepping = False
        self._known = parameters(optimizer).union(model.parameters())
        self._groups = len(optimizer.param_groups)
        self._check_unattached()
        self._hooks: list[RemovableHandle] = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    @property
    def metric(self) -> Metric:
        """The metric of the next step."""
        return self._metric

    @metric.setter
    def metric(self, metric: Metric | str) -> None:
        self._metric = as_metric(metric)

    @property
    def options(self) -> dict[str, Any]:
        """Plain data that attaches again, ``attach(optimizer, model, **handle.options)``.

        Copies and pickles of an optimizer lose their hooks; save this beside a checkpoint.
        """
        return {"metric": str(self._metric), **self._options}

    def apply(self) -> None:
        """Direct the gradients now, and not again in the next step.

        For what must come after the operator and before the step, such as clipping the directed
        gradient. Call it once a step, after the last backward pass. With a closure, call it inside
        the closure.

        Raises:
            RuntimeError: the handle was removed, or is a copy of one.
        """
        if not self._hooks:
            raise RuntimeError(
                "this handle is not attached: it was removed, or is a copy; call cdgrad.attach again, with "
                "**handle.options for the same"
            )
        self._directed.clear()
        self._direct()

    def remove(self) -> None:
        """Detach from the optimizer; further steps see ordinary gradients. Harmless when repeated."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._directed.clear()

    def __str__(self) -> str:
        held = parameters(self.optimizer)
        targets = [t for t in self.selection.targets if t.param in held and t.param.requires_grad]
        idle = [
            Skipped(
                t.name, "frozen" if t.param in held else f"not held by this {type(self.optimizer).__name__}"
            )
            for t in self.selection.targets
            if t not in targets
        ]
        new = [
            Skipped(f"{_size(param)} parameter", "new since attach: remove() this handle and attach again")
            for param in self._new()
        ]
        shown = Selection(tuple(targets), (*idle, *self.selection.skipped, *new))
        state = "" if self.enabled else ", not enabled"
        return (
            f"{self._metric} along {self._options['direction']}, rescale {self._options['rescale']}, "
            f"on {type(self.optimizer).__name__}{state if self._hooks else ', not attached'}\n\n{shown}"
        )

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or what was pickled, is not attached: a copied optimizer has none of the hooks."""
        return {**self.__dict__, "_hooks": [], "_directed": {}, "_stepping": False}

    # A compiled step leaves its graph for the hooks: they depend on what was directed when, and on settings
    # of the handle. torch.compiler.disable would load the compiler on import; this is how torch.optim does.
    @_disable_dynamo
    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._notice_new()
        self._stepping = True
        # args[0] is the optimizer itself.
        if callable(closure := kwargs.get("closure")):
            return args, {**kwargs, "closure": self._directing(closure)}
        if len(args) > 1 and callable(args[1]):
            return (args[0], self._directing(args[1]), *args[2:]), kwargs
        self._direct()
        return None

    @_disable_dynamo
    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A step that calls a hooked step arrives here twice; only the first return can be judged.
        missed = self._pending(directed=False) if self._stepping and self._active() else []
        self._stepping = False
        self._directed.clear()
        if missed:
            kind = type(optimizer).__name__
            raise RuntimeError(
                f"{kind}.step computed the gradient of {missed[0][0].name} where no hook sees it, so this "
                "update took the ordinary one; call handle.apply() after every backward pass inside the step"
            )

    def _directing(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure, followed by the operator on the gradients that it computed."""

        def evaluate() -> Any:
            versions = {t: _version(g) for t, g in self._pending(directed=True)}
            before, self._directed = self._directed, {}
            result = closure()
            # What was directed earlier and not computed anew is directed still.
            for target, grad in self._pending(directed=False):
                if target in versions and before[target]() is grad and _version(grad) == versions[target]:
                    self._directed[target] = before[target]
            self._direct()
            return result

        return evaluate

    def _pending(self, *, directed: bool) -> list[tuple[Target, Tensor]]:
        """The gradients there are for the optimizer's next update, already directed or not yet."""
        held = parameters(self.optimizer)
        there = [(t, t.param.grad) for t in self.selection.targets if t.param in held]
        if self.selection.targets and not there:
            raise RuntimeError(
                f"this {type(self.optimizer).__name__} no longer holds any of the selected parameters "
                f"({self.selection.targets[0].name}, ...): something exchanged them, such as DeepSpeed's "
                "ZeRO; attach after that, or use torch.distributed.fsdp.fully_shard"
            )
        return [
            (target, grad)
            for target, grad in there
            if grad is not None
            and (target in self._directed and self._directed[target]() is grad) == directed
        ]

    @torch.no_grad()
    def _direct(self) -> None:
        """Direct every gradient that is not directed yet, and remember it."""
        if not self._active():
            return
        pending = self._pending(directed=False)
        for target, grad in pending:
            check_gradient(target.name, grad)
        self._operate(pending)
        for target, grad in pending:
            self._directed[target] = weakref.ref(grad)

    def _operate(self, pending: list[tuple[Target, Tensor]]) -> None:
        """Replace each gradient g by P g, in place, rescaled if so chosen."""
        grads = [grad for _, grad in pending]
        here = list(map(local_part, grads))
        keep_norm = self._options["rescale"] == "norm"
        before = _norms(here) if keep_norm else []
        dims, groups = [t.dim for t, _ in pending], [t.groups for t, _ in pending]
        channel_directed_(grads, self._metric, dims, groups, backend=self._options["backend"])
        if keep_norm:
            for part, old, new in zip(here, *whole_norms(grads, before, _norms(here)), strict=True):
                distinct(part).mul_(torch.where(new > 0, old / new, 1.0))

    def _active(self) -> bool:
        return self.enabled and self._metric != L2()

    def _new(self) -> list[Tensor]:
        """What the optimizer holds now, did not hold at `attach`, and the model did not have either."""
        return [p for group in self.optimizer.param_groups for p in group["params"] if p not in self._known]

    def _notice_new(self) -> None:
        """Warn, once per group added, of parameters that nobody could select."""
        before, self._groups = self._groups, len(self.optimizer.param_groups)
        if self._groups != before and (new := self._new()):
            shapes = ", ".join(map(_size, new[:3])) + (", ..." if len(new) > 3 else "")
            warnings.warn(
                f"{type(self.optimizer).__name__} holds {len(new)} parameters ({shapes}) that the model did "
                "not have when it was attached, and they are not directed; handle.remove() and attach again",
                stacklevel=2,
            )

    def _check_unattached(self) -> None:
        """Each parameter is attached at most once per optimizer."""
        names = {target.param: target.name for target in self.selection.targets}
        for hook in self.optimizer._optimizer_step_pre_hooks.values():  # pyright: ignore[reportPrivateUsage]
            other = getattr(hook, "__self__", None)
            twice = other.selection.targets if isinstance(other, Attachment) else ()
            if shared := [names[t.param] for t in twice if t.param in names]:
                raise ValueError(
                    f"already attached to this optimizer: {shared[0]} and {len(shared) - 1} more; the "
                    "operator would apply twice: set handle.metric, or handle.remove() the first"
                )


def _size(param: Tensor) -> str:
    return "x".join(map(str, param.shape)) or "scalar"


def _version(grad: Tensor) -> int:
    """Changes whenever the gradient is written; a DTensor's own does not, its part's does."""
    return local_part(grad)._version


def _norms(grads: list[Tensor]) -> list[Tensor]:
    """L2 norms; in float64 where the device has it, so that scaled or tiny gradients keep theirs."""
    return [
        torch.linalg.vector_norm(  # pyright: ignore[reportUnknownMemberType]
            grad, dtype=torch.float32 if grad.device.type == "mps" else torch.float64
        )
        for grad in grads
    ]
