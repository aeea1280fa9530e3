"""What cannot be attached to, and what to do instead: questions to an optimizer, without any effect.

A hook that never fires, or fires on a gradient that the update does not read, would be silently
nothing. So whatever can be seen in advance is refused here, each time with the next move.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# Optimizer.__init__ replaces a class's `step` by this wrapper, which is what runs the hooks.
_HOOKED_STEP = Optimizer.profile_hook_step(Optimizer.step).__code__


def check_optimizer(optimizer: object, names: Mapping[nn.Parameter, str]) -> None:
    """Refuse unless a hook of `optimizer` comes right before its own update of parameters in `names`."""
    inside = [(path, names.keys() & parameters(inner)) for path, inner in _inside(optimizer)]
    _check_hooks_fire(optimizer, _attach_to([path for path, shared in inside if shared]))
    assert isinstance(optimizer, Optimizer)
    kind = type(optimizer).__name__
    held = parameters(optimizer)
    if names and not names.keys() & held:
        raise ValueError(
            f"this {kind} holds none of the {len(names)} selected parameters "
            f"({next(iter(names.values()))}, ...); attach to the optimizer built from this model's "
            "parameters()"
        )
    if left := {path: shared & held for path, shared in inside if shared & held}:
        first = next(
            name for param, name in names.items() if any(param in shared for shared in left.values())
        )
        raise ValueError(
            f"{kind} leaves the update of {first} to an optimizer inside it, and only {kind} knows which "
            f"gradients it takes or changes before; {_attach_to(list(left))}"
        )
    if any(group.get("differentiable") for group in optimizer.param_groups):
        raise ValueError(
            f"{kind}(differentiable=True) differentiates through its step, and the operator in place leaves "
            "no trace there; assign param.grad = cdgrad.channel_directed(param.grad, ...), which is "
            "differentiable, before each step"
        )
    for param, name in names.items():
        if param in held and param.is_meta:
            raise ValueError(
                f"{name} is on the meta device and has no values; materialize the model (to_empty, or "
                "load weights), build the optimizer from its new parameters, then attach"
            )


def _check_hooks_fire(optimizer: object, remedy: str) -> None:
    """Refuse what is not an optimizer, and optimizers whose step is not the one that runs hooks."""
    kind = type(optimizer).__name__
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"expected a torch.optim.Optimizer, got {kind}; {remedy or 'pass the optimizer that steps'}"
        )
    codes = [getattr(function, "__code__", None) for function in _unwrapped(type(optimizer).step)]
    if _HOOKED_STEP not in codes or not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        raise ValueError(
            f"{kind}.step never runs the optimizer's hooks; "
            f"{remedy or 'call cdgrad.channel_directed_ on the gradients before each step'}"
        )
    # The step that torch's base class has, and those of others: `raise NotImplementedError`.
    if codes[-1] is not None and codes[-1].co_names == ("NotImplementedError",):
        raise ValueError(
            f"{kind} has no step of its own: it updates elsewhere, as in the backward pass, where no hook "
            "comes first; choose an optimizer that updates in step(), or one per parameter, attached each, "
            "stepped by Tensor.register_post_accumulate_grad_hook"
        )


def check_gradient(name: str, grad: Tensor) -> None:
    """Refuse a gradient without a dense channel axis, by the name of its parameter."""
    if grad.layout != torch.strided:
        raise TypeError(
            f"the gradient of {name} has layout {grad.layout}, and only dense ones have a channel axis to "
            f"direct along; make it dense before the step, param.grad = param.grad.to_dense(), or leave it "
            f"alone, attach(..., exclude={name!r})"
        )


def parameters(optimizer: Optimizer) -> set[Tensor]:
    """What the optimizer holds now; groups may be added at any time."""
    return {param for group in optimizer.param_groups for param in group["params"]}


def _inside(
    outer: object, path: str = "optimizer", above: tuple[object, ...] = ()
) -> Iterator[tuple[str, Optimizer]]:
    """The innermost optimizers in the attributes of `outer`, each with the expression that reaches it."""
    above = (*above, outer)
    for name, key, item in _attributes(outer):
        at = f"{path}.{name}{key}"
        if any(item is other for other in above):
            continue
        if any(_attributes(item)):
            yield from _inside(item, at, above)
        else:
            yield at, item


def _attributes(outer: object) -> Iterator[tuple[str, str, Optimizer]]:
    for name, value in cast(dict[str, object], getattr(outer, "__dict__", {})).items():
        yield from ((name, key, item) for key, item in _optimizers(value))


def _attach_to(paths: list[str]) -> str:
    calls = " and ".join(f"attach({path}, ...)" for path in paths)
    return f"attach to the one inside: {calls}" if calls else ""


def _optimizers(value: Any) -> Iterator[tuple[str, Optimizer]]:
    """The optimizers that an attribute is or contains, each with its subscript."""
    if isinstance(value, Optimizer):
        yield "", value
        return
    pairs: Iterable[tuple[object, object]] = ()
    if isinstance(value, dict):
        pairs = cast(dict[object, object], value).items()
    elif isinstance(value, list | tuple):
        pairs = enumerate(cast(list[object], value))
    yield from ((f"[{key!r}]", item) for key, item in pairs if isinstance(item, Optimizer))


def _unwrapped(function: Any) -> Iterator[Any]:
    """The function and what it wraps, the one that does the work last."""
    while function is not None:
        yield function
        function = getattr(function, "__wrapped__", None)
