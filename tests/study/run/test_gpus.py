"""Which GPU a worker sees; the assignment alone, so no GPU is needed."""

import os
import re
from datetime import UTC, datetime
from importlib import import_module
from multiprocessing import Pipe
from types import SimpleNamespace

import pytest
import torch

from cdgrad.study import StudyError
from cdgrad.study.plan.job import Job
from cdgrad.study.records import Run, environment
from cdgrad.study.records.run import FailedRun
from cdgrad.study.run import local_engine, worker
from cdgrad.study.run.engine import RunDone
from cdgrad.study.run.execute import execute
from cdgrad.study.run.worker import WorkerOptions
from cdgrad.study.spec import parse
from cdgrad.study.train import device, loop


@pytest.mark.parametrize(
    ("gpus", "expected"), [((), [None] * 5), (("3",), ["3"] * 5), (("0", "2"), ["0", "2", "0", "2", "0"])]
)
def test_workers_take_the_gpus_by_turns(monkeypatch, gpus, expected):
    """What would each process find when it starts?"""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    started = []

    class Process:
        """Finds what a process would that started now."""

        def __init__(self, target, args):
            self.options = args[1]

        def start(self):
            visible, threads = (os.environ.get(key) for key in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"))
            started.append((visible, self.options.gpu, threads))

    context = SimpleNamespace(Pipe=Pipe, Process=Process)
    monkeypatch.setattr(worker, "get_context", lambda method: context)
    for index in range(5):
        worker.Worker(WorkerOptions(local_engine.gpu_of(index, gpus)))
    assert started == [(gpu, gpu, "1") for gpu in expected]
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


@pytest.mark.parametrize(("listed", "expected"), [("", ["0", "1"]), ("4, 7", ["4", "7"])])
def test_only_gpus_that_are_left_to_this_process(monkeypatch, listed, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert local_engine.visible_gpus() == expected


def test_no_gpu_is_said_in_a_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(StudyError, match="--device cuda: PyTorch finds no CUDA device"):
        local_engine.visible_gpus()


ILLEGAL = "CUDA error: an illegal memory access was encountered"
FULL = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB"
)
BROKEN = torch.AcceleratorError(f"{ILLEGAL}\nCUDA kernel errors might")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            FULL,
            r"^the GPU's memory is full \(Tried to allocate 2.00 GiB\); use fewer --workers",
        ),
        (
            BROKEN,
            r"^the GPU failed during the run \(CUDA error: an illegal memory access was",
        ),
    ],
)
def test_a_gpu_that_fails_is_one_failed_run_with_what_to_do(tiny, monkeypatch, error, expected):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(loop, "run_epoch", fail)
    run = execute(Job("", "sgd", None, 0, tiny.setting("", "sgd")), lambda epoch, measured: None)
    assert run.status == "failed"
    assert re.search(expected, run.message)
    assert type(run) is Run  # a `FailedRun`, an error of the user's code, would end the study
    monkeypatch.setattr(loop, "run_epoch", lambda state: 1 / 0)
    run = execute(Job("", "sgd", None, 0, tiny.setting("", "sgd")), lambda epoch, measured: None)
    assert type(run) is FailedRun


def full(seed, arm):
    raise FULL


def test_a_gpu_that_fails_in_the_users_code_is_no_error_of_that_code(monkeypatch):
    setting = parse(f'baseline = "a"\nentry = "{__name__}:full"\nseeds = 1\n[arms.a]', "own").setting("", "a")
    run = execute(Job("", "a", None, 0, setting), lambda epoch, measured: None)
    assert type(run) is Run
    assert run.message.startswith("the GPU's memory is full (Tried to allocate 2.00 GiB)")


def test_a_gpu_that_cannot_be_asked_for_its_name_is_a_failed_run(tiny, monkeypatch):
    def broken(*_):
        raise BROKEN

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", broken)
    monkeypatch.setattr(torch.cuda, "init", broken)
    monkeypatch.setattr(loop, "the_device", lambda name: torch.device("cuda"))
    environment.cache_clear()
    run = execute(Job("", "sgd", None, 0, tiny.setting("", "sgd")), lambda *_: None, device="cuda")
    assert run.message.startswith("the GPU failed during the run")
    assert run.environment["device"] == "no GPU"
    environment.cache_clear()


def failed(job, error):
    return job.lost(datetime.now(UTC), {}, error)


@pytest.mark.parametrize("gpu", ["0", None])
@pytest.mark.parametrize(("lost", "sent"), [(False, ["Run", "Run"]), (True, ["LastRun"])])
def test_a_worker_ends_after_its_gpu_failed_and_keeps_to_its_share(tiny, monkeypatch, lost, sent, gpu):
    """The worker's side of the pipe, in this process; without `gpu`, an entry's own code uses one."""

    def synchronize():
        if lost:
            raise BROKEN

    def leave(status):
        raise EOFError

    def limit(share):
        shares.append(share)
        synchronize()

    jobs = [Job("", "sgd", None, seed, tiny.setting("", "sgd")) for seed in (0, 1)]
    messages, shares = [], []

    class Driver:
        """The driver's end of the pipe."""

        send = messages.append

        def recv(self):
            if not jobs:
                raise EOFError
            return jobs.pop(0)

    monkeypatch.setattr(worker, "execute", lambda job, report, **options: failed(job, str(options)))
    monkeypatch.setattr(worker.signal, "signal", lambda *_: None)
    monkeypatch.setattr(worker.signal, "pthread_sigmask", lambda *_: None)
    monkeypatch.setattr(worker.threading.Thread, "start", lambda thread: None)
    monkeypatch.setattr(worker.os, "_exit", leave)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limit)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    worker.serve(Driver(), WorkerOptions(gpu=gpu, sharing=4))
    assert shares == ([0.95 / 4] if gpu else [])
    assert [type(message).__name__ for message in messages] == sent


LOSING = """
import os, time
from datetime import UTC, datetime
from cdgrad.study.run import worker

def serve(pipe, options):
    job = pipe.recv()
    message = f"{os.getpid()} {options.sharing}"
    pipe.send(worker.LastRun(job.lost(datetime.now(UTC), {}, message)))
    time.sleep(1)  # the process has not ended yet when the driver has the next job
"""


def test_a_worker_whose_gpu_failed_is_replaced(tiny, tmp_path, monkeypatch):
    (tmp_path / "losing.py").write_text(LOSING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(worker, "serve", import_module("losing").serve)
    jobs = [Job("", "sgd", None, seed, tiny.setting("", "sgd")) for seed in range(3)]
    events = list(local_engine.run_all(lambda: jobs.pop(0) if jobs else None, 1))
    assert [event.run.seed for event in events if isinstance(event, RunDone)] == [0, 1, 2]
    processes = {event.run.message for event in events}
    assert len(processes) == 3
    assert all(message.endswith(" 1") for message in processes)  # none shares its GPU


def test_the_peak_of_a_gpu_that_is_named_by_number_needs_cuda_first(monkeypatch):
    """torch knows the number of no device before CUDA is initialized; without a number it initializes it."""
    calls = []
    monkeypatch.setattr(torch.cuda, "init", lambda: calls.append("init"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: calls.append(device))
    device.forget_peak_memory(torch.device("cpu"))
    assert calls == []
    device.forget_peak_memory(torch.device("cuda:1"))
    assert calls == ["init", torch.device("cuda:1")]
