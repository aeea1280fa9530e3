"""Device, sizes and clock of the benchmark on a GPU, and how times are taken there."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from statistics import median
from typing import Any

import torch

from cdgrad._torch_private import occupy_stream
from cdgrad.bench.candidates import METRICS
from cdgrad.bench.shapes import Conv
from cdgrad.metrics import Metric
from cdgrad.ops.triton import tables

_FLUSHED_BYTES = 256 * 2**20  # more than the L2 cache of any GPU that we know


@dataclass
class Setup:
    """Where and how much is measured.

    Attributes:
        device: a CUDA device, or the CPU in a rehearsal.
        rehearsal: tiny sizes, every item once; its times are no measurements.
        deadline: when the present section's time is over, by `time.perf_counter`.
        share_ends: when the present item's share of it is over.
        compiled: the cases that other processes compiled in time.
        waiting: processes that were started early and wait for their section, by its name.
        collect: takes what other processes compiled since their section's time was over; returns the seconds.
    """

    device: torch.device
    rehearsal: bool = False
    deadline: float = float("inf")
    share_ends: float = float("inf")
    compiled: set[str] = field(default_factory=set[str])
    waiting: dict[str, list[Any]] = field(default_factory=dict[str, list[Any]])
    collect: Callable[[], dict[str, dict[str, float]]] = dict[str, dict[str, float]]

    @property
    def over(self) -> bool:
        """Whether the present section's time is over; a rehearsal has time for all."""
        return not self.rehearsal and time.perf_counter() > self.deadline

    @property
    def item_over(self) -> bool:
        """Whether the present item should leave what remains of the section's time to the other ones."""
        return not self.rehearsal and time.perf_counter() > min(self.share_ends, self.deadline)

    @property
    def rounds(self) -> int:
        """The largest number of rounds."""
        return 1 if self.rehearsal else 100

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """All metrics; in a rehearsal one of each family."""
        return METRICS[::2] if self.rehearsal else METRICS

    def layers(self, layers: list[Conv]) -> list[Conv]:
        """The layers of a network; in a rehearsal the first, with few channels."""
        if not self.rehearsal:
            return layers
        return [Conv(min(each.out, 6), min(each.into, 2), min(each.kernel, 3)) for each in layers[:1]]

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def interleaved(self, candidates: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        """Median milliseconds of each on the device, cold, in rounds until the section's time is over.

        Cold: after writing more than the L2 cache holds.
        """
        times: dict[str, list[float]] = {name: [] for name in candidates}
        flush = torch.empty(1 if self.rehearsal else _FLUSHED_BYTES, dtype=torch.int8, device=self.device)
        for call in candidates.values():
            call()
        for completed in range(self.rounds):
            if completed >= 5 and self.item_over:
                break
            for name, call in candidates.items():
                flush.zero_()
                times[name].append(self._elapsed(call))
        return {name: median(each) for name, each in times.items()}

    def _elapsed(self, call: Callable[[], object]) -> float:
        if self.device.type != "cuda":
            start = time.perf_counter()
            call()
            return (time.perf_counter() - start) * 1e3
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # The host queues ahead, so that the events enclose the kernels and not the time to launch them.
        occupy_stream(1_000_000)
        first.record()
        call()
        last.record()
        last.synchronize()
        return first.elapsed_time(last)

    def per_call(self, calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
        """The lowest milliseconds of a call by the clock, in rounds of `repeats` calls of each and a wait.

        The lowest: other work of the host only ever adds to a round. The first call of each round is not
        timed: after another metric the operator is prepared anew.
        """
        times: dict[str, list[float]] = {name: [] for name in calls}
        repeats = 1 if self.rehearsal else repeats
        gc.collect()
        gc.disable()  # it would take the time of several steps
        try:
            self._rounds(calls, repeats, times)
        finally:
            gc.enable()
        return {name: min(each) for name, each in times.items()}

    def _rounds(
        self, calls: Mapping[str, Callable[[], object]], repeats: int, times: dict[str, list[float]]
    ) -> None:
        for completed in range(self.rounds):
            if completed >= 5 and self.item_over:
                break
            for name, call in calls.items():
                call()
                self.synchronize()
                start = time.perf_counter()
                for _ in range(repeats):
                    call()
                self.synchronize()
                times[name].append((time.perf_counter() - start) * 1e3 / repeats)


def alternating(metrics: Sequence[Metric]) -> list[Metric]:
    """The metrics such that one of each family comes first, and two of one family never follow each other."""
    families: dict[type[Metric], list[Metric]] = {}
    for metric in metrics:
        families.setdefault(type(metric), []).append(metric)
    return [metric for several in zip_longest(*families.values()) for metric in several if metric is not None]


def worker_setup(rehearsal: bool) -> Setup:
    """The setup in a worker process, which has its own device and tiles."""
    if rehearsal:
        small_tiles()
    return Setup(torch.device("cpu" if rehearsal else "cuda"), rehearsal)


def small_tiles() -> None:
    """For a rehearsal: Triton's interpreter takes a second for a tile of the usual size."""
    for tiles in tables.TILES.values():
        tiles.update({size: tables.Tile(4, 4, 8, 1) for size in tiles})


def captured(setup: Setup, step: Callable[[], object], warm: int = 3) -> Callable[[], object]:
    """`step` as a CUDA graph, after `warm` steps on another stream; in a rehearsal `step` itself."""
    if setup.device.type != "cuda":
        step()
        return step
    stream = torch.cuda.Stream(setup.device)
    stream.wait_stream(torch.cuda.current_stream(setup.device))
    with torch.cuda.stream(stream):
        for _ in range(warm):
            step()
    torch.cuda.current_stream(setup.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def relative_error(got: torch.Tensor, exact: torch.Tensor) -> float:
    """The error in norm over the norm of the exact result."""
    return float(((got - exact).square().sum() / exact.square().sum()).sqrt())


class UnavailableError(Exception):
    """What a section or an item needs is not here."""
