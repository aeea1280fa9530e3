"""Local worker processes: each imports torch with its own threads, takes one run at a time, reports.

The driver alone touches the records. A worker ends when its pipe closes, so none outlives a driver
that was killed.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from cdgrad.study import StudyError
from cdgrad.study.environment import environment
from cdgrad.study.records import Run, Status
from cdgrad.study.spec import Setting


@dataclass(frozen=True)
class Job:
    """One run to make."""

    arm: str
    seed: int
    setting: Setting


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
    import torch

    from cdgrad.study.train import train  # imports torch, which the driver must not

    started, clock = datetime.now(UTC), time.perf_counter()
    status: Status = "failed"
    message, error, epochs = "", None, list[dict[str, float]]()
    try:
        outcome = train(job.setting, job.seed, on_epoch)
        status, error, epochs = outcome.status, outcome.error, outcome.epochs
    except ConnectionError:  # the driver is gone; nobody would hear of a failure
        raise
    except Exception as problem:
        message = str(problem) if isinstance(problem, StudyError) else f"{type(problem).__name__}: {problem}"
    return Run(
        arm=job.arm,
        seed=job.seed,
        status=status,
        error=error,
        epochs=epochs,
        config=asdict(job.setting),
        fingerprint=job.setting.fingerprint,
        environment=environment() | {"threads": torch.get_num_threads()},
        started=started.isoformat(timespec="seconds"),
        seconds=round(time.perf_counter() - clock, 3),
        message=" ".join(message.split()),
    )


def run_all(jobs: Iterable[Job], workers: int) -> Generator[EpochDone | RunDone]:
    """Make the runs in up to `workers` processes of one thread each; yield what happens, as it does.

    A worker that dies is replaced, and its run reported as failed. Leaving the iterator, by an
    exception or by closing it, ends all workers.
    """
    queue = list(jobs)[::-1]
    pool: dict[int, _Worker] = {}
    try:
        for index in range(min(workers, len(queue))):
            pool[index] = _Worker(queue.pop())
        while pool:
            ready = wait([w.pipe for w in pool.values()])
            for index, worker in list(pool.items()):
                if worker.pipe not in ready:
                    continue
                event = worker.receive(index)
                yield event
                if isinstance(event, EpochDone):
                    continue
                if not queue:
                    worker.end()
                    del pool[index]
                elif worker.alive:
                    worker.take(queue.pop())
                else:
                    pool[index] = _Worker(queue.pop())
    finally:
        for worker in pool.values():
            worker.end()


class _Worker:
    """The driver's side of one worker process."""

    def __init__(self, job: Job) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        # A daemon, so that it cannot keep an exiting driver waiting.
        self._process: SpawnProcess = context.Process(target=_serve, args=(theirs,), daemon=True)
        with _one_thread(), _interrupts_ignored():
            self._process.start()
        theirs.close()
        self.alive = True
        self.take(job)

    def take(self, job: Job) -> None:
        self.job, self._since = job, datetime.now(UTC)
        with suppress(ConnectionError):  # a worker killed while idle: `receive` will report it
            self.pipe.send(job)

    def receive(self, index: int) -> EpochDone | RunDone:
        """The next event. The end of the pipe means that the process was killed."""
        try:
            message = self.pipe.recv()
        except (EOFError, ConnectionError):
            self.alive = False
            self._process.join()
            return RunDone(index, self.job, self._killed())
        if isinstance(message, int):
            return EpochDone(index, self.job, message)
        return RunDone(index, self.job, message)

    def end(self) -> None:
        self._process.terminate()
        self._process.join()
        self.pipe.close()

    def _killed(self) -> Run:
        code = self._process.exitcode or 0
        how = f"killed by signal {-code}, perhaps for want of memory" if code < 0 else f"exit status {code}"
        return Run(
            arm=self.job.arm,
            seed=self.job.seed,
            status="failed",
            error=None,
            epochs=[],
            config=asdict(self.job.setting),
            fingerprint=self.job.setting.fingerprint,
            environment=environment(),
            started=self._since.isoformat(timespec="seconds"),
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
