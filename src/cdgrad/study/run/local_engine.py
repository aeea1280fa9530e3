"""Execution of runs in worker processes on this machine, each with one thread and one run at a time."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from multiprocessing.connection import wait
from pathlib import Path

from cdgrad.study import StudyError
from cdgrad.study.files import SAVE_EVERY
from cdgrad.study.run.engine import EpochDone, RunDone, Take
from cdgrad.study.run.worker import Worker, WorkerOptions, interrupts_held


def run_all(
    take: Take,
    workers: int,
    *,
    gpus: Sequence[str] = (),
    checkpoints: Path | None = None,
    save_every: float = SAVE_EVERY,
    tensorboard: Path | None = None,
) -> Generator[EpochDone | RunDone]:
    """Execute the runs in up to `workers` processes of one thread each, and yield their events.

    A worker that dies, or whose GPU failed, is replaced, and its run reported as failed. Leaving the
    iterator, by an exception or by closing it, ends all workers.

    Args:
        take: gives the next job, or None where none can start now.
        workers: number of processes.
        gpus: identifiers as in CUDA_VISIBLE_DEVICES. Worker k trains on number k modulo their count, and
            sees no other; those that share one have equal parts of its memory. Empty: on the CPU.
        checkpoints: the folder in which long runs save their state; None: they do not.
        save_every: least number of seconds between two saves of a run.
        tensorboard: the folder for the curves of the runs; None: they are not written.
    """
    pool: dict[int, Worker] = {}
    try:
        while True:
            for index in range(workers):
                worker = pool.get(index)
                # A dead worker may still have a job: `receive` then reports how it ended.
                if worker is not None and worker.job is not None:
                    continue
                job = take()
                if job is None:
                    break
                if worker is None or not worker.alive:
                    sharing = len(range(index % len(gpus), workers, len(gpus))) if gpus else 1
                    options = WorkerOptions(
                        gpu_of(index, gpus), sharing, checkpoints, save_every, tensorboard
                    )
                    with interrupts_held():  # until the pool has the worker, which is then ended
                        worker = pool[index] = Worker(options)
                worker.take(job)
            busy = {index: worker for index, worker in pool.items() if worker.job is not None}
            if not busy:
                return
            ready = wait([end for worker in busy.values() for end in (worker.pipe, worker.sentinel)])
            for index, worker in busy.items():
                if worker.pipe in ready or worker.sentinel in ready:
                    yield worker.receive(index)
    finally:
        for worker in pool.values():  # all at once: one that catches the signal costs seconds
            worker.ask_to_end()
        for worker in pool.values():
            worker.end()


def gpu_of(worker: int, gpus: Sequence[str]) -> str | None:
    """The GPU of a worker, number `worker` modulo their count; None without GPUs."""
    return gpus[worker % len(gpus)] if gpus else None


def visible_gpus() -> list[str]:
    """The GPUs of this machine that CUDA_VISIBLE_DEVICES leaves to it.

    Raises:
        StudyError: there is none, or PyTorch was built without CUDA.
    """
    import torch

    count = torch.cuda.device_count()
    listed = [gpu.strip() for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu.strip()]
    if not count:
        raise StudyError("--device cuda: PyTorch finds no CUDA device; omit the option to train on the CPU")
    return listed[:count] or [str(index) for index in range(count)]
