"""A stand-in for a CUDA graph on the CPU: it records the operators of a piece of work and replays them.

As on a GPU, a replay sees only what is in memory: the numbers of the host that the work read when it was
captured are constants, and reading a value back is an error. Unlike there, the capture itself computes, so
the first replay does nothing, and a capture that fails puts back what was in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from cdgrad.ops import local


class RecordedGraph:
    """One piece of work as a list of calls."""

    recording: RecordedGraph | None = None

    def __init__(self, memory: Callable[[], Iterable[Tensor]]) -> None:
        self.memory = memory
        self.calls: list[Callable[[], Any]] = []
        self.replays = 0

    def capture(self, work: Callable[[], None]) -> None:
        RecordedGraph.recording = self
        before = [(tensor.detach(), tensor.detach().clone()) for tensor in self.memory()]
        try:
            with _Recorder(self.calls):
                work()
        except RuntimeError:
            for tensor, value in before:
                tensor.copy_(value)
            raise
        finally:
            RecordedGraph.recording = None

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        if self.replays > 1:
            for call in self.calls:
                call()


def record_cpu_kernels(monkeypatch) -> None:
    """Let graphs hold the operator's CPU kernels, too, which are no operators of torch."""
    original = local.cpu.directed_

    def directed_(jobs, metric):
        original(jobs, metric)
        if RecordedGraph.recording:
            RecordedGraph.recording.calls.append(lambda: original(jobs, metric))

    monkeypatch.setattr(local.cpu, "directed_", directed_)


class _Recorder(TorchDispatchMode):
    def __init__(self, calls):
        super().__init__()
        self._calls = calls

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in _WAITING:
            raise RuntimeError(f"{function} is not permitted when the stream is capturing")
        kwargs = kwargs or {}
        if function.namespace == "profiler":
            return function(*args, **kwargs)
        result = function(*args, **kwargs)
        # What writes in place, or returns a view, has its result where it was.
        fresh = [value.alias_info is None for value in function._schema.returns]
        outputs = result if len(fresh) > 1 else (result,) * len(fresh)
        kept = [output if new else None for output, new in zip(outputs, fresh, strict=True)]

        def call():
            again = function(*args, **kwargs)
            for output, new in zip(kept, again if len(fresh) > 1 else (again,) * len(fresh), strict=True):
                if output is not None:
                    for old, value in zip(_tensors(output), _tensors(new), strict=True):
                        old.copy_(value)

        self._calls.append(call)
        return result


_aten = torch.ops.aten
_WAITING = (_aten._local_scalar_dense.default, _aten.equal.default, _aten.nonzero.default)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
