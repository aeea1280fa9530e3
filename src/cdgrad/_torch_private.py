"""What cdgrad uses of torch that has no public name: the file to check when torch is upgraded.

Checked with torch 2.9.1, 2.13.0, 2.14.1 and 2.15.0. Each use says why no public name does.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from operator import attrgetter
from types import FrameType
from typing import Any, TypeGuard, TypeVar, cast

import torch
from torch import Tensor
from torch._compile import _disable_dynamo  # pyright: ignore[reportPrivateUsage, reportUnknownVariableType]
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_pre_hooks  # pyright: ignore[reportPrivateUsage]
from torch.utils._python_dispatch import (
    _disable_current_modes,  # pyright: ignore[reportPrivateUsage, reportUnknownVariableType]
)

from cdgrad.dtensors import is_dtensor, local_part

_F = TypeVar("_F", bound=Callable[..., Any])

# torch.optim's operations on lists of tensors: one kernel for many tensors on a GPU.
foreach_lerp_: Callable[[list[Tensor], list[Tensor], list[Tensor]], None] = torch._foreach_lerp_  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]
foreach_mul_: Callable[[list[Tensor], float], None] = torch._foreach_mul_  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]
foreach_norm: Callable[[list[Tensor], float, torch.dtype], tuple[Tensor, ...]] = torch._foreach_norm  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]

# Optimizer.__init__ replaces a class's `step` by this wrapper, which is what runs the hooks.
_HOOKED_STEP = Optimizer.profile_hook_step(Optimizer.step).__code__


def forked_after_cuda() -> bool:
    """Whether this process was forked from one that had initialized CUDA, and can therefore not use it.

    torch says so publicly only by failing.
    """
    return bool(torch.cuda._is_in_bad_fork())  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType]


def outside_graphs(function: _F) -> _F:
    """`function`, which torch.compile calls between two graphs.

    torch.compiler.disable imports the compiler at once, which doubles the time that `import cdgrad` takes.
    """
    return cast(_F, _disable_dynamo(function))


def runs_hooks(optimizer: Optimizer) -> bool:
    """Whether calling the optimizer's step runs its hooks. No public method says so."""
    return is_hooked(type(optimizer).step) and hasattr(optimizer, "_optimizer_step_pre_hooks")


def is_hooked(step: Any) -> bool:
    """Whether a function is the wrapper of `step` that runs the hooks, or shows that it wraps it."""
    return any(getattr(function, "__code__", None) is _HOOKED_STEP for function in unwrapped(step))


class ForeignCode:
    """Whether code that is not torch's, nor a method of `own_hooks`, runs between an optimizer's hooks.

    torch's own steps run no backward pass but through the closure. No public method lists hooks.
    """

    def __init__(self, own_hooks: type) -> None:
        self._own_hooks = own_hooks
        self._seen: tuple[object, list[int], bool] | None = None
        self._answer = True

    def __call__(self, optimizer: Optimizer) -> bool:
        hooks = cast(dict[int, Any], optimizer._optimizer_step_pre_hooks)  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
        step = type(optimizer).step
        seen = (step, list(hooks), bool(_global_optimizer_pre_hooks))
        if seen != self._seen:
            names = [getattr(f, "__globals__", {}).get("__name__", "") for f in unwrapped(step)]
            own = all(isinstance(getattr(h, "__self__", None), self._own_hooks) for h in hooks.values())
            self._answer = seen[2] or not own or not all(name.startswith("torch.") for name in names)
            self._seen = seen
        return self._answer


def unwrapped(function: Any) -> Iterator[Any]:
    """The function and what it wraps, the one that does the work last."""
    while function is not None:
        yield function
        function = getattr(function, "__wrapped__", None)


def steps_under_way(optimizer: Optimizer, thread: int) -> int:
    """How many calls of this optimizer's step are on the stack of a thread, one inside the other.

    A hook cannot otherwise distinguish a step that failed from one that still runs around this one.
    A compiled frame keeps the file and part of the name of the wrapper.
    """
    count, frame = 0, sys._current_frames().get(thread)  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        count += _is_hooked_step(frame) and frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return count


def _is_hooked_step(frame: FrameType) -> bool:
    code = frame.f_code
    return code.co_filename == _HOOKED_STEP.co_filename and _HOOKED_STEP.co_name in code.co_name


