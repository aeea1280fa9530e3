"""What every engine has in common: jobs in, events of their runs out.

An engine is a generator ``run_all(jobs, workers) -> EpochDone | RunDone``. It takes jobs from the front of
the list whenever a worker is free; its consumer may change the list between two events, because what
comes of a run may be more of them. The consumer alone touches the records.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Protocol

from cdgrad.study.plan.job import Job
from cdgrad.study.records.run import Run

# One thread in every numerical library, so that workers do not fight; read on import.
ONE_THREAD: Mapping[str, str] = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)


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
    """Makes runs somewhere, up to `workers` at once. Leaving the iterator ends all that is under way."""

    def __call__(self, jobs: list[Job], workers: int) -> Generator[EpochDone | RunDone]: ...
