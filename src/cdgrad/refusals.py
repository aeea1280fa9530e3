"""What cannot be attached to, and what to do instead: questions to an optimizer, without any effect.

A hook that never fires, or fires on a gradient that the update does not read, would be silently
nothing. So whatever can be seen in advance is refused here, each time with the next move.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cdgrad._torch_private import is_hooked, runs_hooks, unwrapped
from cdgrad.messages import first_few

_FSDP2 = "use torch.distributed.fsdp.fully_shard (FSDP2), which keeps every weight's axes, or DDP"
_BY_HAND = "DeepSpeed's functions between backward and step, as docs/distributed.md shows"


def refuse_partitions(optimizer: object, model: nn.Module) -> None:
    """Refuse what keeps a weight as a stretch of a flat buffer, or updates it on one rank only.

    Known by their marks, so that nothing is imported: FSDP1 flags what it flattens, DeepSpeed's ZeRO
    stage 3 numbers parameters, stages 1 and 2 have optimizers of their own.

    Raises:
        ValueError: such a parameter or optimizer, with what to use instead.
    """
    named: Any = model.named_parameters() if isinstance(model, nn.Module) else ()
    for name, param in named:
        if getattr(param, "_fsdp_flattened", False):
            raise ValueError(
                f"{name} of shape {tuple(param.shape)} is a piece of an FSDP1 flat parameter: its channels "
                f"are lost; {_FSDP2}"
            )
        if hasattr(param, "ds_id"):
            raise ValueError(
                f"{name} of shape {tuple(param.shape)} is partitioned by DeepSpeed's ZeRO stage 3, flat: its "
                f"channels are lost; {_FSDP2}, or {_BY_HAND}"
            )
    kind = type(optimizer)
    if kind.__module__.startswith("deepspeed.runtime.zero"):
        raise ValueError(
            f"{kind.__name__} updates flat partitions, not the model's weights; {_FSDP2}, or {_BY_HAND}"
        )
    if any(base.__name__ == "ZeroRedundancyOptimizer" for base in kind.__mro__):
        raise ValueError(
            f"{kind.__name__} assigns each weight to one rank, so every rank would direct all gradients and "
            f"use a part of them; {_FSDP2} with the plain optimizer"
        )


def check_optimizer(
    optimizer: object,
    names: Mapping[nn.Parameter, str],
    attached: Callable[[Optimizer], set[Tensor]],
) -> None:
    """Refuse unless a hook of `optimizer` comes right before its own update of parameters in `names`.

    `attached` names what is attached to an optimizer already.
    """
    inside = _shared_with_inner(optimizer, names, attached)
    _check_hooks_fire(optimizer, _attach_to([path for path, shared in inside if shared]))
    assert isinstance(optimizer, Optimizer)
    held = parameters(optimizer)
    _check_it_updates(optimizer, names, held, inside)
    _check_its_step(optimizer)
    for param, name in names.items():
        if param in held and param.is_meta:
            raise ValueError(
                f"{name} is on the meta device and has no values; materialize the model (to_empty, or "
                "load weights), build the optimizer from its new parameters, then attach"
            )


def _shared_with_inner(
    optimizer: object, names: Mapping[nn.Parameter, str], attached: Callable[[Optimizer], set[Tensor]]
) -> list[tuple[str, set[nn.Parameter]]]:
    """The optimizers inside this one: how each is reached, and which parameters in `names` it holds."""
    inside: list[tuple[str, set[nn.Parameter]]] = []
    for path, inner in _inside(optimizer):
        shared = names.keys() & parameters(inner)
        if shared and shared <= attached(inner):
            directed = first_few([name for param, name in names.items() if param in shared])
            raise ValueError(
                f"already attached: {path}, the optimizer inside this {type(optimizer).__name__}, directs "
                f"{directed}; keep its handle, or call "
                "handle.remove() first"
            )
        inside.append((path, shared))
    return inside


def _check_it_updates(
    optimizer: Optimizer,
    names: Mapping[nn.Parameter, str],
    held: set[Tensor],
    inside: list[tuple[str, set[nn.Parameter]]],
) -> None:
    """Refuse an optimizer that holds none of the parameters, or leaves their update to one inside it."""
    kind = type(optimizer).__name__
    if names and not names.keys() & held:
        raise ValueError(
            f"this {kind} holds none of the {len(names)} selected parameters "
            f"({next(iter(names.values()))}, ...); attach to the optimizer that holds them, built "
            "from this model's parameters()"
        )
    if left := {path: shared & held for path, shared in inside if shared & held}:
        first = next(
            name for param, name in names.items() if any(param in shared for shared in left.values())
        )
        raise ValueError(
            f"{kind} leaves the update of {first} to an optimizer inside it, and only {kind} knows which "
            f"gradients it takes or changes before; {_attach_to(list(left))}"
        )


def _check_its_step(optimizer: Optimizer) -> None:
    """Refuse a step that writes gradients itself, or that is differentiated."""
    kind = type(optimizer).__name__
    # Horovod, BytePS and their kin wait for the sums over workers, and write them, inside their step.
    if callable(getattr(optimizer, "synchronize", None)) and hasattr(optimizer, "skip_synchronize"):
        raise ValueError(
            f"{kind} writes the gradients summed over workers inside its step, after every hook; call "
            "optimizer.synchronize(), then cdgrad.channel_directed_ on the gradients, then optimizer.step() "
            "within optimizer.skip_synchronize(); or use DistributedDataParallel"
        )
    if any(group.get("differentiable") for group in optimizer.param_groups):
        raise ValueError(
            f"{kind}(differentiable=True) differentiates through step(), which the in-place operator does "
            "not support; assign param.grad = cdgrad.channel_directed(param.grad, ...), which is "
            "differentiable, before each step"
        )


def _check_hooks_fire(optimizer: object, remedy: str) -> None:
    """Refuse what is not an optimizer, and optimizers whose step is not the one that runs hooks."""
    kind = type(optimizer).__name__
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"expected a torch.optim.Optimizer, got {kind}; {remedy or 'pass the optimizer that steps'}"
        )
    if not runs_hooks(optimizer):
        raise ValueError(
            f"{kind}.step never runs the optimizer's hooks; "
            f"{remedy or 'call cdgrad.channel_directed_ on the gradients before each step'}"
        )
    own = vars(optimizer).get("step")
    if own is not None and not is_hooked(own):
        warnings.warn(
            f"{kind}.step was replaced in this optimizer by {getattr(own, '__qualname__', own)}, which may "
            "not run its hooks; if handle.steps stays 0 after a step, call handle.apply() before each step",
            stacklevel=5,
        )
    # The step that torch's base class has, and those of others: `raise NotImplementedError`.
    code = getattr(list(unwrapped(type(optimizer).step))[-1], "__code__", None)
    if code is not None and code.co_names == ("NotImplementedError",):
        raise ValueError(
            f"{kind} does not update parameters in step(), where cdgrad acts; call "
            "cdgrad.channel_directed_ on the gradients before the method that does; if the backward pass "
            "does, choose another optimizer, or one per parameter, each attached and stepped from "
            "Tensor.register_post_accumulate_grad_hook"
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
        found = list(_optimizers(value))
        public = name.lstrip("_")
        if found and public != name and getattr(outer, public, None) is value:
            name = public  # a property that returns it, as Fabric's wrapper has
        yield from ((name, key, item) for key, item in found)


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
