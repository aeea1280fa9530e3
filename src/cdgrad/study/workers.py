"""Local worker processes: each imports torch with its own threads, takes one run at a time, reports.

The driver alone touches the records. A worker ends when its pipe closes, so none outlives a driver
that was killed.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from cdgrad.study import StudyError
from cdgrad.study.environment import environment
from cdgrad.study.records import Key, Run, Status
from cdgrad.study.spec import Setting, as_json


@dataclass(frozen=True)
class Job:
    """One run to make: a trial's, or a final one, where `trial` is None.

    `values` are those that a trial or the choice among trials put in the setting.
    """

    cell: str
    arm: str
    trial: int | None
    seed: int
    setting: Setting
    values: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def key(self) -> Key:
        """Which run of the study it is."""
        return self.cell, self.arm, self.trial, self.seed

    def run(self, started: datetime, **found: Any) -> Run:
        """The record of this job, with what was found."""
        return Run(
            *self.key,
            evaluated=self.setting.evaluate,
            values=self.values,
            config=as_json(self.setting),
            fingerprint=self.setting.fingerprint,
            started=started.isoformat(timespec="seconds"),
            **found,
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


def execute(job: Job, on_epoch: Callable[[int, dict[str, float]], None]) -> Run:
    """Make one run in this process. What the run raises becomes a record of status "failed"."""
    import torch  # here, because the driver, which imports this module, does without

    from cdgrad.study.entry import run_entry
    from cdgrad.study.train import train

    started, clock = datetime.now(UTC), time.perf_counter()
    status: Status = "failed"
    message, error, epochs, measures = "", None, list[dict[str, float]](), dict[str, Any]()
    if job.trial is not None and job.setting.evaluate == "test":
        raise ValueError(f"trial {job.trial} of arm {job.arm} would read the test part")
    try:
        if job.setting.entry:
            outcome = run_entry(job.arm, job.setting, job.seed, on_epoch)
        else:
            outcome = train(job.setting, job.seed, on_epoch)
        status, error, epochs = outcome.status, outcome.error, outcome.epochs
        measures |= outcome.measures
    except ConnectionError:  # the driver is gone; nobody would hear of a failure
        raise
    except Exception as problem:
        message = str(problem) if isinstance(problem, StudyError) else f"{type(problem).__name__}: {problem}"
    return job.run(
        started,
        status=status,
        error=error,
        epochs=epochs,
        measures=measures,
        environment=environment() | {"threads": torch.get_num_threads()},
        seconds=round(time.perf_counter() - clock, 3),
        message=" ".join(message.split()),
    )


def run_all(jobs: list[Job], workers: int) -> Generator[EpochDone | RunDone]:
    """Make the runs in up to `workers` processes of one thread each; yield what happens, as it does.

    A worker that dies is replaced, and its run reported as failed. Leaving the iterator, by an
    exception or by closing it, ends all workers.

    Args:
        jobs: taken from its front. The consumer may change it between two events: what comes of a run may
            be more of them.
        workers: how many at once.
    """
    pool: dict[int, _Worker] = {}
    try:
        while True:
            for index in range(workers):
                if not jobs:
                    break
                worker = pool.get(index)
                if worker is None or not worker.alive:
                    worker = pool[index] = _Worker()
                if worker.job is None:
                    worker.take(jobs.pop(0))
            busy = {index: worker for index, worker in pool.items() if worker.job is not None}
            if not busy:
                return
            ready = wait([worker.pipe for worker in busy.values()])
            for index, worker in busy.items():
                if worker.pipe in ready:
                    yield worker.receive(index)
    finally:
        for worker in pool.values():
            worker.end()


class _Worker:
    """The driver's side of one worker process."""

    def __init__(self) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        # A daemon, so that it cannot keep an exiting driver waiting.
        self._process: SpawnProcess = context.Process(target=_serve, args=(theirs,), daemon=True)
        with _one_thread(), _interrupts_ignored():
            self._process.start()
        theirs.close()
        self.job: Job | None = None

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def take(self, job: Job) -> None:
        self.job, self._since = job, datetime.now(UTC)
        with suppress(ConnectionError):  # a worker killed while idle: `receive` will report it
            self.pipe.send(job)

    def receive(self, index: int) -> EpochDone | RunDone:
        """The next event. The end of the pipe, perhaps in mid-message, means that the process was killed."""
        assert self.job is not None
        job = self.job
        try:
            message = self.pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            message = self._killed(job)
        if isinstance(message, int):
            return EpochDone(index, job, message)
        self.job = None
        return RunDone(index, job, message)

    def end(self) -> None:
        self._process.terminate()
        self._process.join()
        self.pipe.close()

    def _killed(self, job: Job) -> Run:
        code = self._process.exitcode or 0
        how = f"killed by signal {-code}, perhaps for want of memory" if code < 0 else f"exit status {code}"
        return job.run(
            self._since,
            status="failed",
            error=None,
            epochs=[],
            measures={},
            environment=environment(),
            seconds=(datetime.now(UTC) - self._since).total_seconds(),
            message=f"the worker ended in mid-run: {how}",
        )


def _serve(pipe: Connection) -> None:
    """A worker's life: receive a job, send each epoch's number and then the run, until the pipe ends."""
    import torch

    torch.set_num_threads(1)

    def report(epoch: int, _: dict[str, float]) -> None:
        pipe.send(epoch)

    try:
        while True:
            pipe.send(execute(pipe.recv(), report))
    except (EOFError, ConnectionError):  # the driver is gone
        return


@contextmanager
def _one_thread() -> Generator[None]:
    """Processes started inside have one thread in every numerical library, which read this on import."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def _interrupts_ignored() -> Generator[None]:
    """Processes started inside ignore Ctrl-C for good: the terminal sends it to all, the driver decides."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
