"""When gradients are directed: the hooks of an optimizer's step, and of the closure that it evaluates.

An optimizer reads `param.grad`, so the gradient is directed in place just before: in a step pre-hook,
or, where the step evaluates a closure, after every evaluation of it. A step may reach the hook twice (a
subclass whose `step` calls the hooked `step` of its parent), fail, or be called in another thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeGuard

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from cdgrad._torch_private import ForeignCode, outside_graphs, steps_under_way
from cdgrad.target_gradients import TargetGradients


class StepHooks:
    """The hooks that direct `gradients` in every step of `optimizer`."""

    def __init__(self, optimizer: Optimizer, gradients: TargetGradients) -> None:
        self._kind = type(optimizer).__name__
        self._gradients = gradients
        self._thread: int | None = None  # the one whose step is running, or failed
        self._nested = False
        self._foreign_code = ForeignCode(StepHooks)
        self._handles: list[RemovableHandle] = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        gradients.memory.take_over(optimizer)

    def remove(self, optimizer: Optimizer | None) -> None:
        """Remove the hooks. What is directed now stays so for the optimizer's next attachment."""
        for handle in self._handles:
            handle.remove()
        if optimizer is not None:
            self._gradients.memory.leave(optimizer)

    # A compiled step leaves its graph for the hooks: they depend on what was directed when, and on settings
    # of the handle.
    @outside_graphs
    def _before_step(
        self, optimizer: Optimizer, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]] | None:
        self._enter_step(optimizer)
        self._gradients.refresh(optimizer, watch=self._foreign_code(optimizer))
        # args[0] is the optimizer itself.
        if _is_closure(closure := kwargs.get("closure")):
            return args, {**kwargs, "closure": self._directing(optimizer, closure)}
        if len(args) > 1 and _is_closure(args[1]):
            return (args[0], self._directing(optimizer, args[1]), *args[2:]), kwargs
        self._direct(optimizer)
        return None

    @outside_graphs
    def _after_step(self, optimizer: Optimizer, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        if self._nested and steps_under_way(optimizer, threading.get_ident()) > 1:
            return
        gradients = self._gradients
        missed = gradients.missed()
        probe, gradients.probe = gradients.probe, None
        gradients.memory.end_step()
        self._nested, self._thread = False, None  # only now: an interrupted step counts as one that failed
        if missed is not None:
            raise RuntimeError(
                f"{self._kind} recomputed the gradient of {missed.name} inside step() without the "
                "closure, so this update used the ordinary gradient; call handle.apply() after every "
                "backward pass inside the step"
            )
        if probe is not None and not probe.check_update(self._kind):
            gradients.probe = probe
        gradients.steps += 1

    def _enter_step(self, optimizer: Optimizer) -> None:
        """Tell a step from one around it, from one that failed, and from one in another thread."""
        thread, last = threading.get_ident(), self._thread
        self._thread = thread
        if last is None:
            self._gradients.memory.begin_step()
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
        self._gradients.memory.forget_changed()

    def _directing(self, optimizer: Optimizer, closure: Callable[..., object]) -> Callable[..., object]:
        """The closure, followed by the operator on the gradients that it computed."""

        # Some optimizers pass arguments, for example for an evaluation without a backward pass.
        def evaluate(*args: object, **kwargs: object) -> object:
            self._begin_closure()
            result = closure(*args, **kwargs)
            self._end_closure(optimizer)
            return result

        return evaluate

    # A compiled step enters the closure, and leaves its graph for what is around it.
    @outside_graphs
    def _begin_closure(self) -> None:
        self._gradients.memory.begin_closure()

    @outside_graphs
    def _end_closure(self, optimizer: Optimizer) -> None:
        self._gradients.memory.end_closure()
        self._direct(optimizer)

    def _direct(self, optimizer: Optimizer) -> None:
        self._gradients.direct()
        if self._gradients.probe is not None:
            self._gradients.probe.before_update(optimizer)


def _is_closure(argument: object) -> TypeGuard[Callable[..., object]]:
    """Whether an argument of a step is one; a module, which can be called, too, is what a step works on."""
    return callable(argument) and not isinstance(argument, nn.Module)
