"""What cdgrad uses of torch that has no public name: the file to look at when torch is upgraded.

Checked with torch 2.13.0. Each use says why no public name does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from torch import Tensor
from torch._compile import _disable_dynamo  # pyright: ignore[reportPrivateUsage, reportUnknownVariableType]
from torch.optim import Optimizer

from cdgrad.dtensors import local_part

# torch.compiler.disable imports the compiler at once, which doubles the time that `import cdgrad` takes.
outside_graphs = _disable_dynamo  # pyright: ignore[reportUnknownVariableType]

# Optimizer.__init__ replaces a class's `step` by this wrapper, which is what runs the hooks.
_HOOKED_STEP = Optimizer.profile_hook_step(Optimizer.step).__code__


def runs_hooks(optimizer: Optimizer) -> bool:
    """Whether calling the optimizer's step runs its hooks. No public method says so."""
    codes = [getattr(function, "__code__", None) for function in unwrapped(type(optimizer).step)]
    return _HOOKED_STEP in codes and hasattr(optimizer, "_optimizer_step_pre_hooks")


def unwrapped(function: Any) -> Iterator[Any]:
    """The function and what it wraps, the one that does the work last."""
    while function is not None:
        yield function
        function = getattr(function, "__wrapped__", None)


def steps_under_way(optimizer: Optimizer, thread: int) -> int:
    """How many calls of this optimizer's step are on the stack of a thread, one inside the other.

    A hook cannot tell by other means whether an earlier step failed or is still running around this one.
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


def version(tensor: Tensor) -> int:
    """A number that changes whenever the tensor is written; of a DTensor, whenever its local part is."""
    return local_part(tensor)._version
