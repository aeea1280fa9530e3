"""One worker process: the driver's side of it, and what it does.

No worker outlives the driver: each waits for the end of the driver's process in a thread and then exits at
once, so that the next driver finds the machine free.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import ModuleType

from cdgrad.machine import environment_variables
from cdgrad.study.files import SAVE_EVERY
from cdgrad.study.plan.job import Job
from cdgrad.study.records.environment import environment
from cdgrad.study.records.run import Run
from cdgrad.study.run import flags
from cdgrad.study.run.engine import ONE_THREAD, EpochDone, RunDone
from cdgrad.study.run.execute import execute

_GRACE = 5  # seconds from SIGTERM to SIGKILL
_INTERRUPT = {signal.SIGINT}


@dataclass(frozen=True)
class WorkerOptions:
    """How a worker executes its runs.

    Attributes:
        gpu: its GPU, as in CUDA_VISIBLE_DEVICES; None: it trains on the CPU.
        sharing: number of workers on that GPU, which have equal parts of its memory.
        checkpoints: the folder in which long runs save their state; None: they do not.
        save_every: least number of seconds between two saves of a run.
        tensorboard: the folder for the curves of the runs; None: they are not written.
    """

    gpu: str | None = None
    sharing: int = 1
    checkpoints: Path | None = None
    save_every: float = SAVE_EVERY
    tensorboard: Path | None = None


class Worker:
    """The driver's side of one worker process."""

    def __init__(self, options: WorkerOptions) -> None:
        context = get_context("spawn")
        self.pipe, child_end = context.Pipe()
        # No daemon: the user's own training code may start loaders, which a daemon must not.
        self._process: SpawnProcess = context.Process(target=serve, args=(child_end, options))
        visible = {} if options.gpu is None else {"CUDA_VISIBLE_DEVICES": options.gpu}
        # Otherwise the interpreter would search the working directory first, for its own modules, too.
        with environment_variables({**ONE_THREAD, **visible, "PYTHONSAFEPATH": "1"}), _without_main():
            self._process.start()
        child_end.close()
        self.job: Job | None = None
        self._ends = False

    @property
    def alive(self) -> bool:
        """Whether the process can take a job."""
        return not self._ends and self._process.is_alive()

    @property
    def sentinel(self) -> int:
        """Ready once the process has ended. The pipe may stay open, held by its children."""
        return self._process.sentinel

    def take(self, job: Job) -> None:
        """Give the process a job."""
        self.job, self._since = job, datetime.now(UTC)
        with suppress(ConnectionError):  # a worker killed while idle: `receive` will report it
            self.pipe.send(job)

    def receive(self, index: int) -> EpochDone | RunDone:
        """The next event. A pipe that ends, perhaps within a message, means that the process was killed."""
        assert self.job is not None
        job = self.job
        try:
            if not self.pipe.poll():
                raise EOFError
            message: int | Run | LastRun = self.pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode or 0
            how = (
                f"was killed by signal {-code} during the run{' (out of memory?)' * (code == -9)}"
                if code < 0
                else f"ended during the run with exit status {code}"
            )
            message = job.lost(self._since, environment(), f"the worker process {how}")
        if isinstance(message, int):
            return EpochDone(index, job, message)
        if isinstance(message, LastRun):
            self._ends, message = True, message.run
        self.job = None
        return RunDone(index, job, message)

    def ask_to_end(self) -> None:
        """Send SIGTERM, which training code may catch; does not wait."""
        self._process.terminate()

    def end(self) -> None:
        """End the process, whatever it does."""
        self.ask_to_end()
        self._process.join(_GRACE)
        self._process.kill()  # for training code that catches the first signal
        self._process.join()
        self.pipe.close()


@dataclass(frozen=True)
class LastRun:
    """A run after which the worker process ends."""

    run: Run


def serve(pipe: Connection, options: WorkerOptions) -> None:
    """The worker process: receive a job, send each epoch's number and then the run, until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPT)
    threading.Thread(target=_leave_with_the_driver, daemon=True).start()
    os.environ.pop("PYTHONSAFEPATH", None)  # processes that the user's code starts do not inherit it
    import torch

    from cdgrad.study.train.device import is_lost, limit_memory

    torch.set_num_threads(1)
    device = "cpu" if options.gpu is None else "cuda"
    if device == "cuda":
        with suppress(RuntimeError):  # a GPU that fails now fails the first run, too, which says so
            limit_memory(options.sharing)

    def report(epoch: int, _: Mapping[str, float]) -> None:
        try:
            pipe.send(epoch)
        except ConnectionError:  # the driver has ended: this is no error of the user's code
            os._exit(1)

    try:
        while True:
            run = execute(
                pipe.recv(),
                report,
                device=device,
                checkpoints=options.checkpoints,
                save_every=options.save_every,
                tensorboard=options.tensorboard,
            )
            lost = run.status == "failed" and is_lost(device)
            last = lost or flags.need_new_process()
            pipe.send(LastRun(run) if last else run)
            if lost:
                os._exit(1)  # an orderly exit would free memory on the failed GPU
            if last:
                return
    except (EOFError, ConnectionError):  # the driver has ended
        return


def _leave_with_the_driver() -> None:
    driver = parent_process()
    assert driver is not None
    wait([driver.sentinel])
    os._exit(1)


@contextmanager
def _without_main() -> Generator[None]:
    """Processes started inside do not import the driver's main module, as spawn would have them do.

    A notebook has none, one read from standard input cannot be found again, and a script that starts a study
    outside ``if __name__ == "__main__"`` would start it once more in every worker.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _start_resource_tracker() -> None:
    """Start the process that frees what ended workers leave, such as semaphores of a progress bar.

    It frees them all; its warning that there were some would follow the one line that says why a study ended.
    """
    filters = [f for f in (os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker") if f]
    # Safe, because it would search the working directory first for modules of Python's library, too.
    with environment_variables({"PYTHONWARNINGS": ",".join(filters), "PYTHONSAFEPATH": "1"}):
        resource_tracker.ensure_running()


@contextmanager
def interrupts_held() -> Generator[None]:
    """Ctrl-C waits until the end, and processes started inside begin with it blocked.

    A terminal sends it to all of them, but only the driver must act on it; `serve` ignores it for good.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone may set what a signal does
        yield
        return
    if sys.platform != "win32":  # which has none
        _start_resource_tracker()  # else the first worker starts it, and that unblocks the signal
    came: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    blocked = set[int]() if sys.platform == "win32" else signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPT)
    try:
        yield
    finally:
        if sys.platform != "win32":
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)
