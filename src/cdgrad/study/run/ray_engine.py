"""Runs as tasks of a Ray cluster (extra ``ray``): the same jobs, the same code, the same numbers.

Only the driver uses the study's folder; every node needs cdgrad, and the data and modules that the
specification names, under the same paths. Every run is a task with one CPU and, with --device cuda, a share
of a GPU; it streams its epochs. A run whose worker or node is lost is executed again elsewhere. After the
third loss it is recorded as failed, so that the study completes on the remaining nodes.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

from cdgrad.study import StudyError
from cdgrad.study.plan.job import Job
from cdgrad.study.records.environment import environment
from cdgrad.study.records.run import FailedRun, Run
from cdgrad.study.run import flags
from cdgrad.study.run.engine import ONE_THREAD, EpochDone, RunDone, Take
from cdgrad.study.run.execute import execute
from cdgrad.study.shown import one_line

ATTEMPTS = 3


def run_all(
    take: Take, workers: int, *, address: str = "auto", gpus_per_run: float = 0.0
) -> Generator[EpochDone | RunDone]:
    """Execute the runs in up to `workers` tasks at once, and yield their events.

    Leaving the iterator cancels the running tasks and disconnects from the cluster.

    Args:
        take: gives the next job, or None where none can start now.
        workers: number of tasks at once; those that find no free CPU wait.
        address: address of the cluster, as for ``ray.init``; ``"auto"``: the cluster of this machine.
        gpus_per_run: GPUs of each run, such as 0.25; 0: runs train on the CPU.

    Raises:
        StudyError: there is no cluster at the address, or it has no GPU.
    """
    ray = _connected(address)
    try:
        if gpus_per_run and not ray.cluster_resources().get("GPU"):
            raise StudyError("the Ray cluster has no GPU; omit --device cuda, or add a node with one")
        task = {"num_cpus": 1, "num_gpus": gpus_per_run, "max_retries": 0, "num_returns": "streaming"}
        remote = ray.remote(**task, runtime_env={"env_vars": dict(ONE_THREAD)})(stream_run)
        device = "cuda" if gpus_per_run else "cpu"
        slots: dict[int, _Slot] = {}
        try:
            while True:
                for index in range(workers):
                    if index not in slots and (job := take()) is not None:
                        slots[index] = _Slot(job, remote, device)
                if not slots:
                    return
                ready, _ = ray.wait([slot.stream for slot in slots.values()], num_returns=1, timeout=1)
                for index, slot in list(slots.items()):
                    if slot.stream not in ready:
                        continue
                    message = slot.receive(ray)
                    if isinstance(message, int):
                        yield EpochDone(index, slot.job, message)
                    elif message is not None:
                        del slots[index]
                        yield RunDone(index, slot.job, message)
        finally:
            for slot in slots.values():
                ray.cancel(slot.stream, force=True)
    finally:
        ray.shutdown()


@dataclass
class _Slot:
    """A run that is being executed, and the number of its attempts."""

    job: Job
    remote: Any
    device: str
    attempt: int = 0
    since: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.attempt += 1
        self.stream = self.remote.remote(self.job, self.device, os.getcwd())

    def receive(self, ray: Any) -> int | Run | None:
        """The next epoch, or the run; None where the run was lost and starts again."""
        try:
            return ray.get(next(self.stream))
        except ray.exceptions.RayTaskError as error:  # not a loss: another attempt would raise it, too
            run = self._failed(f"the node cannot execute the run: {_last_line(error)}")
            return FailedRun(**vars(run), traceback=str(error))
        except (ray.exceptions.RayError, StopIteration) as error:
            if self.attempt == ATTEMPTS:
                return self._failed(f"lost {ATTEMPTS} times by the Ray cluster: {_last_line(error)}")
            self.start()
            return None

    def _failed(self, message: str) -> Run:
        return self.job.lost(self.since, environment(), message)


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def stream_run(job: Job, device: str, folder: str) -> Iterator[int | Run]:
    """A task: each epoch's number, then the run. The worker ends where a later run would start otherwise."""
    import torch

    from cdgrad.study.train.device import is_lost

    # Relative paths and modules of the user's start where the study was started, not where the node was.
    with suppress(OSError):
        os.chdir(folder)
    events = queue.SimpleQueue[int | Run | BaseException]()

    def work() -> None:
        torch.set_num_threads(1)
        try:
            events.put(execute(job, lambda epoch, _: events.put(epoch), device=device))
        except BaseException as error:  # Ray reports an exception of the task, but not of its threads
            events.put(error)

    threading.Thread(target=work, daemon=True).start()
    while True:
        event = events.get()
        if isinstance(event, BaseException):
            raise event
        yield event
        if isinstance(event, Run):
            break
    lost = event.status == "failed" and is_lost(device)
    if lost or flags.need_new_process():
        raise SystemExit(0)  # Ray ends the worker once the driver has what was yielded


def _connected(address: str) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray: Any = import_module("ray")
    except ModuleNotFoundError as error:
        raise StudyError("ray is not installed; in a clone of cdgrad, run pip install '.[ray]'") from error
    try:
        _check_reachable(address)
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (OSError, ValueError, RuntimeError) as error:
        raise StudyError(
            f"no Ray cluster at {address} ({one_line(error)}); start one with ray start --head"
        ) from error
    return ray


def _check_reachable(address: str) -> None:
    """Raise OSError where nobody listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()
