"""How the steps and evaluations of a run are executed: at once, or each as a CUDA graph that is replayed.

A graph holds all the kernels of a step, so that the host launches one thing a step instead of hundreds. What
is captured reads everything that changes from memory on the device (see `cdgrad.study.train.step`), and the
random generators are registered with it, so that the numbers are those of the same work executed at once.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Generator, Hashable, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from cdgrad._torch_private import captured_by, end_failed_capture
from cdgrad.study import StudyError
from cdgrad.study.shown import brief

if TYPE_CHECKING:
    from cdgrad.study.train.state import TrainingState

_WARM_UP = 3  # pieces of work, as in torch's notes on CUDA graphs
Work = Callable[[], None]
Execution = Callable[[Hashable, Work], None]
"""Executes a piece of work; its key is that of no other one of the run."""


def at_once(key: Hashable, work: Work) -> None:
    """Execute the work now."""
    work()


class Graph(Protocol):
    """What can capture a piece of work and replay it."""

    def capture(self, work: Work) -> None:
        """Record what `work` does on the device, which does not do it yet.

        Raises:
            RuntimeError: something in it cannot be recorded.
        """
        ...

    def replay(self) -> None:
        """Do what was recorded."""
        ...


class CudaGraph:
    """A `torch.cuda.CUDAGraph`, captured on the current stream.

    Args:
        generators: random generators that the work draws from, besides torch's own of the device.
        pool: of memory, shared with the other graphs of the run: they are never replayed at the same time.
    """

    def __init__(self, generators: Sequence[torch.Generator], pool: Any) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._pool = pool
        self._generators = [*generators, torch.cuda.default_generators[torch.cuda.current_device()]]
        for generator in generators:
            self._graph.register_generator_state(generator)

    def capture(self, work: Work) -> None:
        """Record `work`; after a failure the generators and the allocator are as they were before."""
        before = [generator.clone_state() for generator in self._generators]
        problem: BaseException | None = None
        # Garbage may hold graphs and events of an earlier run, and freeing them would invalidate the capture.
        collects = gc.isenabled()
        gc.disable()
        try:
            stream = torch.cuda.current_stream()
            with captured_by(self._graph), torch.cuda.graph(self._graph, pool=self._pool, stream=stream):
                try:
                    work()
                except BaseException as error:
                    problem = error
                    raise
        except BaseException:
            # A capture that failed leaves its generators in the mode of capturing.
            for generator, state in zip(self._generators, before, strict=True):
                generator.graphsafe_set_state(state)
            end_failed_capture(self._graph, torch.cuda.current_device(), self._pool)
            if problem is not None:
                raise problem  # noqa: B904, the end of such a capture fails as well, with a message of no use
            raise
        finally:
            if collects:
                gc.enable()

    def replay(self) -> None:
        """Launch the graph on the current stream."""
        self._graph.replay()


class Captured:
    """Executes each piece of work at once at first, then as a graph.

    Memory that outlives a step, such as an optimizer's state, is allocated and kernels are compiled and
    chosen when work is executed at once, so a piece is captured when it was executed before, and when a few
    pieces were.

    Args:
        new_graph: returns a new graph.

    Attributes:
        refusal: why no graph is captured; empty while graphs are used.
    """

    def __init__(self, new_graph: Callable[[], Graph]) -> None:
        self.refusal = ""
        self._new_graph = new_graph
        self._graphs: dict[Hashable, Graph] = {}
        self._met = set[Hashable]()
        self._executed = 0

    def __call__(self, key: Hashable, work: Work) -> None:
        """Execute the work, which is the same whenever its key is."""
        if key not in self._graphs and (self.refusal or not self._capture(key, work)):
            with warnings.catch_warnings():
                # torch warns of an optimizer that is prepared for a capture and steps before it.
                warnings.filterwarnings("ignore", message=".*capturable=True", category=UserWarning)
                work()
            return
        self._graphs[key].replay()

    def _capture(self, key: Hashable, work: Work) -> bool:
        """Whether there is a graph of the work now."""
        known = key in self._met and self._executed >= _WARM_UP
        self._met.add(key)
        self._executed += 1
        if not known:
            return False
        graph = self._new_graph()
        try:
            graph.capture(work)
        except RuntimeError as error:
            self.refusal = brief(error)
            self._graphs.clear()
            return False
        self._graphs[key] = graph
        return True


def choose(state: TrainingState) -> tuple[Execution, str]:
    """How to execute the work of a run, and why not as graphs; the latter is empty where it is.

    Raises:
        StudyError: ``schedule.graph = true`` on the CPU.
    """
    asked = state.schedule.graph
    if asked and state.device.type != "cuda":
        raise StudyError(
            f"schedule.graph = true needs a CUDA device, and this run is on {state.device}; leave the key "
            "out, or add --device cuda"
        )
    if state.device.type != "cuda":
        return at_once, "not on a CUDA device"
    if asked is False:
        return at_once, "schedule.graph is false"
    if state.ranks.size > 1:
        return at_once, "several ranks train together"
    if refusal := prepare(state.optimizer, state.device):
        return at_once, refusal
    state.rates.move_to(state.device)
    # Without the state, which holds the execution: a cycle would keep a run's memory on the GPU.
    return Captured(partial(CudaGraph, [state.augmentation], torch.cuda.graph_pool_handle())), ""


def prepare(optimizer: torch.optim.Optimizer, device: torch.device) -> str:
    """Let the optimizer keep its counters on the device and read its rates there; why it cannot, or empty.

    An optimizer that counts steps on the host would be replayed with the count of the capture, and nothing
    would show it: only those are accepted that have torch's option ``capturable``, and `torch.optim.SGD`,
    whose fused form reads its rate from the device.
    """
    groups = optimizer.param_groups
    if type(optimizer) is torch.optim.SGD:
        if any(group["foreach"] or group["differentiable"] or group["fused"] is False for group in groups):
            return "SGD reads its learning rate on the host, unless it is fused"
        for group in groups:
            group["fused"] = True
    elif all("capturable" in group for group in groups):
        for group in groups:
            group["capturable"] = True
    else:
        return f"{type(optimizer).__name__} has no option capturable, and may count its steps on the host"
    for of_parameter in optimizer.state.values():  # from a checkpoint of steps that were not captured
        step = of_parameter.get("step")
        if isinstance(step, Tensor):
            of_parameter["step"] = step.to(device=device, dtype=torch.float32)
    return ""


@contextmanager
def stream_of(device: torch.device) -> Generator[None]:
    """Work inside is on a stream of its own, because the default stream of CUDA cannot be captured."""
    if device.type != "cuda":
        yield
        return
    outer = torch.cuda.current_stream(device)
    inner = _stream(device)
    inner.wait_stream(outer)
    with torch.cuda.stream(inner):
        yield
    outer.wait_stream(inner)


@lru_cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    # One a process: memory that one stream released is not given to another.
    return torch.cuda.Stream(device)
