"""What every engine has in common: it pulls jobs and yields the events of their runs.

An engine calls ``take()`` whenever a worker is free. None means that no job can start now; after the next
event there may be one, because the final runs of an arm depend on its trials. The engine ends when
``take()`` returns None and no run is being executed. Only its consumer writes records.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Protocol

from cdgrad.study.plan.job import Job
from cdgrad.study.records.run import Run

# One thread in every numerical library, so that workers do not compete for cores; read on import.
ONE_THREAD: Mapping[str, str] = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)
Take = Callable[[], Job | None]


@dataclass(frozen=True)
class EpochDone:
    """A worker finished an epoch of a run."""

    worker: int
    job: Job
    epoch: int


@dataclass(frozen=True)
class RunDone:
    """A worker finished a run, or failed at it."""

    worker: int
    job: Job
    run: Run


class Engine(Protocol):
    """Executes runs, up to `workers` at once. Leaving the iterator ends all of them."""

    def __call__(self, take: Take, workers: int) -> Generator[EpochDone | RunDone]: ...
