"""Comparable times: candidates are timed one after the other in rounds; the median over rounds counts."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import torch

# More than the last-level cache of any CPU that we know; a backward pass writes about as much.
FLUSHED_BYTES = 256 * 2**20
_LONG = 1.0  # seconds


def interleaved(
    candidates: Mapping[str, Callable[[], object]],
    prepare: Callable[[], object],
    *,
    cold: bool,
    rounds: int,
) -> dict[str, float]:
    """Median seconds of each candidate, in rounds, so that a busy moment affects all of them alike.

    Args:
        candidates: what to time, by name.
        prepare: runs before each measurement, untimed.
        cold: write `FLUSHED_BYTES` before each measurement, so that no gradient is left in the caches.
        rounds: measurements of each candidate; one that has taken more than a second in all gets no further.
    """
    buffer = torch.zeros(FLUSHED_BYTES // 4) if cold else None
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for run in candidates.values():
        prepare()
        run()
    for _ in range(rounds):
        for name, run in candidates.items():
            if sum(times[name]) > _LONG:
                continue
            prepare()
            if buffer is not None:
                buffer.add_(1)
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: median(each) for name, each in times.items()}


def extra_bytes(run: Callable[[], object]) -> int | None:
    """How far resident memory rises above its level before `run`; None where Linux does not say."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists() or not reset.exists():
        return None
    gc.collect()
    try:
        # Memory that malloc keeps would hide what it hands out again.
        ctypes.CDLL(None).malloc_trim(0)
        reset.write_text("5")
    except (AttributeError, OSError):
        return None
    before = _kilobytes(status, "VmRSS")
    run()
    return max(0, _kilobytes(status, "VmHWM") - before) * 1024


def _kilobytes(status: Path, field: str) -> int:
    (line,) = (line for line in status.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1])