def is_functorch_wrapped(tensor: Tensor) -> bool:
    """Whether `torch.func` wraps the tensor, whose memory then cannot be read. No public function says so."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue, reportUnknownVariableType]


def outside_modes() -> AbstractContextManager[object]:
    """No mode of torch's dispatch, so that tensors which outlive it are ordinary ones.

    A mode of fake tensors, as of tracing and of estimates of memory, would give tensors without values.
    """
    return cast(AbstractContextManager[object], _disable_current_modes())


def is_fake(tensor: Tensor) -> bool:
    """Whether it has a shape and no values, as in tracing; torch warns where its address is asked for."""
    return isinstance(tensor, FakeTensor)


def as_like(tensors: list[Tensor], like: Tensor) -> list[Tensor]:
    """The tensors; where `like` is a fake one, which no operation combines with others, fake ones.

    A program that is being traced holds them as constants, as it does what torch.tensor returns.
    """
    if not isinstance(like, FakeTensor):
        return tensors
    lifted = [torch.ops.aten.lift_fresh_copy.default(tensor) for tensor in tensors]
    return [t if isinstance(t, FakeTensor) else like.fake_mode.from_tensor(t) for t in lifted]


def is_differentiated_or_mapped(tensor: Tensor) -> bool:
    """Whether a transform of `torch.func` but `functionalize` wraps it. No public function says so."""
    return is_functorch_wrapped(tensor) and not torch._is_functional_tensor(tensor)  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]


def stream_handle(device: torch.device) -> int:
    """The current CUDA stream of a device. The public function builds an object for it in every step."""
    return torch._C._cuda_getCurrentRawStream(device.index)  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue, reportUnknownVariableType, reportUnknownMemberType]


def occupy_stream(cycles: int) -> None:
    """Keep the current CUDA stream busy for that many cycles. No public operation takes a known time."""
    torch.cuda._sleep(cycles)  # pyright: ignore[reportPrivateUsage]


_capture: ContextVar[object | None] = ContextVar("graph in capture", default=None)


@contextmanager
def captured_by(graph: object) -> Generator[None]:
    """What is captured inside is part of the graph. torch says only that a stream is being captured."""
    token = _capture.set(graph)
    try:
        yield
    finally:
        _capture.reset(token)


def graph_in_capture() -> object | None:
    """The graph of `captured_by`."""
    return _capture.get()


_failed_graphs: list[object] = []


def end_failed_capture(graph: object, device: int, pool: Any) -> None:
    """Let the allocator expect no more from a capture that failed, which torch leaves open.

    Otherwise freeing cached memory fails in the rest of the process. The allocator may still ask the graph
    whether a stream is its own, so the graph stays. No public function does this.
    """
    _failed_graphs.append(graph)
    functions: Any = torch._C  # pyright: ignore[reportPrivateUsage]
    try:
        functions._cuda_endAllocateToPool(device, pool)
    except (AttributeError, RuntimeError):  # it was not begun, or is ended already
        return
    functions._cuda_releasePool(device, pool)


def version(tensor: Tensor) -> int:
    """A number that changes whenever the tensor is written; of a DTensor, whenever its local part is.

    -1 for a tensor of inference mode, which counts no writes.
    """
    part = local_part(tensor)
    return -1 if part.is_inference() else part._version


Reference = weakref.ref[torch.UntypedStorage]


def references(tensors: Sequence[Tensor], *, sharded: bool) -> list[Reference]:
    """A weak reference to the memory of each, of a DTensor's local part, to recognize it by `refers_to`.

    Not to the tensor: `Module.to` may swap the contents of gradients, and torch swaps nothing that is weakly
    referred to.
    """
    return list(map(weakref.ref, map(_memory if sharded else Tensor.untyped_storage, tensors)))


def refers_to(reference: Reference, tensor: Tensor) -> bool:
    """Whether the reference is one to this tensor's memory."""
    return reference() is _memory(tensor)


def _memory(tensor: Tensor) -> torch.UntypedStorage:
    part = tensor._local_tensor if is_dtensor(tensor) else tensor  # pyright: ignore[reportPrivateUsage]
    return part.untyped_storage()


_version_of: Callable[[Tensor], int] = attrgetter("_version")
_ORDINARY = {Tensor, torch.nn.Parameter}


def versions(tensors: Sequence[Tensor], *, sharded: bool) -> list[int]:
    """`version` of each; `sharded` says that there may be DTensors among them."""
    if not sharded:
        try:
            return list(map(_version_of, tensors))
        except RuntimeError:  # one is of inference mode
            pass
    return list(map(version, tensors))


class FormCheck:
    """Whether tensors have the types, dtypes, devices, layouts, shapes and strides of given ones.

    torch's compiler guards its graphs by such a check in C++, which takes a third of the time that reading
    shapes and strides does. It also depends on modes such as autocast; where it fails, the forms decide.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._forms = _forms(tensors)
        self._guard = _guard(tensors)

    def __call__(self, tensors: Sequence[Tensor | None]) -> TypeGuard[Sequence[Tensor]]:
        if len(tensors) != len(self._forms):
            return False
        if self._guard is not None and self._guard(*tensors):
            return True
        present = [tensor for tensor in tensors if tensor is not None]
        if len(present) != len(tensors) or _forms(present) != self._forms:
            return False
        self._guard = _guard(present)
        return True


def _forms(tensors: Sequence[Tensor]) -> list[object]:
    return [
        (type(t), t.layout, t.dtype, t.device, t.shape, t.stride(), t.is_neg())
        if t.layout is torch.strided
        else (type(t), t.layout)
        for t in tensors
    ]


def _guard(tensors: Sequence[Tensor]) -> Callable[..., bool] | None:
    guards: Any = getattr(getattr(torch._C, "_dynamo", None), "guards", None)  # pyright: ignore[reportPrivateUsage]
    if not tensors or not hasattr(guards, "TensorGuards") or not _ORDINARY.issuperset(map(type, tensors)):
        return None
    if any(tensor.layout is not torch.strided for tensor in tensors):
        return None
    return guards.TensorGuards(
        *tensors,
        dynamic_dims_sizes=[list(tensor.shape) for tensor in tensors],
        dynamic_dims_strides=[list(tensor.stride()) for tensor in tensors],
    ).check
